"""The time that an owner decides by: the machine's clock, kept from the harm of being set."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

JUMP = timedelta(seconds=5)
"""A step forward beyond what passed since the last look that is called a jump, and not the clock's usual drift."""

CATCHING_UP = 0.9
"""Speed of the time while it is ahead of the clock: timers are late by a tenth at most, until the clock is right."""


def _wall() -> datetime:
    return datetime.now(UTC)


class Clock:
    """Never goes back, never stands still, and says when the machine's clock went forward by itself.

    The clock is set back: the time goes on from where it is, a little slower, until the clock has caught up. So timers
    ring and nothing ends before it began. The clock is set forward, or the machine slept: the time follows at once.
    """

    def __init__(self, wall: Callable[[], datetime] = _wall, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._at = wall()
        self._looked = monotonic()

    def look(self) -> tuple[datetime, timedelta]:
        """The time, and by how much it jumped forward since the last look: zero but after a jump."""
        wall, looked = self._wall(), self._monotonic()
        passed = timedelta(seconds=looked - self._looked)
        self._looked = looked
        ticked = self._at + passed
        if wall >= ticked:
            self._at = wall
            return wall, wall - ticked if wall - ticked > JUMP else timedelta()
        self._at = max(wall, self._at + passed * CATCHING_UP)
        return self._at, timedelta()
