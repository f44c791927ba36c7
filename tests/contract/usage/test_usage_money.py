"""The view `usage_money`: what dashboards say that usage costs is what `GET /usage` says."""

import asyncio
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import httpx
import pytest

from schemas.prices import PriceSpec
from services.runtime.pricing.book import PriceBook
from services.runtime.pricing.cells import cell_of
from services.usage.api import build_api
from services.usage.clickhouse import ClickHouseUsageStore
from services.usage.rates_loop import RatesLoop
from services.usage.rates_table import KEPT_VERSIONS, Line, RatedCell, lines_of
from tests.support.prices import book_of, price
from tests.support.usage_tables import START, Place, block, spent

MIDNIGHT = START + timedelta(minutes=30)

TIERS = [{"above_input_tokens": 128_000, "rates": {"input": "6", "output": "18"}}]

PRICES = (
    price("small", model="small", rates={"input": "2.5", "cached_input": "1", "output": "10", "reasoning": "11"}),
    price("large", model="large", rates={"input": "7", "output": "40", "call": "0.001"}, tiers=TIERS),
    price("large-later", model="large", rates={"input": "5", "output": "30"}, effective_from=MIDNIGHT),
    price("drawing", kind="image", model="drawer", rates={"image": "0.04"}),
    price("tools", kind="tool", rates={"call": "0.003"}),
    price("everybody", figure="price", markup="0.2"),
    price(
        "acme", figure="price", tenant_id="acme", model="small", currency="EUR", rates={"input": "3", "output": "12"}
    ),
    price("acme-later", figure="price", tenant_id="acme", model="large", markup="0.5", effective_from=MIDNIGHT),
)

GROUP = ("user", "team", "agent", "kind", "provider", "model", "tool")
COLUMNS = ("user_id", "team_id", "agent", "kind", "provider", "model", "tool")


class Teller:
    """Tells the rates of a price book that may be another one."""

    def __init__(self, store: ClickHouseUsageStore, *prices: PriceSpec) -> None:
        self.book: PriceBook = book_of(*prices)
        self._loop = RatesLoop(store, lambda: self.book)

    async def tell(self) -> None:
        await self._loop.refresh()


def mixed(chance: random.Random, number: int) -> Any:
    kind = chance.choice(["completion", "completion", "completion", "image", "tool"])
    given = chance.choice([0, chance.randrange(1000), chance.randrange(300_000)]) if kind == "completion" else 0
    made = chance.randrange(400) if kind == "completion" else 0
    lost = chance.random() < 0.2
    return spent(
        number,
        tenant_id=chance.choice(["acme", "other", "third"]),
        user_id=chance.choice([None, "ann", "bob"]),
        team_id=chance.choice([None, "blue"]),
        agent=chance.choice([None, "assistant"]),
        kind=kind,
        provider=chance.choice([None, "p", ""]),
        model={"completion": chance.choice(["small", "large", "unpriced"]), "image": "drawer", "tool": None}[kind],
        tool=chance.choice(["search", "sum"]) if kind == "tool" else None,
        images=chance.randrange(4) if kind == "image" else 0,
        input_tokens=given,
        cached_input_tokens=chance.choice([0, chance.randrange(given + 5)]),
        output_tokens=made,
        reasoning_tokens=chance.choice([0, chance.randrange(made + 1)]),
        outcome="lost" if lost else "ok",
        billable=not lost,
        occurred_at=START + timedelta(minutes=chance.randrange(180)),
    )


async def from_usage(store: ClickHouseUsageStore, book: PriceBook, tenant: str) -> dict[tuple[Any, ...], Any]:
    """What `GET /usage` says: cost and price by currency, unpriced events and events of each group of an hour."""

    async def check() -> Mapping[str, Any]:
        return {}

    transport = httpx.ASGITransport(build_api(store, lambda: book, check))  # pyright: ignore
    asked = {"tenant_id": tenant, "bucket": "hour", "group_by": ",".join(GROUP), "limit": "1000"}
    async with httpx.AsyncClient(transport=transport, base_url="http://usage") as client:
        page = (await client.get("/usage", params=asked)).raise_for_status().json()
    assert page["next_cursor"] is None
    return {
        (tenant, *item["group"].values()): (
            {currency: float(amount) for currency, amount in item["cost"].items()},
            {currency: float(amount) for currency, amount in item["price"].items()},
            item["unpriced_events"],
            item["events"],
        )
        for item in page["items"]
    }


def from_view(client: Any) -> dict[tuple[Any, ...], Any]:
    """The same of all tenants, by the SQL of a dashboard."""
    keys = f"tenant_id, formatDateTime(starts, '%Y-%m-%dT%H:00:00Z', 'UTC'), {', '.join(COLUMNS)}"
    rows = client.query(
        f"SELECT {keys}, cost_currency, sum(cost), price_currency, sum(price), sum(unpriced_events), sum(events) "
        "FROM usage_money GROUP BY ALL"
    ).result_rows
    found: dict[tuple[Any, ...], Any] = {}
    for *key, cost_currency, cost, price_currency, amount, unpriced, events in rows:
        costs, prices, unpriced_before, events_before = found.get(tuple(key), ({}, {}, 0, 0))
        for sums, currency, value in ((costs, cost_currency, cost), (prices, price_currency, amount)):
            assert (currency is None) == (value is None), "an amount without a currency, or the other way round"
            if currency is not None:
                sums[currency] = sums.get(currency, 0) + value
        found[tuple(key)] = (costs, prices, unpriced_before + unpriced, events_before + events)
    return found


async def test_amounts_of_the_view_are_those_of_usage(store: ClickHouseUsageStore, place: Place, seed: int) -> None:
    chance = random.Random(seed)
    await store.insert(block(*(mixed(chance, number) for number in range(1500))))
    teller = Teller(store, *PRICES)
    await teller.tell()
    expected: dict[tuple[Any, ...], Any] = {}
    for tenant in ("acme", "other", "third"):
        expected |= await from_usage(store, teller.book, tenant)
    with place.client() as client:
        found = from_view(client)
    assert found.keys() == expected.keys()
    seen: defaultdict[str, float] = defaultdict(float)
    for key, (costs, prices, unpriced, events) in expected.items():
        of_view = found[key]
        assert of_view[0] == pytest.approx(costs, rel=1e-9, abs=1e-12), key
        assert of_view[1] == pytest.approx(prices, rel=1e-9, abs=1e-12), key
        assert of_view[2:] == (unpriced, events), key
        seen["unpriced"] += unpriced
        for name, amounts in (("cost", costs), ("price", prices)):
            for currency, amount in amounts.items():
                seen[f"{name} {currency}"] += amount
    assert {name for name, amount in seen.items() if amount} == {"unpriced", "cost USD", "price USD", "price EUR"}


async def money(place: Place, *columns: str) -> Sequence[tuple[Any, ...]]:
    """All usage by these columns of the view: with cost, its currency, and how many events are unpriced."""
    named = "".join(f"{column}, " for column in columns)
    with place.client() as client:
        return client.query(
            f"SELECT {named}cost_currency, sum(cost), sum(unpriced_events) FROM usage_money GROUP BY ALL ORDER BY ALL"
        ).result_rows


async def test_what_no_rate_is_known_of_is_unpriced_and_not_nothing(store: ClickHouseUsageStore, place: Place) -> None:
    small = price("small", model="small", rates={"input": "2"})
    teller = Teller(store, small)
    await store.insert(block(spent(0, model="small", input_tokens=10**6), spent(1, model="unknown")))
    assert await money(place, "model") == [("small", None, None, 1), ("unknown", None, None, 1)]
    nulls = "SELECT sum(cost), sum(unpriced_events) FROM usage_money SETTINGS join_use_nulls = 1"
    with place.client() as client:
        assert client.query(nulls).result_rows == [(None, 2)], "a reader's own settings change nothing"
    await teller.tell()
    assert await money(place, "model") == [("small", "USD", 2, 0), ("unknown", None, None, 1)]
    await store.insert(
        block(spent(2, model="small", output_tokens=1), spent(3, kind="embedding", model="free"), first=2)
    )
    free = price("free", model="free", rates={"input": "0"})
    teller.book = book_of(small, free)
    assert await money(place, "model") == [
        ("free", None, None, 1),
        ("small", "USD", 2, 0),
        ("small", None, None, 1),
        ("unknown", None, None, 1),
    ]
    await teller.tell()
    assert await money(place, "model") == [
        ("free", "USD", 0, 0),
        ("small", "USD", 2, 0),
        ("small", None, None, 1),
        ("unknown", None, None, 1),
    ]


async def test_a_tenant_with_prices_of_its_own_is_never_rated_by_those_of_all(
    store: ClickHouseUsageStore, place: Place
) -> None:
    """A tenant that nobody knows yet is rated by the prices of all, with no look in between."""
    teller = Teller(
        store,
        price("all", rates={"input": "2"}),
        price("acme", tenant_id="acme", currency="EUR", rates={"input": "3"}),
    )
    await store.insert(block(spent(0, input_tokens=10**6)))
    await teller.tell()
    tenants = ("acme", "another")
    await store.insert(block(*(spent(1, tenant_id=each, input_tokens=10**6) for each in tenants), first=1))
    assert await money(place, "tenant_id") == [
        ("acme", None, None, 1),
        ("another", "USD", 2, 0),
        ("default", "USD", 2, 0),
    ]
    await teller.tell()
    assert (await money(place, "tenant_id"))[0] == ("acme", "EUR", 3, 0)


async def test_a_price_that_begins_within_an_hour_holds_from_the_next_one_on(
    store: ClickHouseUsageStore, place: Place
) -> None:
    later = START + timedelta(minutes=10, microseconds=1)
    teller = Teller(store, price(rates={"input": "2"}), price(rates={"input": "4"}, effective_from=later))
    times = (0, 20, 40)
    events = [spent(at, input_tokens=10**6, occurred_at=START + timedelta(minutes=at)) for at in times]
    await store.insert(block(*events))
    await teller.tell()
    assert [row[2] for row in await money(place, "starts")] == [4, 4]
    assert sum(each[0]["USD"] for each in (await from_usage(store, teller.book, "default")).values()) == 10


async def test_rates_are_there_after_a_restart_and_a_rebuild_and_are_not_written_again(place: Place) -> None:
    store = place.store()
    await store.open()
    await store.insert(block(spent(0, model="small", input_tokens=10**6)))
    await Teller(store, *PRICES).tell()
    version = await versions(place)
    await store.close()
    store = place.store()
    await store.open()
    try:
        assert await money(place) == [("USD", 2.5, 0)]
        await Teller(store, *PRICES).tell()
        assert await versions(place) == version
        build = await store.begin_build()
        await build.insert(block(*(spent(number, model="small", input_tokens=10**6) for number in range(2))))
        assert await money(place) == [("USD", 2.5, 0)]
        await store.switch()
        assert await money(place) == [("USD", 5, 0)]
        await store.clean()
        await Teller(store, *PRICES).tell()
        assert (await versions(place), await money(place)) == (version, [("USD", 5, 0)])
    finally:
        await store.close()


async def versions(place: Place) -> list[tuple[int, int]]:
    """Of the rates, the newest first, and how many rows each has."""
    with place.client() as client:
        return client.query(
            "SELECT version, count() FROM usage_rates GROUP BY version ORDER BY version DESC"
        ).result_rows


def of_models(count: int, rate: int) -> list[Line]:
    book = book_of(price(rates={"input": str(rate)}))
    (line,) = lines_of(RatedCell("", cell_of(spent(), book.boundaries("default"))), book)
    return [(*line[:3], f"model-{number}", *line[4:]) for number in range(count)]


async def test_a_version_is_one_part_however_large_and_older_ones_go(store: ClickHouseUsageStore, place: Place) -> None:
    """So whoever reads, on whichever node, finds all of a version or nothing of it."""
    for count, rate in ((100_000, 1), (5, 2), (60_000, 3)):
        assert await store.write_rates(of_models(count, rate))
        assert not await store.write_rates(list(reversed(of_models(count, rate))))
    found = await versions(place)
    assert [rows for _, rows in found] == [60_000, 5]
    assert len(found) == KEPT_VERSIONS
    with place.client() as client:
        parts = client.query(
            "SELECT rows FROM system.parts WHERE active AND database = currentDatabase() AND table = 'usage_rates' "
            "AND level = 0 ORDER BY rows"
        ).result_rows
    assert parts == [(5,), (60_000,)]


async def test_of_two_that_write_the_last_one_counts_whatever_its_clock_says(
    store: ClickHouseUsageStore, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await store.write_rates(of_models(2, 1))
    monkeypatch.setattr("services.usage.rates_table.time.time_ns", lambda: 10**18)
    assert await store.write_rates(of_models(3, 2))
    assert [rows for _, rows in await versions(place)] == [3, 2]


async def test_who_reads_while_rates_are_replaced_finds_one_version_whole(
    store: ClickHouseUsageStore, place: Place
) -> None:
    models = [f"model-{number}" for number in range(40)]
    await store.insert(block(*(spent(at, model=model, input_tokens=10**6) for at, model in enumerate(models))))
    teller = Teller(store, price(rates={"input": "1"}))
    await teller.tell()

    async def replace() -> None:
        for rate in range(2, 12):
            teller.book = book_of(price(rates={"input": str(rate)}))
            await teller.tell()

    replacing = asyncio.create_task(replace())
    seen: set[float] = set()
    while not replacing.done():
        ((currency, cost, unpriced),) = await asyncio.to_thread(lambda: asyncio.run(money(place)))
        assert (currency, cost % 40, unpriced) == ("USD", 0, 0)
        seen.add(cost)
    await replacing
    assert len(seen) > 1
    assert await money(place) == [("USD", 440, 0)]
