"""Records that cannot be used, on their way to `dead-letters`."""

import base64
from collections.abc import Awaitable, Sequence
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any

from schemas.dead_letters import RecordRejected
from schemas.envelope import RecordRejectedError, header_map
from schemas.ids import EPOCH, derived_id
from schemas.topics import DEAD_LETTERS
from services.runtime import metrics
from services.runtime.kafka import AIOKafkaProducer, KafkaClients, Record
from services.runtime.telemetry import traceparent_in

MOST_VALUE_BYTES = 2 * 1024 * 1024
"""In base64 two thirds of what a topic takes. One record may hold more than that, above all a compressed one."""

MOST_KEY_BYTES = 64 * 1024
MOST_HEADER_BYTES = 64 * 1024


def rejected_record(*, source: str, record: Record, error: RecordRejectedError, at: datetime) -> RecordRejected:
    """The dead letter of a record. Its id follows from the record and the consumer, so a second copy is recognised."""
    headers = list(header_map(record.headers).items())
    carried = _carried(headers)
    return RecordRejected(
        rejection_id=derived_id(source, record.topic, record.partition, record.offset, at=EPOCH),
        source=source,
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        reason=error.reason,
        message=error.message[:2000],
        key=_base64(record.key, MOST_KEY_BYTES),
        value=_base64(record.value, MOST_VALUE_BYTES),
        headers=carried,
        cut=len(record.value or b"") > MOST_VALUE_BYTES
        or len(record.key or b"") > MOST_KEY_BYTES
        or len(carried) < len(headers),
        rejected_at=at,
    )


async def send_rejected(
    producer: AIOKafkaProducer, clients: KafkaClients, *, source: str, record: Record, error: RecordRejectedError
) -> Awaitable[Any]:
    """Hands the dead letter of a record to the producer; what comes back is done when it is acknowledged."""
    at = datetime.now(UTC)
    letter = rejected_record(source=source, record=record, error=error, at=at)
    metrics.RECORDS_REJECTED.labels(source, error.reason).inc()
    return await producer.send(
        **clients.record(
            DEAD_LETTERS.name,
            letter,
            key=source,
            event_id=letter.rejection_id,
            at=at,
            traceparent=traceparent_in(header_map(record.headers)),
        )
    )


def _carried(headers: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The first headers, as many as there is room for."""
    sizes = accumulate(len(name.encode()) + len(value.encode()) for name, value in headers)
    return [header for header, size in zip(headers, sizes, strict=True) if size <= MOST_HEADER_BYTES]


def _base64(raw: bytes | None, most: int) -> bytes | None:
    return None if raw is None else base64.b64encode(raw[:most])
