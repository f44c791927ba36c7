"""What is written to the log is what its readers take: they would set aside anything else, and nobody would know."""

from collections.abc import Mapping
from datetime import UTC, datetime

import pydantic_core

from schemas.envelope import RecordRejectedError, decode_event, encode_event
from schemas.incoming import decode_prompts_event
from schemas.prompts import MessagesAppend, PromptSubmitted
from schemas.topics import MAX_RECORD_BYTES, PROMPTS, Topic
from services.runtime.web import problem

CARRIED_LEVELS = 16
"""Of the 200 levels of JSON that a reader takes, for what carries an event's content on: the command of a fork, the
state of a turn, an answer of memory."""


def hold_to_readers(topic: Topic, value: bytes, headers: Mapping[str, str]) -> None:
    """Raises ProblemError where no reader of the topic would take the record: 413 too large, else 422."""
    try:
        if topic is PROMPTS:
            decode_prompts_event(value, headers, datetime.now(UTC))
        else:
            decode_event(topic, value, headers, max_bytes=MAX_RECORD_BYTES)
    except RecordRejectedError as error:
        if error.reason == "too_large":
            raise problem(413, "too-large", "The event is too large", error.message) from error
        raise problem(422, "invalid-request", "The event is not valid", error.message) from error
    try:
        pydantic_core.from_json(b"[" * CARRIED_LEVELS + value + b"]" * CARRIED_LEVELS)
    except ValueError as error:
        raise problem(422, "invalid-request", "The event is nested too deeply", str(error)) from error


def hold_event(event: PromptSubmitted | MessagesAppend) -> None:
    """The same for an event that is to be written to `prompts`, before anything is."""
    hold_to_readers(PROMPTS, encode_event(event), {"ce_type": event.type})
