"""Listeners of the gateway: who hears what, and from where one goes on."""

import json

import pytest

from schemas.topics import PROMPTS
from services.gateway.fanout import (
    LISTENER_BUFFER,
    REMEMBERED_ENDS,
    BadPositionError,
    Fanout,
    LogEvent,
    Position,
    SlowListenerError,
)


def event(offset: int, *, thread: str = "t-1", tenant: str = "default", topic: str = "messages") -> LogEvent:
    body = {"type": "message.added", "thread_id": thread}
    return LogEvent(topic, offset, 0, "message.added", tenant, thread, body, json.dumps(body))


async def test_a_listener_hears_its_thread_and_no_other() -> None:
    fanout = Fanout()
    listener = fanout.listen("default", "t-1", partition=0)

    fanout.publish(0, event(1, thread="t-2"))
    fanout.publish(0, event(2, tenant="other"))
    fanout.publish(0, event(3))

    assert (await listener.next()).offset == 3


async def test_every_listener_of_a_thread_hears_everything() -> None:
    fanout = Fanout()
    listeners = [fanout.listen("default", "t-1", partition=0) for _ in range(50)]

    for offset in range(3):
        fanout.publish(0, event(offset))

    for listener in listeners:
        assert [(await listener.next()).offset for _ in range(3)] == [0, 1, 2]


async def test_who_left_hears_nothing_and_costs_nothing() -> None:
    fanout = Fanout()
    listener = fanout.listen("default", "t-1", partition=0)
    fanout.leave(listener)
    fanout.leave(listener)

    for offset in range(LISTENER_BUFFER + 1):
        fanout.publish(0, event(offset))

    assert listener._queue.empty()


async def test_it_knows_where_somebody_listens() -> None:
    fanout = Fanout()
    first, second = (fanout.listen("default", thread, partition=3) for thread in ("t-1", "t-2"))
    assert fanout.somebody.is_set()
    assert fanout.hears(3)
    assert not fanout.hears(0)

    fanout.leave(first)
    fanout.leave(first)
    assert fanout.hears(3)

    fanout.leave(second)
    assert not fanout.hears(3)
    assert not fanout.somebody.is_set()


async def test_a_listener_begins_where_the_tail_is() -> None:
    fanout = Fanout()
    fanout.publish(0, event(7))
    fanout.publish(0, event(2, topic="completions"))

    assert str(fanout.listen("default", "t-1", partition=0).began) == "completions:3,messages:8"
    assert str(fanout.listen("default", "t-1", partition=1).began) == ""


async def test_a_slow_listener_gets_what_it_holds_and_is_then_cut_off() -> None:
    fanout = Fanout()
    listener = fanout.listen("default", "t-1", partition=0)

    for offset in range(LISTENER_BUFFER + 5):
        fanout.publish(0, event(offset))

    held = [(await listener.next()).offset for _ in range(LISTENER_BUFFER)]
    assert held == list(range(LISTENER_BUFFER))
    with pytest.raises(SlowListenerError):
        await listener.next()


def test_a_position_is_read_back_as_it_was_written() -> None:
    position = Position({"messages": 8})
    position.passed("completions", 2)
    position.passed("messages", 3)

    assert str(Position.parse(str(position))) == str(position) == "completions:3,messages:8"
    assert position.next("messages") == 8
    assert position.next("deltas") is None


@pytest.mark.parametrize("text", ["nonsense", "messages:", "messages:x", "messages:1,", ":1,2"])
def test_a_position_that_nobody_gave_out_is_refused(text: str) -> None:
    with pytest.raises(BadPositionError):
        Position.parse(text)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (b"{not json", None),
        (b"\xff\xfe", None),
        (b'["t-1"]', None),
        (b'{"content": "of no thread"}', None),
        (b'{"thread_id": ["t-1"]}', None),
        (b'{"thread_id": "t-1", "tenant_id": ["default"]}', None),
        (b'{"thread_id": "t-1", "type": 7}', None),
        (b'{"thread_id": "t-1"}', "turn.cancel\ndata: {}"),
    ],
)
def test_a_record_that_anybody_may_have_written_stops_nobody(value: bytes, kind: str | None) -> None:
    headers = {"ce_type": kind} if kind else {}
    assert LogEvent.read(PROMPTS, value=value, headers=headers, offset=0, timestamp_ms=0) is None


def test_an_event_is_one_line_however_it_was_written() -> None:
    pretty = json.dumps({"thread_id": "t-1", "content": "two\nlines \u2028"}, indent=2).encode()
    read = LogEvent.read(PROMPTS, value=pretty, headers={}, offset=4, timestamp_ms=5)
    assert read is not None
    assert (read.type, read.tenant_id, read.thread_id) == ("prompt.submitted", "default", "t-1")
    assert len(read.data.splitlines()) == 1
    assert json.loads(read.data) == json.loads(pretty)


def test_the_last_turns_that_ended_are_known() -> None:
    fanout = Fanout()
    for number in range(REMEMBERED_ENDS + 1):
        body = {"thread_id": "t-1", "turn_id": f"turn-{number}"}
        fanout.publish(0, LogEvent("completions", number, 0, "turn.completed", "default", "t-1", body, ""))

    assert fanout.ended_lately("default", f"turn-{REMEMBERED_ENDS}")
    assert not fanout.ended_lately("other", f"turn-{REMEMBERED_ENDS}")
    assert not fanout.ended_lately("default", "turn-0")
