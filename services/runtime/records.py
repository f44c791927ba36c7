"""From a record of a topic to its event."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from schemas.envelope import decode_event, header_map
from schemas.topics import MAX_RECORD_BYTES, Topic
from services.runtime.kafka import Record

EventCheck = Callable[[Any, int], None]
"""Raises RecordRejectedError for an event that a store could never hold, given the time of its record in milliseconds.

The record's time is on the log: whoever reads it later decides the same.
"""


class ProjectedRecord(NamedTuple):
    """A decoded record. There are many: a tuple is made in a third of the time of a frozen dataclass."""

    offset: int
    timestamp_ms: int
    key: str | None
    event: Any
    headers: Mapping[str, str]


def decode_record(topic: Topic, record: Record, check: EventCheck | None = None) -> ProjectedRecord:
    """Raises RecordRejectedError for a record that is no event of the topic, or one that does not pass the check."""
    headers = header_map(record.headers)
    event = decode_event(topic, record.value, headers, max_bytes=MAX_RECORD_BYTES)
    if check is not None:
        check(event, record.timestamp)
    key = record.key.decode(errors="replace") if record.key else None
    return ProjectedRecord(record.offset, record.timestamp, key, event, headers)
