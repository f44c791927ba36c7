"""The owner's time when somebody sets the machine's clock."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from services.runtime.owner.clock import JUMP, Clock

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


class Machine:
    """A machine whose clock can be set."""

    def __init__(self) -> None:
        self.wall = NOON
        self.monotonic = 100.0
        self.clock = Clock(lambda: self.wall, lambda: self.monotonic)

    def runs(self, seconds: float) -> tuple[datetime, timedelta]:
        self.wall += timedelta(seconds=seconds)
        self.monotonic += seconds
        return self.clock.look()

    def is_set(self, seconds: float) -> None:
        self.wall += timedelta(seconds=seconds)


def test_the_time_is_the_clocks() -> None:
    machine = Machine()

    assert machine.runs(3) == (NOON + 3 * SECOND, timedelta())


def test_a_clock_that_is_set_back_stops_no_timer() -> None:
    machine = Machine()
    machine.is_set(-3600)

    assert machine.runs(100) == (NOON + 90 * SECOND, timedelta())


def test_the_clock_catches_up() -> None:
    machine = Machine()
    machine.is_set(-60)
    machine.runs(700)

    assert machine.runs(1)[0] == machine.wall


def test_a_clock_that_is_set_forward_is_followed_at_once_and_the_jump_is_told_once() -> None:
    machine = Machine()
    machine.is_set(3600)

    assert machine.runs(2) == (NOON + 3602 * SECOND, 3600 * SECOND)
    assert machine.runs(2) == (NOON + 3604 * SECOND, timedelta())


def test_drift_is_no_jump() -> None:
    machine = Machine()
    machine.is_set(JUMP.total_seconds())

    assert machine.runs(1) == (NOON + JUMP + SECOND, timedelta())


@given(st.lists(st.tuples(st.floats(0.001, 1000), st.floats(-100_000, 100_000)), max_size=30))
def test_the_time_never_goes_back_nor_stands_still(steps: list[tuple[float, float]]) -> None:
    machine = Machine()
    before = NOON
    for seconds, change in steps:
        machine.is_set(change)
        at, jumped = machine.runs(seconds)
        assert at > before
        assert at >= machine.wall
        assert jumped >= timedelta()
        before = at
