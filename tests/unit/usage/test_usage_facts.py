"""Which events of a block are stored, by what is stored of its facts already."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from schemas.usage import UsageRecorded
from services.usage.facts import Conflict, Stored, sort_out
from services.usage.fingerprint import values_of
from services.usage.rows import fact_of, row_of
from services.usage.store import Block, Fact, Row


def spent(number: int, **fields: Any) -> Row:
    event = UsageRecorded.model_validate(
        {"usage_id": f"u{number}", "kind": "tool", "occurred_at": "2026-01-01T00:00:00Z"} | fields
    )
    return row_of(event, 0)


def block(*rows: Row, partition: int = 0, first: int = 0) -> Block:
    return Block(partition, first, first + len(rows) - 1, list(enumerate(rows, first)))


def stored(partition: int, offset: int, row: Row, number: int) -> dict[Fact, Stored]:
    return {fact_of(row): Stored(values_of(partition, offset, row), number)}


def test_what_is_new_is_kept() -> None:
    rows = [spent(1), spent(2), spent(1, tenant_id="other")]
    found = sort_out(block(*rows), 1, {})
    assert (found.kept, found.conflicts, found.repeated) == ([*enumerate(rows)], [], 0)


def test_the_first_of_a_block_counts() -> None:
    found = sort_out(block(spent(1), spent(1), spent(1, step=3)), 1, {})
    assert (found.kept, found.repeated) == ([(0, spent(1))], 1)
    assert found.conflicts == [Conflict(values_of(0, 0, spent(1)), values_of(0, 2, spent(1, step=3)))]


def test_what_is_stored_from_elsewhere_is_left_out() -> None:
    found = sort_out(block(spent(1), spent(2), first=5), 2, stored(1, 5, spent(1), 1))
    assert (found.kept, found.repeated, found.conflicts) == ([(6, spent(2))], 1, [])


def test_other_values_than_those_stored_are_a_conflict() -> None:
    found = sort_out(block(spent(1, step=4), first=5), 2, stored(1, 0, spent(1), 1))
    assert (found.kept, found.repeated) == ([], 0)
    assert found.conflicts == [Conflict(values_of(1, 0, spent(1)), values_of(0, 5, spent(1, step=4)))]


def test_a_record_that_another_block_has_stored_is_read_over() -> None:
    found = sort_out(block(spent(1), spent(2)), 2, stored(0, 0, spent(1), 1))
    assert (found.kept, found.repeated, found.conflicts) == ([(1, spent(2))], 0, [])


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1)), max_size=12),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1)), max_size=4),
    st.data(),
)
def test_a_block_that_is_sent_again_decides_the_same_however_much_of_it_is_stored(
    events: list[tuple[int, int]], before: list[tuple[int, int]], data: st.DataObject
) -> None:
    table: dict[Fact, Stored] = {}
    for offset, (number, step) in enumerate(before):
        table = stored(9, offset, spent(number, step=step), 1) | table
    given_block = block(*(spent(number, step=step) for number, step in events))
    once = sort_out(given_block, 2, table)
    assert len(once.kept) + len(once.conflicts) + once.repeated == len(events)
    part = data.draw(st.lists(st.sampled_from(once.kept), unique_by=lambda each: each[0]) if once.kept else st.just([]))
    for offset, row in part:
        table |= stored(0, offset, row, 2)
    assert sort_out(given_block, 2, table) == once
