"""The tracker of committable offsets, by properties."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.tools.tracker import OffsetTracker


class Tracking(RuleBasedStateMachine):
    """Records come with gaps, end in any order, and are read again from the position after a rebalance."""

    def __init__(self) -> None:
        super().__init__()
        self.tracker = OffsetTracker()
        self.log: list[int] = []
        self.open: set[int] = set()
        self.done: set[int] = set()
        self.last_position = -1

    @rule(gap=st.integers(0, 3))
    def arrive(self, gap: int) -> None:
        offset = (self.log[-1] + 1 if self.log else 0) + gap
        assert self.tracker.begin(offset)
        self.log.append(offset)
        self.open.add(offset)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(sorted(self.open)))
        self.tracker.finish(offset)
        self.open.discard(offset)
        self.done.add(offset)

    @rule()
    def read_again_from_the_position(self) -> None:
        position = self.tracker.position
        if position is not None:
            assert not any(self.tracker.begin(offset) for offset in self.log if offset >= position)

    @precondition(lambda self: self.log)
    @rule(data=st.data())
    def another_worker_went_on(self, data: st.DataObject) -> None:
        position = self.tracker.position
        assert position is not None
        committed = position + data.draw(st.integers(0, 30))
        self.tracker.pass_over(committed)
        self.log += [committed - 1] if committed - 1 > self.log[-1] else []
        passed = {offset for offset in self.log if offset < committed}
        self.open -= passed
        self.done |= passed

    @rule(offset=st.integers(0, 10))
    def end_what_another_worker_had_done(self, offset: int) -> None:
        if offset in self.done:
            self.tracker.finish(offset)

    @invariant()
    def everything_before_the_position_is_done(self) -> None:
        position = self.tracker.position
        if position is None:
            assert not self.log
            return
        assert {offset for offset in self.log if offset < position} <= self.done
        assert all(offset >= position for offset in self.open)
        assert position >= self.last_position
        self.last_position = position

    @invariant()
    def nothing_that_is_done_holds_the_position_back(self) -> None:
        if self.log and not self.open:
            assert self.tracker.position == self.log[-1] + 1
            assert self.tracker.spread == 0


TestTracking = Tracking.TestCase


@given(st.permutations(range(20)))
def test_in_whatever_order_calls_end_the_position_is_the_first_that_is_open(order: list[int]) -> None:
    tracker = OffsetTracker()
    for offset in range(20):
        tracker.begin(offset)
    left = set(range(20))
    for offset in order:
        assert tracker.position == min(left)
        assert tracker.spread == 20 - min(left)
        tracker.finish(offset)
        left.remove(offset)
    assert tracker.position == 20
