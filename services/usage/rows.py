"""Rows of `usage_events`: which columns an event has there, and what they hold. Pure."""

from collections.abc import Sequence
from datetime import timedelta
from operator import itemgetter
from typing import Any

from schemas.envelope import RecordRejectedError
from schemas.ids import EPOCH, microseconds
from schemas.usage import UsageRecorded
from services.usage.queries import LATEST
from services.usage.store import Bounds, Fact, Row

_EVENT = {
    "usage_id": "String",
    "tenant_id": "String",
    "thread_id": "Nullable(String)",
    "turn_id": "Nullable(String)",
    "prompt_id": "Nullable(String)",
    "user_id": "Nullable(String)",
    "agent": "Nullable(String)",
    "agent_version": "Nullable(String)",
    "step": "UInt32",
    "attempt": "UInt32",
    "kind": "String",
    "provider": "Nullable(String)",
    "model": "Nullable(String)",
    "tool": "Nullable(String)",
    "input_tokens": "UInt64",
    "cached_input_tokens": "UInt64",
    "output_tokens": "UInt64",
    "reasoning_tokens": "UInt64",
    "images": "UInt64",
    "latency_ms": "UInt64",
    "first_token_ms": "Nullable(UInt64)",
    "outcome": "String",
    "estimated": "Bool",
    "billable": "Bool",
    "team_id": "Nullable(String)",
    "completes_turn": "Bool",
    "occurred_at": "DateTime64(6, 'UTC')",
}
_BLOCK = {
    "source_partition": "UInt32",
    "source_offset": "UInt64",
    "block_first": "UInt64",
    "block_last": "UInt64",
    "block_number": "UInt64",
}

SENT_AS = {**_EVENT, **_BLOCK}
"""The columns, and the types that their values are sent as. Text is plain where the table has LowCardinality: the
engine makes that dictionary in a tenth of the time that the client takes. A time is its microseconds since 1970."""

EVENT_COLUMNS = tuple(_EVENT)

*_BESIDE_TIME, _ = EVENT_COLUMNS
_values_beside_time = itemgetter(*_BESIDE_TIME)

_fact_of = itemgetter(EVENT_COLUMNS.index("tenant_id"), EVENT_COLUMNS.index("usage_id"))

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
    "images": 10**6,
}
"""Largest value of each number: 18 million of the largest add up within 64 bits."""

AHEAD = timedelta(hours=1)
"""How far the clock of who was working may be ahead of that of who wrote it down."""

_LATEST, _AHEAD = microseconds(LATEST), AHEAD // timedelta(microseconds=1)


def row_of(event: UsageRecorded, timestamp_ms: int) -> Row:
    """The values of EVENT_COLUMNS. Raises RecordRejectedError for what no row can hold, or what is of the future.

    Args:
        timestamp_ms: of the record, which is its now; of a record that has none, as it is with old clients, any time is
            taken.
    """
    occurred_at = _checked_time(event, timestamp_ms)
    return (*_values_beside_time(event.__dict__), occurred_at)


def fact_of(row: Row) -> Fact:
    return _fact_of(row)


def check_event(event: UsageRecorded, timestamp_ms: int) -> UsageRecorded:
    """The event itself, for whoever makes no row of it. Raises as `row_of` does."""
    _checked_time(event, timestamp_ms)
    return event


def _checked_time(event: UsageRecorded, timestamp_ms: int) -> int:
    """Its microseconds since 1970."""
    bits = event.step | event.attempt | event.input_tokens | event.cached_input_tokens
    bits |= event.output_tokens | event.reasoning_tokens | event.latency_ms | (event.first_token_ms or 0)
    if bits >> 32 or event.images:  # negative, or of more bits: most events are known to be well without a look at each
        _check_numbers(event)
    occurred_at = microseconds(event.occurred_at)
    if not 0 <= occurred_at < _LATEST:
        raise RecordRejectedError(
            "not_an_event", f"occurred_at: expected a time from 1970 to 2105, got {event.occurred_at.isoformat()}"
        )
    if timestamp_ms > 0 and occurred_at > timestamp_ms * 1000 + _AHEAD:
        written_at = EPOCH + timedelta(milliseconds=timestamp_ms)
        raise RecordRejectedError(
            "not_an_event",
            f"occurred_at: expected at most an hour after its record of {written_at.isoformat()}, "
            f"got {event.occurred_at.isoformat()}",
        )
    return occurred_at


def _check_numbers(event: UsageRecorded) -> None:
    for name, most in _MOST.items():
        value: int | None = getattr(event, name)
        if value is not None and not 0 <= value <= most:
            raise RecordRejectedError("not_an_event", f"{name}: expected 0 to {most}, got {str(value)[:40]}")


def columns_of(bounds: Bounds, number: int, rows: Sequence[tuple[int, Row]]) -> list[Sequence[Any]]:
    """The values of each of SENT_AS, in the order of the rows, of which there is at least one."""
    offsets, values = zip(*rows, strict=True)
    same = (bounds.first, bounds.last, number)
    return [
        *zip(*values, strict=True),
        [bounds.partition] * len(rows),
        offsets,
        *([each] * len(rows) for each in same),
    ]
