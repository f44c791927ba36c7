"""Which offsets may be committed while calls end out of order. Pure."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class OffsetTracker:
    """One partition. What is committable has no gap of unfinished records, so that a crash repeats, never skips."""

    _open: dict[int, None] = field(default_factory=dict[int, None])
    _next: int = 0

    def begin(self, offset: int) -> bool:
        """A record arrives, in order of offset. False: it has been seen, here or before."""
        if offset < self._next:
            return False
        self._open[offset] = None
        self._next = offset + 1
        return True

    def finish(self, offset: int) -> None:
        self._open.pop(offset, None)

    @property
    def committable(self) -> int:
        """The offset to commit: the first that is not finished, or the next one to come."""
        return next(iter(self._open), self._next)
