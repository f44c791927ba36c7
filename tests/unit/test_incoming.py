"""How large an event of `prompts` may be: appended messages as large as a journal holds them, all else 1 MiB."""

from pathlib import Path

import pytest

from schemas.envelope import RecordRejectedError, encode_event
from schemas.incoming import MAX_APPEND_BYTES, decode_prompts_event
from schemas.prompts import MessagesAppend, NewMessage, PromptSubmitted
from schemas.topics import MAX_EVENT_BYTES, MAX_RECORD_BYTES

README = (Path(__file__).parents[2] / "schemas" / "README.md").read_text()
APPEND = {"ce_type": "messages.append"}


def append_of(size: int) -> MessagesAppend:
    return MessagesAppend(thread_id="t", messages=[NewMessage(role="user", content="x" * size)])


def refused(value: bytes, headers: dict[str, str]) -> RecordRejectedError:
    with pytest.raises(RecordRejectedError) as raised:
        decode_prompts_event(value, headers)
    return raised.value


def test_messages_are_taken_as_large_as_a_journal_holds_them() -> None:
    event = append_of(MAX_APPEND_BYTES - 1_000)
    assert decode_prompts_event(encode_event(event), APPEND) == event
    assert MAX_APPEND_BYTES < MAX_RECORD_BYTES
    assert f"{MAX_APPEND_BYTES} bytes" in README
    assert refused(encode_event(append_of(MAX_APPEND_BYTES)), APPEND).reason == "too_large"


def test_only_a_header_opens_the_door_and_only_for_messages() -> None:
    prompt = encode_event(PromptSubmitted(thread_id="t", agent="a", content="x" * MAX_EVENT_BYTES))
    assert refused(prompt, {}).reason == "too_large"
    assert refused(prompt, {"ce_type": "prompt.submitted"}).reason == "too_large"
    assert refused(prompt, APPEND).reason == "not_an_event"
    assert refused(encode_event(append_of(MAX_EVENT_BYTES)), {}).reason == "too_large"


def test_messages_that_grow_by_their_defaults_over_what_a_journal_holds_are_refused() -> None:
    parts = b'{"type":"source"},' * 1_000 + b'{"type":"text","text":"%s"}' % (b"x" * (MAX_APPEND_BYTES - 20_000))
    value = b'{"thread_id":"t","messages":[{"role":"user","content":[' + parts + b"]}]}"
    assert len(value) < MAX_APPEND_BYTES
    assert refused(value, APPEND).reason == "too_large"


def test_a_tombstone_is_refused() -> None:
    with pytest.raises(RecordRejectedError):
        decode_prompts_event(None, APPEND)
