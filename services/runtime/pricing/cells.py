"""Usage in cells: events that every price treats alike, summed up. Pure.

A database adds up the counts of a cell, and then its amount is worked out once, here: within a cell an amount is linear
in the counts, so that of the sums is the sum of the events' own, to the last digit.
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from schemas.ids import EPOCH
from schemas.usage import UsageRecorded

BAD_COUNTS = 16
"""The shape of an event of which a part has more tokens than what it is part of."""


@dataclass(frozen=True, slots=True)
class Boundaries:
    """Where a price may change: times, and sizes of the input, each the first of what follows. Both rise.

    The first ones are at or before anything that a row can hold.
    """

    times: tuple[datetime, ...] = (EPOCH,)
    sizes: tuple[int, ...] = (0,)

    @classmethod
    def at(cls, times: Iterable[datetime], sizes: Iterable[int]) -> "Boundaries":
        return cls(tuple(sorted({EPOCH, *(max(time, EPOCH) for time in times)})), tuple(sorted({0, *sizes})))


@dataclass(frozen=True, slots=True)
class Cell:
    """Counts of events of one kind, provider, model and tool, between two boundaries of time and of size."""

    kind: str
    provider: str | None
    model: str | None
    tool: str | None
    billable: bool
    begins: datetime
    size: int
    """The boundary at or below the input tokens of each event."""
    shape: int
    """Which parts each event has: 1 uncached input, 2 cached input, 4 output without reasoning, 8 reasoning,
    32 images."""
    events: int
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    images: int = 0


def cell_of(event: UsageRecorded, boundaries: Boundaries) -> Cell:
    """The cell of one event; what the SQL of the store says too, which a test holds."""
    return Cell(
        kind=event.kind,
        provider=event.provider,
        model=event.model,
        tool=event.tool,
        billable=event.billable,
        begins=boundaries.times[bisect_right(boundaries.times, event.occurred_at) - 1],
        size=boundaries.sizes[bisect_right(boundaries.sizes, event.input_tokens) - 1],
        shape=_shape(event),
        events=1,
        input_tokens=event.input_tokens,
        cached_input_tokens=event.cached_input_tokens,
        output_tokens=event.output_tokens,
        reasoning_tokens=event.reasoning_tokens,
        images=event.images,
    )


def _shape(event: UsageRecorded) -> int:
    if event.cached_input_tokens > event.input_tokens or event.reasoning_tokens > event.output_tokens:
        return BAD_COUNTS
    return (
        (event.input_tokens > event.cached_input_tokens)
        + 2 * (event.cached_input_tokens > 0)
        + 4 * (event.output_tokens > event.reasoning_tokens)
        + 8 * (event.reasoning_tokens > 0)
        + 32 * (event.images > 0)
    )
