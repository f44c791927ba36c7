"""What questions of usage are answered, from the rows and from the sums of minutes and days alike."""

import asyncio
import json
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import astuple
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from schemas.analytics import UsageDimension
from schemas.prices import Figure
from schemas.usage import EXAMPLES, UsageRecorded
from services.runtime.pricing.cells import Boundaries, Cell, cell_of
from services.runtime.pricing.sums import amounts_of
from services.usage.clickhouse import ClickHouseUsageStore
from services.usage.queries import EARLIEST, FILTERS, UsageGroup, UsageQuery
from services.usage.store import ReadBounds, TooMuchAskedError
from services.usage.sums_sql import COLUMNS
from services.usage.weights import weights_of
from tests.support.prices import book_of, price
from tests.support.usage_tables import EXACT_AND_SUMMED, START, Place, block, spent, total


async def test_a_tenant_sees_its_own_usage_alone(store: ClickHouseUsageStore) -> None:
    await store.insert(block(spent(7), spent(7, tenant_id="other", input_tokens=5)))
    assert (await total(store)).input_tokens == 1
    (row,) = await store.query(UsageQuery("other", ["tenant"]))
    assert (row.group, row.input_tokens) == ({"tenant": "other"}, 5)


async def test_every_dimension_and_filter_has_its_column(store: ClickHouseUsageStore) -> None:
    event = EXAMPLES[0].model_copy(update={"tool": "calculate", "team_id": "blue"})
    await store.insert(block(event, spent(1, kind="embedding", outcome="error", billable=False)))
    for dimension, column in COLUMNS.items():
        values = {row.group[dimension] for row in await store.query(UsageQuery("default", [dimension]))}
        assert getattr(event, column) in values
    for name in FILTERS:
        row = await total(store, filters={name: getattr(event, name)})
        assert row.input_tokens == event.input_tokens
        assert (await total(store, filters={name: "another"})).events == 0
    rows = await store.query(UsageQuery("default", ["user", "outcome"]))
    assert [(row.group, row.billable_events) for row in rows] == [
        ({"user": "u-1", "outcome": "ok"}, 1),
        ({"user": None, "outcome": "error"}, 0),
    ]


async def test_sums_are_those_of_the_events(store: ClickHouseUsageStore, seed: int) -> None:
    chance = random.Random(seed)
    events = [
        spent(
            number,
            user_id=chance.choice([None, "ann", "bob"]),
            model=chance.choice(["small", "large"]),
            kind=chance.choice(["completion", "tool"]),
            images=chance.randrange(4),
            input_tokens=chance.randrange(1000),
            cached_input_tokens=chance.randrange(10),
            output_tokens=chance.randrange(100),
            reasoning_tokens=chance.randrange(5),
            latency_ms=chance.randrange(5000),
            billable=chance.random() < 0.5,
            occurred_at=START + timedelta(minutes=chance.randrange(10_000)),
        )
        for number in range(300)
    ]
    for first in range(0, 300, 60):
        await store.insert(block(*events[first : first + 60], first=first))
    for dimensions in ([], ["user"], ["model", "user"], ["kind", "model", "user"]):
        asked: list[UsageDimension] = dimensions  # pyright: ignore
        groups: dict[tuple[Any, ...], list[UsageRecorded]] = defaultdict(list)
        for event in events:
            groups[tuple(getattr(event, COLUMNS[name]) for name in asked)].append(event)
        rows = await store.query(UsageQuery("default", asked))
        assert {tuple(row.group.values()) for row in rows} == groups.keys()
        for row in rows:
            group = groups[tuple(row.group.values())]
            assert row.events == len(group)
            assert row.billable_events == sum(event.billable for event in group)
            assert row.input_tokens == sum(event.input_tokens for event in group)
            assert row.cached_input_tokens == sum(event.cached_input_tokens for event in group)
            assert row.output_tokens == sum(event.output_tokens for event in group)
            assert row.reasoning_tokens == sum(event.reasoning_tokens for event in group)
            assert row.images == sum(event.images for event in group)
            assert row.latency_ms_avg == pytest.approx(sum(event.latency_ms for event in group) / len(group))
        tokens = [row.input_tokens + row.output_tokens for row in rows]
        assert tokens == sorted(tokens, reverse=True)


async def test_cells_are_those_of_the_events(store: ClickHouseUsageStore, seed: int) -> None:
    chance = random.Random(seed)
    boundaries = Boundaries.at([START, START + timedelta(microseconds=1), START + timedelta(days=1)], [1, 10, 11])
    events = [
        spent(
            number,
            kind=chance.choice(["completion", "tool"]),
            provider=chance.choice([None, "", "p"]),
            model=chance.choice([None, "m"]),
            tool=chance.choice([None, "t"]),
            billable=chance.random() < 0.5,
            input_tokens=chance.randrange(13),
            cached_input_tokens=chance.randrange(3),
            output_tokens=chance.randrange(3),
            reasoning_tokens=chance.randrange(3),
            images=chance.randrange(3),
            occurred_at=chance.choice([EARLIEST, *boundaries.times[1:]]) + timedelta(microseconds=chance.randrange(2)),
        )
        for number in range(1000)
    ]
    await store.insert(block(*events))
    (whole,) = await store.query(UsageQuery("default", boundaries=boundaries))
    rows = await store.query(UsageQuery("default", ["model", "kind"], bucket="day", boundaries=boundaries))
    for cells in (whole.cells, [cell for row in rows for cell in row.cells]):
        assert sum_of(cells) == sum_of(cell_of(event, boundaries) for event in events)
    for row in rows:
        assert {(cell.model, cell.kind) for cell in row.cells} == {(row.group["model"], row.group["kind"])}
        assert sum(cell.events for cell in row.cells) == row.events


async def test_the_rows_of_a_month_add_up_to_its_sums(store: ClickHouseUsageStore) -> None:
    """What an invoice is made of is what later months compare it with."""
    events = [
        spent(
            number % 90,
            model=f"m{number % 3}",
            input_tokens=number % 90,
            occurred_at=START + timedelta(minutes=number % 90),
        )
        for number in range(100)
    ]
    await store.insert(block(*events))
    months = await store.query(UsageQuery("default", bucket="month"))
    assert [(month.group["bucket"], month.events) for month in months] == [
        ("2026-01-01T00:00:00Z", 30),
        ("2026-02-01T00:00:00Z", 60),
    ]
    for number, month in enumerate(months, 1):
        since, until = datetime(2026, number, 1, tzinfo=UTC), datetime(2026, number + 1, 1, tzinfo=UTC)
        rows = await total(store, since=since, until=until, from_rows=True)
        assert sum_of(rows.cells) == sum_of(month.cells)


def sum_of(cells: Iterable[Cell]) -> dict[tuple[Any, ...], tuple[int, ...]]:
    """The counts of each cell, by what tells it apart."""
    counts: defaultdict[tuple[Any, ...], list[int]] = defaultdict(lambda: [0] * 6)
    for cell in cells:
        *names, events, given, cached, output, reasoning, images = astuple(cell)
        for place, count in enumerate((events, given, cached, output, reasoning, images)):
            counts[tuple(names)][place] += count
    return {names: tuple(each) for names, each in counts.items()}


async def test_buckets_begin_in_utc_and_come_in_order(store: ClickHouseUsageStore) -> None:
    times = [START, START + timedelta(minutes=29, seconds=59), START + timedelta(minutes=30)]
    await store.insert(block(*(spent(number, occurred_at=time) for number, time in enumerate(times))))
    expected = {
        "hour": [("2026-01-31T23:00:00Z", 2), ("2026-02-01T00:00:00Z", 1)],
        "day": [("2026-01-31T00:00:00Z", 2), ("2026-02-01T00:00:00Z", 1)],
        "month": [("2026-01-01T00:00:00Z", 2), ("2026-02-01T00:00:00Z", 1)],
    }
    for bucket, wanted in expected.items():
        rows = await store.query(UsageQuery("default", ["kind"], bucket=bucket))  # pyright: ignore
        assert [(row.group["bucket"], row.events) for row in rows] == wanted
        assert [*rows[0].group] == ["bucket", "kind"]


async def test_buckets_do_not_depend_on_the_zone_of_the_machine(place: Place) -> None:
    store = place.store()
    await store.open()
    await store.insert(block(spent()))
    await store.close()
    process = await place.process("query", TZ="Asia/Tokyo")
    output, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, errors.decode()
    assert json.loads(output) == [{"bucket": "2026-01-31T00:00:00Z"}]


async def test_times_are_half_open_to_the_microsecond(store: ClickHouseUsageStore) -> None:
    times = [START + timedelta(microseconds=number) for number in range(5)]
    await store.insert(block(*(spent(number, occurred_at=time) for number, time in enumerate(times))))
    assert (await total(store, since=times[2])).events == 3
    assert (await total(store, until=times[2])).events == 2
    assert (await total(store, since=times[1], until=times[3])).events == 2
    assert (await total(store, since=times[1], until=times[1])).events == 0


@pytest.mark.parametrize(
    "text",
    [
        "' OR 1=1 --",
        "a'); DROP TABLE usage_events; --",
        "back\\slash",
        "tab\tline\nend",
        "{tenant_id:String}",
        "\\N",
        "ü%_",
    ],
)
async def test_text_from_outside_is_never_sql(store: ClickHouseUsageStore, text: str) -> None:
    await store.insert(block(spent(0, user_id=text), spent(1, user_id="someone")))
    (row,) = await store.query(UsageQuery("default", ["user"], filters={"user_id": text}))
    assert (row.group, row.events) == ({"user": text}, 1)
    assert (await total(store, filters={"model": text})).events == 0
    assert (await store.query(UsageQuery(text)))[0].events == 0
    assert (await total(store)).events == 2


async def test_a_block_may_span_any_number_of_months(store: ClickHouseUsageStore) -> None:
    months = [spent(number, occurred_at=START - timedelta(days=31 * number)) for number in range(120)]
    await store.insert(block(*months))
    assert (await total(store)).events == 120


async def test_the_largest_events_that_pass_the_check_are_stored_and_add_up(store: ClickHouseUsageStore) -> None:
    most = 10**12
    numbers = dict.fromkeys(("input_tokens", "output_tokens", "latency_ms", "first_token_ms"), most)
    early, late = datetime(1970, 1, 1, tzinfo=UTC), datetime(2105, 12, 31, 23, 59, 59, tzinfo=UTC)
    events = [
        spent(0, occurred_at=early, step=2**32 - 1, attempt=2**32 - 1, **numbers),
        spent(1, occurred_at=late, **numbers),
    ]
    await store.insert(block(*events))
    row = await total(store)
    assert (row.input_tokens, row.output_tokens, row.latency_ms_avg) == (2 * most, 2 * most, most)
    rows = await store.query(UsageQuery("default", bucket="hour"))
    assert [row.group["bucket"] for row in rows] == ["1970-01-01T00:00:00Z", "2105-12-31T23:00:00Z"]


async def test_groups_come_in_the_order_that_is_asked_for(store: ClickHouseUsageStore) -> None:
    many = [spent(number, user_id="often") for number in range(5)]
    await store.insert(block(*many, spent(9, user_id="much", input_tokens=99)))
    for order, users in (("tokens", ["much", "often"]), ("events", ["often", "much"])):
        rows = await store.query(UsageQuery("default", ["user"], order_by=order))  # pyright: ignore
        assert [row.group["user"] for row in rows] == users


async def test_outcomes_are_counted_by_rows_and_sums_alike(store: ClickHouseUsageStore) -> None:
    outcomes = ["ok", "error", "lost", "error", "ok", "ok"]
    await store.insert(block(*(spent(number, outcome=each) for number, each in enumerate(outcomes))))
    for each in EXACT_AND_SUMMED:
        row = await total(store, **each)
        assert (row.events, row.error_events, row.lost_events) == (6, 2, 1)


async def test_a_question_may_read_so_many_rows_and_no_more(place: Place) -> None:
    store = ClickHouseUsageStore(url=place.url, folder=place.folder, bounds=ReadBounds(rows=9))
    await store.open()
    try:
        await store.insert(block(*(spent(number) for number in range(9))))
        assert (await total(store, **EXACT_AND_SUMMED[0])).events == 9
        await store.insert(block(*(spent(number) for number in range(9, 12)), first=9))
        with pytest.raises(
            TooMuchAskedError, match="more than 9 rows, take more than 20 s or 4,096 MB: ask for a shorter time"
        ):
            await total(store, **EXACT_AND_SUMMED[0])
        assert (await total(store)).events == 12
    finally:
        await store.close()


async def test_pages_hold_every_group_once(store: ClickHouseUsageStore) -> None:
    await store.insert(block(*(spent(number, user_id=f"user-{number}") for number in range(25))))
    pages = [await store.query(UsageQuery("default", ["user"], limit=10, offset=offset)) for offset in (0, 10, 20, 30)]
    assert [len(page) for page in pages] == [10, 10, 5, 0]
    assert len({row.group["user"] for page in pages for row in page}) == 25


@pytest.mark.parametrize("second", [0, 1], ids=["by days", "by rows"])
async def test_the_months_before_are_those_before_whatever_days_they_have(
    store: ClickHouseUsageStore, second: int
) -> None:
    """January and February before March and April: 59 days before 61."""
    days = ["2024-12-31", "2025-01-01", "2025-01-30", "2025-01-31", "2025-02-28", "2025-03-31", "2025-04-30"]
    events = [
        spent(10**at, occurred_at=datetime.fromisoformat(f"{day}T12:00:00Z"), input_tokens=10**at)
        for at, day in enumerate(days)
    ]
    await store.insert(block(*events))
    since, until = (datetime(2025, month, 1, second=second, tzinfo=UTC) for month in (3, 5))
    rows = await store.query(UsageQuery("default", [], "month", since, until, compare=True))
    found = {row.group["bucket"]: (row.input_tokens, row.previous and row.previous.input_tokens) for row in rows}
    assert found == {"2025-03-01T00:00:00Z": (10**5, 1110), "2025-04-01T00:00:00Z": (10**6, 10**4)}


@pytest.mark.parametrize("tick", [timedelta(microseconds=1), timedelta(minutes=1), timedelta(days=1)])
async def test_the_period_before_is_told_beside_each_group(store: ClickHouseUsageStore, tick: timedelta) -> None:
    """Of rows, of sums of minutes and of days: what was a period earlier, under the names of the later buckets."""
    since = datetime(2026, 1, 31, tzinfo=UTC)
    length = 30 * tick
    until, first = since + length, since - length
    events = [
        spent(at, occurred_at=time, user_id=user, outcome=outcome, input_tokens=at)
        for at, (time, user, outcome) in enumerate(
            [
                (first - timedelta(microseconds=1), "often", "ok"),
                (first, "often", "ok"),
                (first + 2 * tick, "seldom", "error"),
                (since + 2 * tick, "often", "ok"),
                (until, "often", "ok"),
            ]
        )
    ]
    await store.insert(block(*events))
    forms = {None: "", "month": "%Y-%m-01T00:00:00Z", "day": "%Y-%m-%dT00:00:00Z", "minute": "%Y-%m-%dT%H:%M:00Z"}
    for bucket, form in forms.items():
        groups: defaultdict[tuple[str | None, str | None], list[list[UsageRecorded]]] = defaultdict(lambda: [[], []])
        for event in events[1:4]:
            earlier = event.occurred_at < since
            shown = (event.occurred_at + (length if earlier else timedelta())).strftime(form) or None
            groups[shown, event.user_id][earlier].append(event)
        asked = UsageQuery("default", ["user"], bucket, since, until, compare=True, per=["user"])  # pyright: ignore
        rows = await store.query(asked)
        assert {(row.group.get("bucket"), row.group["user"]) for row in rows} == groups.keys()
        for row in rows:
            now, before = groups[row.group.get("bucket"), row.group["user"]]
            assert row.previous is not None
            for told, of in ((row, now), (row.previous, before)):
                assert told.events == sum(cell.events for cell in told.cells) == len(of)
                assert told.input_tokens == sum(event.input_tokens for event in of)
                assert told.error_events == sum(event.outcome == "error" for event in of)
                assert told.units == {"user": len({event.user_id for event in of})}


async def test_different_threads_and_users_are_counted_by_rows_and_sums_alike(store: ClickHouseUsageStore) -> None:
    who = [("t-1", "ann"), ("t-1", "bob"), ("t-2", "ann"), (None, None), ("t-2", "ann")]
    await store.insert(
        block(
            *(
                spent(at, thread_id=thread, user_id=user, completes_turn=at % 3 == 0)
                for at, (thread, user) in enumerate(who)
            )
        )
    )
    for each in EXACT_AND_SUMMED:
        assert (await total(store, per=["thread", "user"], **each)).units == {"thread": 2, "user": 2}
        assert (await total(store, per=["completed_turn"], **each)).units == {"completed_turn": 2}
        assert (await total(store, per=["user"], filters={"agent": "nobody"}, **each)).units == {"user": 0}


async def test_groups_come_in_the_order_of_their_cost(store: ClickHouseUsageStore, seed: int) -> None:
    chance = random.Random(seed)
    book = book_of(
        price("a", model="small", rates={"input": "2.5", "cached_input": "1", "output": "10", "reasoning": "11"}),
        price("b", model="large", rates={"input": "7", "output": "40", "call": "0.001"}),
        price("c", kind="tool", rates={"call": "0.003"}, currency="EUR"),
        price("d", figure="price", model="large", markup="-0.9"),
        price("e", kind="image", model="small", rates={"image": "0.04"}),
    )
    boundaries = book.boundaries("default")
    events = [
        spent(
            number,
            user_id=f"u-{chance.randrange(30)}",
            provider=chance.choice([None, "p", "ü\x00"]),
            model=chance.choice(["small", "large", "unpriced"]),
            kind=(kind := chance.choice(["completion", "completion", "image", "tool"])),
            images=chance.randrange(4) if kind == "image" else 0,
            input_tokens=(given := chance.randrange(1000) if kind != "image" else 0),
            cached_input_tokens=chance.randrange(given + 10) if kind != "image" else 0,
            output_tokens=(made := chance.randrange(100) if kind != "image" else 0),
            reasoning_tokens=chance.randrange(made + 1),
            billable=chance.random() < 0.7,
        )
        for number in range(300)
    ]
    await store.insert(block(*events))
    (whole,) = await store.query(UsageQuery("default", boundaries=boundaries))
    figures: tuple[Figure, ...] = ("cost", "price")
    for figure in figures:
        weights = weights_of(whole.cells, figure, "default", book)
        rows = await store.query(UsageQuery("default", ["user"], order_by=weights, boundaries=boundaries))
        amounts = [getattr(amounts_of(row.cells, "default", book), figure).get("USD", 0) for row in rows]
        assert amounts == sorted(amounts, reverse=True)
        assert len({*amounts}) > 10


async def test_an_export_has_every_group_while_others_ask(store: ClickHouseUsageStore) -> None:
    users = [f"user-{number:05}" for number in range(10_000)]
    await store.insert(block(*(spent(number, user_id=user) for number, user in enumerate(users))))
    parts: list[Sequence[UsageGroup]] = []
    exported = asyncio.create_task(store.export(UsageQuery("default", ["user"], limit=None), parts.append))
    while not exported.done():
        assert (await total(store)).events == 10_000
    await exported
    assert max(map(len, parts)) <= 1000
    groups = [group for part in parts for group in part]
    assert [group.group["user"] for group in groups] == users
    assert {(group.events, len(group.cells)) for group in groups} == {(1, 1)}
    limited: list[Sequence[UsageGroup]] = []
    await store.export(UsageQuery("default", ["user"], limit=7), limited.append)
    assert [len(part) for part in limited] == [7]


async def test_an_export_has_the_bounds_of_a_question_and_ends_with_what_it_writes(place: Place) -> None:
    store = ClickHouseUsageStore(url=place.url, folder=place.folder, bounds=ReadBounds(rows=9))
    await store.open()
    try:
        await store.insert(block(*(spent(number) for number in range(12))))
        with pytest.raises(TooMuchAskedError):
            await store.export(UsageQuery("default", ["turn"], limit=None), lambda _: None)

        def full(_: object) -> None:
            raise OSError("no space left")

        for _ in range(2):
            with pytest.raises(OSError, match="no space left"):
                await store.export(UsageQuery("default", limit=None), full)
    finally:
        await store.close()


async def test_quality_is_that_of_the_events(store: ClickHouseUsageStore, seed: int) -> None:
    chance = random.Random(seed)
    events = [
        spent(
            number,
            kind=(kind := chance.choice(["completion", "tool"])),
            model=chance.choice(["small", "large"]),
            outcome=chance.choice(["ok", "ok", "ok", "error", "lost"]),
            attempt=chance.choice([1, 1, 2]),
            input_tokens=100 if kind == "completion" else 0,
            cached_input_tokens=chance.randrange(50) if kind == "completion" else 0,
            latency_ms=chance.randrange(5000),
            first_token_ms=chance.choice([None, chance.randrange(500)]),
            occurred_at=START + timedelta(minutes=chance.randrange(60)),
        )
        for number in range(200)
    ]
    await store.insert(block(*events))
    dimensions: list[UsageDimension] = ["model", "kind"]
    rows = await store.quality(UsageQuery("default", dimensions, bucket="day"))
    assert len(rows) > 4
    for row in rows:
        day, model, kind = row.group.values()
        assert day is not None
        of = [
            each
            for each in events
            if (each.model, each.kind) == (model, kind) and f"{each.occurred_at:%d}" in day[8:10]
        ]
        assert row.events == len(of)
        assert row.error_share == sum(each.outcome == "error" for each in of) / len(of)
        assert row.lost_share == sum(each.outcome == "lost" for each in of) / len(of)
        assert row.retry_share == sum(each.attempt > 1 for each in of) / len(of)
        given, cached = sum(each.input_tokens for each in of), sum(each.cached_input_tokens for each in of)
        assert row.cached_input_share == (cached / given if given else None)
        ok = [each for each in of if each.outcome == "ok"]
        assert row.tool_success_share == (len(ok) / len(of) if kind == "tool" else None)
        assert row.tool_calls == (len(of) if kind == "tool" else 0)
        firsts = [each.first_token_ms for each in of if each.first_token_ms is not None]
        for told, values in ((row.latency_ms, [each.latency_ms for each in ok]), (row.first_token_ms, firsts)):
            values.sort()
            expected = [values[-(-share * len(values) // 100) - 1] for share in (50, 90, 99)] if values else None
            assert (told and [told.p50, told.p90, told.p99]) == expected


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [1, 1, 1]), (2, [1, 2, 2]), (10, [5, 9, 10]), (100, [50, 90, 99]), (101, [51, 91, 100])]
)
async def test_half_are_at_or_below_the_median(store: ClickHouseUsageStore, count: int, expected: list[int]) -> None:
    await store.insert(block(*(spent(each, latency_ms=each, first_token_ms=each) for each in range(1, count + 1))))
    (row,) = await store.quality(UsageQuery("default"))
    for told in (row.latency_ms, row.first_token_ms):
        assert told is not None
        assert [told.p50, told.p90, told.p99] == expected


async def test_quality_of_nothing_has_no_shares(store: ClickHouseUsageStore) -> None:
    (row,) = await store.quality(UsageQuery("default"))
    assert (row.events, row.error_share, row.latency_ms, row.first_token_ms) == (0, None, None, None)
    assert await store.quality(UsageQuery("default", ["user"])) == []
