"""What vectors cost on the log of usage: every payment once, whatever is told again."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.http import MessageView
from schemas.ids import new_id
from schemas.usage import UsageRecorded
from services.memory.embeddings import Asker, Embedded, apportioned, message_usage, query_usage
from services.usage.facts import Sorted, sort_out
from services.usage.rows import EVENT_COLUMNS, row_of
from services.usage.store import Block
from tests.support.embedder import ScriptedEmbedder
from tests.unit.memory.journal import view_of

TEN = datetime(2026, 3, 1, 10, tzinfo=UTC)
EMBEDDER = ScriptedEmbedder()


def minutes(count: float) -> datetime:
    return TEN + timedelta(minutes=count)


def message(number: int, *, thread_id: str = "t-1", text: str = "car", written: datetime = TEN) -> MessageView:
    given = {"tenant_id": "acme", "text": text, "created_at": written}
    return view_of(f"m-{number}", number, thread_id).model_copy(update=given)


def spent(
    messages: Sequence[MessageView], tokens: int, now: datetime, *, estimated: bool = False
) -> list[UsageRecorded]:
    return [*message_usage(EMBEDDER, messages, Embedded([[1.0]] * len(messages), tokens, estimated), now)]


def as_usage_has_it(events: Sequence[UsageRecorded]) -> Sorted:
    """What the usage service makes of a log, where no event is taken for one of the future."""
    rows = [row_of(each, int(minutes(60).timestamp() * 1000)) for each in events]
    return sort_out(Block(0, 0, len(rows) - 1, [*enumerate(rows)]), 1, {})


def tokens_of(found: Sorted) -> int:
    return sum(row[EVENT_COLUMNS.index("input_tokens")] for _, row in found.kept)


@given(st.integers(0, 10_000), st.lists(st.integers(1, 5_000), min_size=1, max_size=50))
def test_what_a_batch_has_cost_is_apportioned_to_the_last_token(total: int, weights: list[int]) -> None:
    parts = apportioned(total, weights)
    assert sum(parts) == total
    exact = [total * weight / sum(weights) for weight in weights]
    assert all(abs(part - share) < 1 for part, share in zip(parts, exact, strict=True))


batches = st.lists(st.integers(0, 5), min_size=1, max_size=6, unique=True)
texts = st.lists(st.sampled_from(["car", "a longer text", "x" * 200]), min_size=6, max_size=6)


@given(texts, st.lists(st.tuples(batches, st.integers(0, 9), st.integers(0, 59), st.booleans()), min_size=1))
def test_no_fact_comes_with_other_values_and_every_payment_counts_as_it_was_counted(
    texts: list[str], calls: list[tuple[list[int], int, int, bool]]
) -> None:
    log: list[UsageRecorded] = []
    paid: dict[object, int] = {}
    for numbers, tokens, minute, estimated in calls:
        messages = [message(number, text=texts[number], written=minutes(number)) for number in numbers]
        log += spent(messages, tokens, minutes(minute), estimated=estimated)
        paid[*numbers, tokens, estimated] = tokens
    found = as_usage_has_it(log)
    assert found.conflicts == []
    assert tokens_of(found) == sum(paid.values())


def test_a_batch_that_is_embedded_again_within_its_hour_is_the_same_facts() -> None:
    batch = [message(1), message(2, text="a dog", written=datetime(2020, 1, 1, tzinfo=UTC))]
    found = as_usage_has_it(spent(batch, 7, minutes(1)) + spent(batch, 7, minutes(59)))
    assert (len(found.kept), found.repeated, found.conflicts, tokens_of(found)) == (2, 2, [], 7)


@pytest.mark.parametrize(
    ("again", "now"),
    [
        ([message(1), message(2)], minutes(60)),
        ([message(1), message(2), message(3)], minutes(1)),
        ([message(1), message(2, thread_id="t-2")], minutes(1)),
        ([message(1), message(2, text="dog")], minutes(1)),
    ],
)
def test_another_batch_and_another_hour_are_payments_of_their_own(again: list[MessageView], now: datetime) -> None:
    found = as_usage_has_it(spent([message(1), message(2)], 7, TEN) + spent(again, 8, now))
    assert (len(found.kept), found.repeated, found.conflicts, tokens_of(found)) == (2 + len(again), 0, [], 15)


@pytest.mark.parametrize(
    ("written", "told"),
    [
        (minutes(0), minutes(0)),
        (minutes(29), minutes(29)),
        (minutes(31), minutes(31)),
        (minutes(-1), TEN),
        (minutes(60), TEN),
        (datetime(2025, 1, 31, tzinfo=UTC), TEN),
        (datetime(1965, 1, 1, tzinfo=UTC), TEN),
        (datetime(2100, 1, 1, tzinfo=UTC), TEN),
    ],
)
def test_a_message_is_paid_in_the_hour_in_which_it_is_embedded(written: datetime, told: datetime) -> None:
    [event] = spent([message(1, written=written)], 3, minutes(30))
    assert event.occurred_at == told
    assert as_usage_has_it([event]).conflicts == []


def test_an_imported_message_is_paid_when_it_is_imported_whatever_its_time() -> None:
    imported = message(1, written=datetime(2020, 1, 1, tzinfo=UTC)).model_copy(update={"appended_at": minutes(29)})
    assert [each.occurred_at for each in spent([imported], 3, minutes(30))] == [minutes(29)]


def test_what_is_free_is_no_usage() -> None:
    assert message_usage(EMBEDDER, [message(1)], Embedded([[1.0]], None), TEN) == []


@pytest.mark.parametrize(
    "turn_id", [new_id(minutes(-60)), new_id(minutes(20)), "order-17"], ids=["before", "now", "named"]
)
def test_a_turn_that_asks_again_has_spent_the_same(turn_id: str) -> None:
    turn = Asker("acme", "u-1", "t-1", turn_id)
    asked = [query_usage(EMBEDDER, "car", Embedded([[1.0]], 3), turn, minutes(at)) for at in (20, 40, 60)]
    found = as_usage_has_it(asked)
    assert (len(found.kept), found.repeated, found.conflicts) == (2, 1, [])
    assert {(each.kind, each.tenant_id, each.thread_id, each.turn_id, each.user_id) for each in asked} == {
        ("embedding", "acme", "t-1", turn_id, "u-1")
    }


def test_two_readers_who_ask_the_same_have_each_spent_it() -> None:
    asked = [query_usage(EMBEDDER, "car", Embedded([[1.0]], 3), Asker("acme"), minutes(20)) for _ in range(2)]
    found = as_usage_has_it(asked)
    assert (len(found.kept), tokens_of(found)) == (2, 6)
    assert {each.occurred_at for each in asked} == {minutes(20)}
