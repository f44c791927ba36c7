"""Records that cannot be used, on their way to `dead-letters`."""

import base64
from datetime import datetime

from schemas.dead_letters import RecordRejected
from schemas.envelope import RecordRejectedError, header_map
from schemas.ids import EPOCH, derived_id
from services.runtime.kafka import Record


def rejected_record(*, source: str, record: Record, error: RecordRejectedError, at: datetime) -> RecordRejected:
    """The dead letter of a record. Its id follows from the record and the consumer, so a second copy is recognised."""
    return RecordRejected(
        rejection_id=derived_id(source, record.topic, record.partition, record.offset, at=EPOCH),
        source=source,
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        reason=error.reason,
        message=error.message[:2000],
        key=_base64(record.key),
        value=_base64(record.value),
        headers=list(header_map(record.headers).items()),
        rejected_at=at,
    )


def _base64(raw: bytes | None) -> bytes | None:
    return None if raw is None else base64.b64encode(raw)
