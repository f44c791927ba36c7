"""Which rates dashboards are told of a cell, and when they are told anew."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from schemas.usage import UsageRecorded
from services.runtime.errors import UnavailableError
from services.runtime.pricing.book import PriceBook
from services.runtime.pricing.cells import BAD_COUNTS, Boundaries, cell_of
from services.usage.cell_rates import CellRates, PartRates, rates_of
from services.usage.rates_loop import REST, RatesLoop
from services.usage.rates_table import EVERYBODY, Line, RatedCell, lines_of, own_line
from services.usage.store import UsageRates
from tests.support.prices import book_of, price
from tests.support.usage_tables import spent
from tests.support.waiting import until

JANUARY, FEBRUARY, MARCH = (datetime(2026, month, 1, tzinfo=UTC) for month in (1, 2, 3))


def rated(event: UsageRecorded, tenant_id: str = EVERYBODY, *, since: datetime = JANUARY) -> RatedCell:
    return RatedCell(tenant_id, cell_of(event, Boundaries.at([since], [])))


def all_parts(**fields: Any) -> UsageRecorded:
    counts = {"input_tokens": 9, "cached_input_tokens": 2, "output_tokens": 7, "reasoning_tokens": 3, "images": 1}
    return spent(**(counts | fields))


def test_each_part_has_its_rate_with_the_markup_in_the_price() -> None:
    rates = {"input": 1, "cached_input": 2, "output": 3, "reasoning": 4, "image": 5, "call": 6}
    book = book_of(price(rates=rates), price(figure="price", markup="0.5"))
    assert rates_of(rated(all_parts()).cell, "", book) == CellRates(
        PartRates("USD", 1, 2, 3, 4, 5, 6), PartRates("USD", 1.5, 3, 4.5, 6, 7.5, 9)
    )
    assert rates_of(rated(all_parts(billable=False)).cell, "", book).price is None


def test_a_part_that_a_cell_has_and_no_rate_is_for_makes_it_unknown() -> None:
    book = book_of(price(rates={"input": 1}))
    assert rates_of(rated(all_parts()).cell, "", book) == CellRates(None, None)
    only_input = rates_of(rated(spent()).cell, "", book)
    assert only_input.cost == PartRates("USD", 1, 1, 0, 0, 0, 0)
    contradicting = rated(spent(cached_input_tokens=5)).cell
    assert (contradicting.shape, rates_of(contradicting, "", book)) == (BAD_COUNTS, CellRates(None, None))


def test_a_cell_has_a_line_for_each_time_at_which_its_rates_change() -> None:
    book = book_of(
        price(rates={"input": 1}, effective_from=JANUARY),
        price(rates={"input": 2}, effective_from=FEBRUARY),
        price("other", model="other", rates={"input": 9}, effective_from=FEBRUARY + timedelta(days=1)),
        price(rates={"input": 3}, effective_from=MARCH + timedelta(microseconds=1)),
    )
    lines = lines_of(rated(spent(model="m")), book)
    assert [(line[8], line[10]) for line in lines] == [
        (JANUARY, 1),
        (FEBRUARY, 2),
        (MARCH + timedelta(seconds=1), 3),
    ]
    assert lines[0][:8] == ("", "completion", None, "m", None, True, 0, 1)
    since_march = rated(spent(model="m", occurred_at=MARCH), since=MARCH)
    assert [line[10] for line in lines_of(since_march, book)] == [2, 3], "what held before its usage began is left out"


def test_a_time_that_no_row_can_be_of_has_no_line() -> None:
    book = book_of(price(rates={"input": 1}, effective_from=datetime(9000, 1, 1, tzinfo=UTC)))
    assert [line[9] for line in lines_of(rated(spent()), book)] == [""]


def test_the_tenants_of_a_book_are_those_with_prices_of_their_own() -> None:
    assert book_of(price(), price(tenant_id="acme"), price(tenant_id="b", figure="price")).tenants() == {"acme", "b"}


class Told(UsageRates):
    """A table in memory, that may be away."""

    def __init__(self, *cells: RatedCell) -> None:
        self.cells = list(cells)
        self.looks: list[Collection[str]] = []
        self.lines: list[Line] | None = None
        self.away = False

    async def rated_cells(self, own: Collection[str]) -> Sequence[RatedCell]:
        self.looks.append(own)
        if self.away:
            raise UnavailableError("ClickHouse is away")
        return [*self.cells]

    async def write_rates(self, lines: Sequence[Line]) -> bool:
        written = self.lines != [*lines]
        self.lines = [*lines]
        return written

    def rates(self) -> dict[str | None, float]:
        """Of input, by model."""
        return {line[3]: line[10] for line in self.lines or () if line[1]}


@pytest.fixture
async def running() -> AsyncIterator[Callable[..., RatesLoop]]:
    loops: list[RatesLoop] = []

    def make(store: UsageRates, prices: Callable[[], PriceBook], *, look_seconds: float) -> RatesLoop:
        loops.append(RatesLoop(store, prices, look_seconds=look_seconds, notice_seconds=0.005))
        return loops[-1]

    yield make
    for loop in loops:
        await loop.stop()


async def until_rates(store: Told, rates: dict[str | None, float]) -> None:
    await until(lambda: store.rates() == rates, f"rates {rates}", seconds=10)


async def test_a_price_that_was_applied_is_told_at_once(running: Callable[..., RatesLoop]) -> None:
    store, books = Told(rated(spent(model="m"))), [book_of(price(rates={"input": 1}))]
    loop = running(store, lambda: books[-1], look_seconds=3600)
    await loop.start()
    await until_rates(store, {"m": 1})
    books.append(book_of(price(rates={"input": 2}), price(tenant_id="acme", rates={"input": 3})))
    await until_rates(store, {"m": 2})
    assert own_line("acme") in (store.lines or [])
    assert store.looks == [frozenset(), {"acme"}]


async def test_a_cell_that_is_new_is_told_after_the_next_look(
    running: Callable[..., RatesLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    worked_out: list[str | None] = []

    def counted(cell: RatedCell, book: PriceBook) -> list[Line]:
        worked_out.append(cell.cell.model)
        return lines_of(cell, book)

    monkeypatch.setattr("services.usage.rates_loop.lines_of", counted)
    store, book = Told(rated(spent(model="m"))), book_of(price(rates={"input": 1}))
    await running(store, lambda: book, look_seconds=0.01).start()
    await until_rates(store, {"m": 1})
    store.cells.append(rated(spent(model="n")))
    await until_rates(store, {"m": 1, "n": 1})
    assert worked_out == ["m", "n"], "what was worked out is not worked out again"


async def test_a_store_that_is_away_is_waited_for_and_said_and_nothing_else_is_held_up(
    running: Callable[..., RatesLoop],
) -> None:
    store, book = Told(rated(spent(model="m"))), book_of(price(rates={"input": 1}))
    store.away = True
    loop = running(store, lambda: book, look_seconds=0.01)
    await loop.start()
    await until(lambda: "ClickHouse is away" in loop.health().detail and len(store.looks) > 2, "the loop to say so")
    assert loop.health().ready
    store.away = False
    await until_rates(store, {"m": 1})
    await until(lambda: loop.health().detail == "", "the loop to have nothing to say")


async def test_rates_that_are_looked_for_seldom_leave_the_rest_of_the_time(
    running: Callable[..., RatesLoop],
) -> None:
    """A look of a twentieth of a second is followed by a second without, whatever else."""

    began: list[float] = []

    class Slow(Told):
        async def rated_cells(self, own: Collection[str]) -> Sequence[RatedCell]:
            began.append(time.monotonic())
            await asyncio.sleep(0.05)
            return await super().rated_cells(own)

    store, book = Slow(rated(spent(model="m"))), book_of(price())
    await running(store, lambda: book, look_seconds=0.0).start()
    await until(lambda: len(began) == 2, "another look")
    assert began[1] - began[0] > REST * 0.05
