"""What accounts of budgets have spent before places of the log, and what is counted on from there."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.budgets import BudgetSpec, BudgetState
from schemas.usage import UsageRecorded
from services.runtime.budgets import Budgets, state_key
from services.runtime.errors import UnavailableError
from services.runtime.pricing.book import PriceBook
from services.usage.budgets.known import Known
from services.usage.budgets.ledger import Ledger
from services.usage.budgets.seed import question_of
from services.usage.clickhouse import ClickHouseUsageStore
from services.usage.rows import row_of
from services.usage.spending import Spending
from services.usage.store import Block
from tests.support.prices import book_of, price
from tests.support.usage_tables import Place, block, spent

NOW = datetime(2026, 2, 1, 12, tzinfo=UTC)
"""Of days the last one still counts, and of months the last one too."""

PARTITIONS = 2

BOOKS = [
    book_of(price(model="small"), price(name="euros", figure="price", model="big", currency="EUR")),
    book_of(
        price(model="small", tiers=[{"above_input_tokens": 32_000, "rates": {"input": "7", "output": "1"}}]),
        price(name="of-acme", tenant_id="acme", effective_from=NOW - timedelta(days=1), markup="0.3"),
        price(name="calls", kind="tool", rates={"call": "0.01"}),
        price(name="images", kind="image", rates={"image": "0.02", "input": "1", "output": "1"}),
    ),
    book_of(
        price(model="small"),
        price(name="odd", model="big", effective_from=NOW - timedelta(hours=30, seconds=7)),
        price(name="tiers", tenant_id="acme", tiers=[{"above_input_tokens": 1234, "rates": {"input": "9"}}]),
    ),
]
"""Sums of days answer the first, those of minutes or the rows the others."""

BUDGETS = st.lists(
    st.builds(
        lambda name, tenant, by, who, unit, currency: BudgetSpec.model_validate(
            {"name": name, "tenant_id": tenant, "by": by, "who": who, "unit": unit, "currency": currency}
            | {"soft": 20, "hard": 40_000}
        ),
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from([None, "default", "acme"]),
        st.sampled_from(["tenant", "team", "user", "agent"]),
        st.sampled_from([None, None, "one"]),
        st.sampled_from(["tokens", "cost", "price"]),
        st.sampled_from(["USD", "EUR"]),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda spec: (spec.tenant_id, spec.name),
)

SOME = st.sampled_from(["one", "two", None])


@dataclass(frozen=True)
class Written:
    """A record of usage, in the order of reading."""

    partition: int
    offset: int
    usage: UsageRecorded


def _usage(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(["completion", "completion", "tool", "image"]))
    outcome = draw(st.sampled_from(["ok", "ok", "error", "lost"]))
    return {
        "usage_id": f"u{draw(st.integers(0, 12))}",
        "tenant_id": draw(st.sampled_from(["default", "acme"])),
        "thread_id": draw(SOME),
        "user_id": draw(SOME),
        "team_id": draw(SOME),
        "agent": draw(SOME),
        "kind": kind,
        "provider": "house",
        "model": draw(st.sampled_from(["small", "big", "unknown"])),
        "tool": "search" if kind == "tool" else None,
        "input_tokens": draw(st.integers(0, 40_000)),
        "cached_input_tokens": draw(st.sampled_from([0, 0, 500])),
        "output_tokens": draw(st.integers(0, 900)),
        "images": draw(st.integers(0, 3)) if kind == "image" else 0,
        "outcome": outcome,
        "billable": outcome != "lost",
        "occurred_at": NOW - draw(st.sampled_from([-1, 0, 11, 12, 13, 35, 37, 24 * 32])) * timedelta(hours=1),
    }


@st.composite
def logs(draw: st.DrawFn) -> list[Written]:
    """Usage by few ids, most of it again with the values that it had first, and from any partition."""
    ends, written, first = [0] * PARTITIONS, list[Written](), dict[tuple[str, str], UsageRecorded]()
    for _ in range(draw(st.integers(1, 24))):
        usage = UsageRecorded.model_validate(_usage(draw))
        known = first.setdefault((usage.tenant_id, usage.usage_id), usage)
        partition = draw(st.integers(0, PARTITIONS - 1))
        written.append(Written(partition, ends[partition], known if draw(st.booleans()) else usage))
        ends[partition] += 1
    return written


async def _store(store: ClickHouseUsageStore, written: Sequence[Written]) -> list[int]:
    """Stores records as blocks in their order. Returns where the partitions are then."""
    ends = [0] * PARTITIONS
    for partition, records in groupby(written, lambda each: each.partition):
        rows = [(each.offset, row_of(each.usage, 0)) for each in records]
        await store.insert(Block(partition, rows[0][0], rows[-1][0], rows))
        ends[partition] = rows[-1][0] + 1
    return ends


async def _emptied(store: ClickHouseUsageStore) -> None:
    """Tables of another generation, with nothing in them."""
    await store.begin_build()
    await store.switch()
    await store.clean()


def _empty(specs: Sequence[BudgetSpec], book: PriceBook) -> Ledger:
    return Ledger(Budgets(specs), NOW, [(spec, book) for spec in specs])


async def _begun(
    store: ClickHouseUsageStore, specs: Sequence[BudgetSpec], book: PriceBook, ends: Sequence[int]
) -> tuple[Ledger, Spending]:
    """A ledger that has what ClickHouse has."""
    ledger = _empty(specs, book)
    query = question_of(specs, ledger, book)
    spending = await store.spending_of_sums(query, ends) or await store.spending_of_rows(query, ends)
    ledger.begin_with(spending.spent)
    ledger.know(Known(await store.fact_ids(query, ends, spending.generation), query.since, query.tenants, ends))
    return ledger, spending


def _states(ledger: Ledger) -> dict[str, BudgetState]:
    return {state_key(each.budget_tenant_id, each.budget, each.account): each for each in ledger.take_changed()}


def _moves(written: Sequence[Written], since: datetime) -> bool:
    """Whether a fact comes again with a time from there on, first with one before."""
    first: dict[tuple[str, str], UsageRecorded] = {}
    for each in written:
        known = first.setdefault((each.usage.tenant_id, each.usage.usage_id), each.usage)
        if known.occurred_at < since <= each.usage.occurred_at:
            return True
    return False


async def _same_as_counted(
    store: ClickHouseUsageStore,
    written: Sequence[Written],
    stored: int,
    specs: Sequence[BudgetSpec],
    book: PriceBook,
    beyond: int = 0,
) -> None:
    """Compares what was begun with the first records, and had the others added, with what was counted from them all.

    Args:
        stored: how many are before the place.
        beyond: how many more are in the tables by then.
    """
    counted = _empty(specs, book)
    counted.add(each.usage for each in written)
    await _emptied(store)
    ends = await _store(store, written[:stored])
    if beyond:
        await _store(store, written[stored : stored + beyond])
    begun, spending = await _begun(store, specs, book, ends)
    since = question_of(specs, begun, book).since
    assert bool(spending.moved) == _moves(written[: stored + beyond], since)
    if spending.moved:
        return
    begun.add(each.usage for each in written[stored:])
    assert _states(begun) == _states(counted)


CHECKED = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.parametrize("place", ["chdb"], indirect=True)
@pytest.mark.timeout(300)
@pytest.mark.parametrize("per", ["day", "month"])
@CHECKED
@given(BUDGETS, st.sampled_from(BOOKS), logs(), st.data())
async def test_what_is_begun_with_the_sums_comes_to_what_is_counted_from_the_beginning(
    store: ClickHouseUsageStore,
    per: str,
    specs: list[BudgetSpec],
    book: PriceBook,
    written: list[Written],
    data: st.DataObject,
) -> None:
    """Wherever the place is, and also where tables have more than is before it."""
    specs = [spec.model_copy(update={"per": per}) for spec in specs]
    stored = data.draw(st.integers(0, len(written)), "stored")
    beyond = data.draw(st.sampled_from([0, 0, 1, 3]), "beyond")
    await _same_as_counted(store, written, stored, specs, book, beyond)


async def test_every_store_begins_with_what_was_spent(store: ClickHouseUsageStore) -> None:
    """From sums of days, from rows, and from rows of which some are behind the place; twice in another partition."""
    specs = [
        BudgetSpec.model_validate({"name": f"{by}-{unit}", "by": by, "unit": unit, "per": "day"})
        for by in ("tenant", "team", "user", "agent")
        for unit in ("tokens", "cost")
    ]
    usages = [
        spent(
            number % 30,
            tenant_id=f"tenant-{number % 2}",
            user_id=f"user-{number % 3}",
            agent=f"agent-{number % 5}" if number % 5 else None,
            provider="house",
            model="small" if number % 3 else "unknown",
            input_tokens=10 * number,
            occurred_at=NOW - timedelta(hours=number),
        )
        for number in range(40)
    ]
    written = [Written(number % 2, number // 2, usage) for number, usage in enumerate(usages)]
    for book in BOOKS:
        await _same_as_counted(store, written, 30, specs, book)
        await _same_as_counted(store, written, 20, specs, book, beyond=7)


async def test_sums_say_nothing_while_tables_are_further_than_the_place(store: ClickHouseUsageStore) -> None:
    """So it is while an insert has failed, of which there may be a part: rows know their place, and sums don't."""
    specs = [BudgetSpec.model_validate({"name": "b", "unit": "tokens"})]
    query = question_of(specs, _empty(specs, BOOKS[0]), BOOKS[0])
    await store.insert(block(spent(0, input_tokens=3, occurred_at=NOW), spent(1, occurred_at=NOW)))
    whole = await store.spending_of_sums(query, [2])
    assert whole is not None
    assert [(each.account.period, each.cell.input_tokens, each.cell.events) for each in whole.spent] == [
        ("2026-02", 4, 2)
    ]
    assert await store.spending_of_sums(query, [1]) is None
    some = await store.spending_of_rows(query, [1])
    assert [(each.cell.input_tokens, each.cell.events) for each in some.spent] == [(3, 1)]
    ids = await store.fact_ids(query, [1], some.generation)
    assert [ids.has(f"default/u{number}") for number in range(2)] == [True, False]
    assert ids.last == NOW


async def test_sums_say_nothing_where_the_last_blocks_are_read_again(place: Place, store: ClickHouseUsageStore) -> None:
    """As after a migration, which takes their numbers off the blocks: the place is before the last one then."""
    specs = [BudgetSpec.model_validate({"name": "b", "unit": "tokens"})]
    query = question_of(specs, _empty(specs, BOOKS[0]), BOOKS[0])
    await store.insert(block(spent(0, occurred_at=NOW)))
    await store.insert(block(spent(1, occurred_at=NOW), spent(2, occurred_at=NOW), first=1))
    client = place.client()
    place.run(client, ["ALTER TABLE usage_events_a UPDATE block_number = 0 WHERE 1 SETTINGS mutations_sync = 1"])
    client.close()
    positions = await store.positions()
    assert positions == {0: 1}
    assert await store.spending_of_sums(query, [1]) is None
    some = await store.spending_of_rows(query, [1])
    assert [each.cell.events for each in some.spent] == [1]


async def test_ids_of_other_tables_than_the_sums_are_refused(store: ClickHouseUsageStore) -> None:
    """A rebuild may have read facts in another order: of two places of one another is known then."""
    specs = [BudgetSpec.model_validate({"name": "b", "unit": "tokens"})]
    query = question_of(specs, _empty(specs, BOOKS[0]), BOOKS[0])
    before = await store.spending_of_sums(query, [0])
    assert before is not None
    assert before.spent == []
    assert len(await store.fact_ids(query, [0], before.generation)) == 0
    await _emptied(store)
    with pytest.raises(UnavailableError):
        await store.fact_ids(query, [0], before.generation)


async def test_a_fact_of_an_earlier_period_that_comes_again_as_one_of_this_is_told(
    store: ClickHouseUsageStore,
) -> None:
    """The log of this period alone would count it, and the tables don't."""
    specs = [BudgetSpec.model_validate({"name": "b", "unit": "tokens", "per": "day"})]
    query = question_of(specs, _empty(specs, BOOKS[0]), BOOKS[0])
    await store.insert(block(spent(0, occurred_at=NOW - timedelta(days=5)), spent(0, occurred_at=NOW)))
    await store.insert(block(spent(1, occurred_at=NOW), spent(1, occurred_at=NOW - timedelta(days=5)), first=2))
    await store.insert(block(spent(2, occurred_at=NOW), spent(2, occurred_at=NOW, user_id="ann"), first=4))
    spending = await store.spending_of_sums(query, [6])
    assert spending is not None
    assert spending.moved == 1
