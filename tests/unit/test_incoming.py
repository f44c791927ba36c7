"""How large an event of `prompts` may be: appended messages as large as a journal holds them, all else 1 MiB. And when
an appended message may have been said."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from schemas.envelope import RecordRejectedError, encode_event
from schemas.ids import EPOCH
from schemas.incoming import MAX_APPEND_BYTES, MOST_AHEAD, decode_prompts_event
from schemas.prompts import MessagesAppend, NewMessage, PromptSubmitted
from schemas.topics import MAX_EVENT_BYTES, MAX_RECORD_BYTES

README = (Path(__file__).parents[2] / "schemas" / "README.md").read_text()
APPEND = {"ce_type": "messages.append"}
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def append_of(size: int) -> MessagesAppend:
    return MessagesAppend(thread_id="t", messages=[NewMessage(role="user", content="x" * size)])


def refused(value: bytes, headers: dict[str, str]) -> RecordRejectedError:
    with pytest.raises(RecordRejectedError) as raised:
        decode_prompts_event(value, headers, NOW)
    return raised.value


def test_messages_are_taken_as_large_as_a_journal_holds_them() -> None:
    event = append_of(MAX_APPEND_BYTES - 1_000)
    assert decode_prompts_event(encode_event(event), APPEND, NOW) == event
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
        decode_prompts_event(None, APPEND, NOW)


MOMENT = timedelta(microseconds=1)


def said_at(at: datetime) -> bytes:
    messages = [NewMessage(role="user", content="x"), NewMessage(role="user", content="x", created_at=at)]
    return encode_event(MessagesAppend(thread_id="t", messages=messages))


@pytest.mark.parametrize("headers", [APPEND, {}])
def test_a_message_may_be_from_any_time_since_1970_and_a_little_ahead(headers: dict[str, str]) -> None:
    for at in (EPOCH, NOW, NOW + MOST_AHEAD):
        assert decode_prompts_event(said_at(at), headers, NOW).messages[1].created_at == at
    for at in (EPOCH - MOMENT, NOW + MOST_AHEAD + MOMENT):
        error = refused(said_at(at), headers)
        assert error.reason == "not_an_event"
        assert "messages.1.created_at: expected a time from 1970 to 5 minutes from now" in error.message
