"""What of `prompts` is taken in: one rule for the worker that reads the topic and for the gateway that writes it."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from schemas.base import format_time
from schemas.envelope import RecordRejectedError, decode_event, encode_event
from schemas.ids import EPOCH
from schemas.prompts import MessagesAppend
from schemas.topics import MAX_EVENT_BYTES, MAX_RECORD_BYTES, PROMPTS

MAX_APPEND_BYTES = MAX_RECORD_BYTES - 64 * 1024
"""Of messages that are appended, so that a fork copies what a journal holds. The rest is for what the journal adds to
a message: ids, a thread's name, headers."""


MOST_AHEAD = timedelta(minutes=5)
"""So far from now a message may say that it was, as clocks differ. Until then its thread is the first of all."""


def decode_prompts_event(value: bytes | None, headers: Mapping[str, str], at: datetime) -> Any:
    """The event in a record of `prompts`, read at a time: `messages.append` up to MAX_APPEND_BYTES where the header
    names it, any other up to MAX_EVENT_BYTES.

    Raises RecordRejectedError, also where messages are larger once their defaults are written out: what the worker
    takes must fit on its journal. And where one of them says that it was before 1970, or is yet to be.
    """
    is_named = headers.get("ce_type") == MessagesAppend.model_fields["type"].default
    event = decode_event(PROMPTS, value, headers, max_bytes=MAX_APPEND_BYTES if is_named else MAX_EVENT_BYTES)
    if not isinstance(event, MessagesAppend):
        return event
    if value is not None and len(value) > MAX_EVENT_BYTES and (size := len(encode_event(event))) > MAX_APPEND_BYTES:
        raise RecordRejectedError("too_large", f"expected at most {MAX_APPEND_BYTES} bytes with defaults, got {size}")
    for index, message in enumerate(event.messages):
        if message.created_at is not None and not EPOCH <= message.created_at <= at + MOST_AHEAD:
            expected = f"expected a time from 1970 to {MOST_AHEAD.seconds // 60} minutes from now"
            got = format_time(message.created_at)
            raise RecordRejectedError("not_an_event", f"messages.{index}.created_at: {expected}, got {got}")
    return event
