"""Topic `dead-letters`: records that no consumer could use, whole, with the reason."""

from typing import Annotated, Literal

from pydantic import Base64Bytes

from schemas.base import GROWING, NO_ITEMS, Identifier, Model, Timestamp

RejectReason = Annotated[
    Literal[
        "not_json",
        "not_an_event",
        "unknown_type",
        "too_large",
        "unknown_agent",
        "handler_failed",
    ],
    GROWING,
]
"""Why a consumer gave a record up."""


class RecordRejected(Model):
    """`value` and `key` are the raw bytes, in base64; `source` names the consumer that gave up.

    `cut` marks a record that is too large to be carried whole: `value` and `key` are its beginning and headers may be
    missing. All of it is at its position, for as long as its topic keeps it.
    """

    type: Literal["record.rejected"] = "record.rejected"
    rejection_id: Identifier
    source: str
    topic: str
    partition: int
    offset: int
    reason: RejectReason
    message: str
    key: Base64Bytes | None = None
    value: Base64Bytes | None = None
    headers: list[tuple[str, str]] = NO_ITEMS
    cut: bool = False
    rejected_at: Timestamp


DeadLetterEvent = RecordRejected
EXAMPLES = [
    RecordRejected.model_validate(
        {
            "rejection_id": "01990000-0000-7000-8000-000000000005",
            "source": "agents",
            "topic": "prompts",
            "partition": 3,
            "offset": 1234,
            "reason": "not_json",
            "message": "expected value at line 1 column 1",
            "value": "bm90IGpzb24=",
            "rejected_at": "2026-01-01T12:00:00.000000Z",
        }
    )
]
