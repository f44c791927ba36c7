"""Which offset of a partition may be committed while calls end in any order."""


class OffsetTracker:
    """Of one partition. Everything before `position` is done; a restart from there repeats calls, never skips one.

    Offsets may have gaps (transaction markers, compaction), but come in ascending order. After a rebalance that left
    the partition here the consumer reads from the committed offset again: `begin` tells those it has seen.
    """

    def __init__(self) -> None:
        self._open: dict[int, None] = {}  # in ascending order, since they begin in that order
        self._highest: int | None = None

    def begin(self, offset: int) -> bool:
        """Takes a record in hand. False: it is in hand or done already, leave it."""
        if self._highest is not None and offset <= self._highest:
            return False
        self._highest = offset
        self._open[offset] = None
        return True

    def finish(self, offset: int) -> None:
        """The record's answer is on the log."""
        self._open.pop(offset, None)

    def pass_over(self, committed: int) -> None:
        """Everything before `committed` was answered by another worker, while this one was thought dead: it holds the
        position back no longer, so that the group's offset never goes backwards."""
        for offset in [each for each in self._open if each < committed]:
            del self._open[offset]
        self._highest = max(self._highest or 0, committed - 1) if committed > 0 else self._highest

    @property
    def position(self) -> int | None:
        """The offset to commit; None before the first record."""
        if self._highest is None:
            return None
        return next(iter(self._open), self._highest + 1)

    @property
    def spread(self) -> int:
        """How many offsets lie between the position and the newest record: what a crash now would read again."""
        position = self.position
        return 0 if position is None or self._highest is None else self._highest + 1 - position
