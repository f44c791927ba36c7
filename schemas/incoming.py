"""What of `prompts` is taken in: one rule for the worker that reads the topic and for the gateway that writes it."""

from collections.abc import Mapping
from typing import Any

from schemas.envelope import RecordRejectedError, decode_event, encode_event
from schemas.prompts import MessagesAppend
from schemas.topics import MAX_EVENT_BYTES, MAX_RECORD_BYTES, PROMPTS

MAX_APPEND_BYTES = MAX_RECORD_BYTES - 64 * 1024
"""Of messages that are appended, so that a fork copies what a journal holds. The rest is for what the journal adds to
a message: ids, a thread's name, headers."""


def decode_prompts_event(value: bytes | None, headers: Mapping[str, str]) -> Any:
    """The event in a record of `prompts`: `messages.append` up to MAX_APPEND_BYTES where the header names it, any other
    up to MAX_EVENT_BYTES.

    Raises RecordRejectedError, also where messages are larger once their defaults are written out: what the worker
    takes must fit on its journal.
    """
    if headers.get("ce_type") != MessagesAppend.model_fields["type"].default:
        return decode_event(PROMPTS, value, headers)
    event = decode_event(PROMPTS, value, headers, max_bytes=MAX_APPEND_BYTES)
    if value is not None and len(value) > MAX_EVENT_BYTES and (size := len(encode_event(event))) > MAX_APPEND_BYTES:
        raise RecordRejectedError("too_large", f"expected at most {MAX_APPEND_BYTES} bytes with defaults, got {size}")
    return event
