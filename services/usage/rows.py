"""Rows of `usage_events`: which columns an event has there, and what they hold. Pure."""

from collections.abc import Iterable
from datetime import timedelta
from operator import attrgetter
from typing import Any

from schemas.envelope import RecordRejectedError
from schemas.usage import UsageRecorded
from services.usage.queries import EARLIEST, LATEST
from services.usage.store import Bounds

EVENT_COLUMNS = (
    "usage_id",
    "tenant_id",
    "thread_id",
    "turn_id",
    "prompt_id",
    "user_id",
    "agent",
    "agent_version",
    "step",
    "attempt",
    "kind",
    "provider",
    "model",
    "tool",
    "input_tokens",
    "cached_input_tokens",
    "output_tokens",
    "reasoning_tokens",
    "latency_ms",
    "first_token_ms",
    "outcome",
    "estimated",
    "billable",
    "occurred_at",
    "team_id",
    "completes_turn",
)
_event_values = attrgetter(*EVENT_COLUMNS)

BLOCK_COLUMNS = ("source_partition", "source_offset", "block_first", "block_last", "block_number")

_MOST = {
    "step": 2**32 - 1,
    "attempt": 2**32 - 1,
    **dict.fromkeys(
        (
            "input_tokens",
            "cached_input_tokens",
            "output_tokens",
            "reasoning_tokens",
            "latency_ms",
            "first_token_ms",
        ),
        10**12,
    ),
}
"""Largest value of each number: 18 million of the largest add up within 64 bits."""


AHEAD = timedelta(hours=1)
"""How far the clock of who was working may be ahead of that of who wrote it down."""


def check_event(event: UsageRecorded, timestamp_ms: int) -> None:
    """Raises RecordRejectedError for an event that no row can hold, or that is of the future.

    Args:
        timestamp_ms: of the record, which is its now; of a record that has none, as it is with old clients, any time is
            taken.
    """
    for name, most in _MOST.items():
        value: int | None = getattr(event, name)
        if value is not None and not 0 <= value <= most:
            raise RecordRejectedError("not_an_event", f"{name}: expected 0 to {most}, got {str(value)[:40]}")
    if not EARLIEST <= event.occurred_at < LATEST:
        raise RecordRejectedError(
            "not_an_event", f"occurred_at: expected a time from 1970 to 2105, got {event.occurred_at.isoformat()}"
        )
    written_at = EARLIEST + timedelta(milliseconds=timestamp_ms)
    if timestamp_ms > 0 and event.occurred_at > written_at + AHEAD:
        raise RecordRejectedError(
            "not_an_event",
            f"occurred_at: expected at most an hour after its record of {written_at.isoformat()}, "
            f"got {event.occurred_at.isoformat()}",
        )


def rows_of(bounds: Bounds, number: int, events: Iterable[tuple[int, UsageRecorded]]) -> list[tuple[Any, ...]]:
    """Values in the order of EVENT_COLUMNS and BLOCK_COLUMNS."""
    return [
        (*_event_values(event), bounds.partition, offset, bounds.first, bounds.last, number) for offset, event in events
    ]
