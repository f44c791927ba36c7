"""How far back a takeover reads: never past a state that counts, never much farther than it has to."""

from collections.abc import Sequence
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from schemas.turns import ActiveTurn, Thinking, TurnState
from services.runtime.owner.state_log import REWRITTEN_AT_ONCE, SPAN, SPAN_PER_RECORD, StateLog, Written

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def state(thread: str, step: int = 1) -> TurnState:
    turn = ActiveTurn(
        turn_id=thread,
        prompt_id=thread,
        agent="assistant",
        agent_version="1",
        opened_at=NOON,
        deadline_at=NOON,
        step=step,
        phase=Thinking(attempt=1, started_at=NOON),
    )
    return TurnState(thread_id=thread, turn=turn)


def counting(log: Sequence[tuple[str, TurnState | None]], begin: int) -> dict[str, TurnState]:
    """What a reader of the whole rest of the log ends with."""
    left: dict[str, TurnState] = {}
    for key, value in log[begin:]:
        left.pop(key, None)
        if value is not None:
            left[key] = value
    return left


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.none() | st.integers(1, 5)), max_size=60))
def test_reading_from_the_floor_gives_what_reading_everything_gives(writes: list[tuple[str, int | None]]) -> None:
    states = StateLog([], end=0)
    log: list[tuple[str, TurnState | None]] = []
    for key, step in writes:
        value = None if step is None else state(key, step)
        log.append((key, value))
        states.committed(key, value, len(log) - 1)

        assert counting(log, states.floor) == counting(log, 0)


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.none() | st.integers(1, 5)), max_size=60))
def test_a_floor_stays_right_whatever_is_written_later(writes: list[tuple[str, int | None]]) -> None:
    states = StateLog([], end=0)
    floors = [0]
    for offset, (key, step) in enumerate(writes):
        states.committed(key, None if step is None else state(key, step), offset)
        floors.append(states.floor)

    assert floors == sorted(floors)


def test_a_state_that_does_not_change_is_written_again_and_holds_the_floor_back_no_longer() -> None:
    states = StateLog([Written("slow", state("slow"), 0)], end=1)
    end = 1
    rewritten = 0
    for number in range(3 * SPAN):
        for key, value in (*states.to_rewrite({"busy"}), ("busy", state("busy", number))):
            rewritten += key == "slow"
            states.committed(key, value, end)
            end += 1
        assert end - states.floor <= SPAN + 2

    assert rewritten == 2


def test_what_a_transaction_writes_anyway_is_not_written_twice() -> None:
    states = StateLog([Written("slow", state("slow"), 0)], end=2 * SPAN)

    assert states.to_rewrite({"slow"}) == []


def test_many_old_states_are_written_again_in_several_transactions() -> None:
    many = SPAN
    states = StateLog(
        [Written(str(number), state(str(number)), number) for number in range(many)], end=2 * SPAN_PER_RECORD * many
    )

    assert len(states.to_rewrite(set())) == REWRITTEN_AT_ONCE


def test_without_open_turns_nothing_needs_to_be_read() -> None:
    states = StateLog([Written("a", state("a"), 3)], end=4)
    states.committed("a", None, 4)

    assert states.floor == 5
