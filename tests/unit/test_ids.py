"""Identifiers are UUIDv7 text: ordered by time, and the same for the same fact."""

import uuid
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from schemas.ids import EPOCH, derived_id, new_id, record_id, time_of, turn_id_of

TIMES = st.datetimes(
    min_value=datetime(1970, 1, 1),
    max_value=datetime(9999, 12, 31),
    timezones=st.just(UTC),
)
NAMES = st.text(min_size=1, max_size=40)
MILLISECOND = timedelta(milliseconds=1)


def is_uuid7(identifier: str) -> bool:
    value = uuid.UUID(identifier)
    return str(value) == identifier and value.version == 7 and value.variant == uuid.RFC_4122


@given(TIMES)
def test_a_new_id_is_a_uuid7_of_its_time(at: datetime) -> None:
    identifier = new_id(at)
    assert is_uuid7(identifier)
    assert timedelta(0) <= at - time_of(identifier) < MILLISECOND


def test_new_ids_of_one_moment_differ() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    assert len({new_id(at) for _ in range(1000)}) == 1000


@given(TIMES, st.timedeltas(min_value=2 * MILLISECOND, max_value=timedelta(days=365)))
def test_later_ids_sort_after_earlier_ones(at: datetime, later: timedelta) -> None:
    after = min(at + later, datetime(9999, 12, 31, tzinfo=UTC)) if at.year < 9998 else at
    if after - at >= 2 * MILLISECOND:
        assert new_id(at) < new_id(after)
        assert derived_id("a", at=at) < derived_id("b", at=after)


@given(st.lists(NAMES, min_size=1, max_size=5), TIMES)
def test_a_derived_id_is_the_same_for_the_same_fact(parts: list[str], at: datetime) -> None:
    identifier = derived_id(*parts, at=at)
    assert is_uuid7(identifier)
    assert derived_id(*parts, at=at) == identifier


@given(NAMES, NAMES, NAMES)
def test_turns_of_different_prompts_have_different_ids(tenant: str, thread: str, prompt: str) -> None:
    turn = turn_id_of(tenant, thread, prompt)
    assert turn == turn_id_of(tenant, thread, prompt)
    assert turn != turn_id_of(tenant, thread, f"{prompt}x")
    assert turn != turn_id_of(tenant, f"{thread}x", prompt)
    assert turn != turn_id_of(f"{tenant}x", thread, prompt)


def test_parts_are_not_run_together() -> None:
    assert derived_id("ab", "c", at=EPOCH) != derived_id("a", "bc", at=EPOCH)
    assert record_id("prompts", 1, 11) != record_id("prompts", 11, 1)


def test_a_turn_of_a_timed_prompt_has_the_time_of_the_prompt() -> None:
    at = datetime(2026, 1, 1, 12, tzinfo=UTC)
    assert time_of(turn_id_of("default", "t-1", new_id(at))) == at
    assert time_of(turn_id_of("default", "t-1", "order-17")) == EPOCH


def test_only_a_uuid7_tells_a_time() -> None:
    assert time_of("order-17") == EPOCH
    assert time_of(str(uuid.UUID(int=2**127, version=4))) == EPOCH


def test_ids_that_are_on_the_log_stay_what_they_are() -> None:
    """A changed derivation would make every replay a second fact."""
    assert record_id("prompts", 3, 1234) == "00000000-0000-7cfd-a1dd-22ab59d06899"
    assert turn_id_of("default", "t-1", "order-17") == "00000000-0000-73a2-a445-acab166a20f5"
