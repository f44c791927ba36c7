"""What nobody can use is answered with a reason, and everything else goes on."""

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from schemas.topics import MAX_EVENT_BYTES
from tests.support.installation import Installation

pytestmark = [pytest.mark.broker, pytest.mark.asyncio(loop_scope="session")]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"{not json", "not_json"),
        (b'{"thread_id": "%s"}', "not_an_event"),
        (b'{"type": "prompt.shouted", "thread_id": "%s"}', "unknown_type"),
        (b"\xff\xfe", "not_json"),
    ],
)
async def test_a_record_that_is_no_event_goes_to_dead_letters(
    turnlog: Installation, thread: str, value: bytes, reason: str
) -> None:
    value = value.replace(b"%s", thread.encode())
    written = await turnlog.log.publish("prompts", value, key=thread)
    await turnlog.prompt(thread, "still there?")

    completed = await turnlog.completion(thread)

    assert completed["text"] == "You said: still there?"
    [rejected] = [
        each
        for each in await turnlog.log.events("dead-letters")
        if (each["partition"], each["offset"]) == (written.partition, written.offset)
    ]
    assert (rejected["type"], rejected["reason"]) == ("record.rejected", reason)
    assert base64.b64decode(rejected["value"]) == value


async def test_an_unknown_agent_is_rejected_by_name(turnlog: Installation, thread: str) -> None:
    await turnlog.prompt(thread, "hello", agent="nobody", prompt_id="p-1")
    rejected = await turnlog.completion(thread)

    assert (rejected["type"], rejected["prompt_id"]) == ("turn.rejected", "p-1")
    assert "nobody" in json.dumps(rejected)
    await turnlog.log.wait_for("dead-letters", lambda event: event["reason"] == "unknown_agent")


async def test_a_record_over_the_size_limit_goes_to_dead_letters(turnlog: Installation, thread: str) -> None:
    written = await turnlog.log.publish(
        "prompts", {"thread_id": thread, "agent": "assistant", "content": "x" * 1_100_000}
    )
    await turnlog.prompt(thread, "still there?")

    assert (await turnlog.completion(thread))["text"] == "You said: still there?"
    await turnlog.log.wait_for(
        "dead-letters",
        lambda event: (
            (event["partition"], event["offset"], event["reason"]) == (written.partition, written.offset, "too_large")
        ),
    )


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{not json", 422),
        (b"{}", 422),
        (b'{"content": "hello", "agnet": "assistant"}', 422),
        (b'{"content": [{"type": "hologram"}]}', 422),
    ],
)
async def test_a_request_that_is_none_gets_a_problem_document(
    turnlog: Installation, thread: str, body: bytes, status: int
) -> None:
    path = f"{turnlog.base_url}/v1/threads/{thread}/prompts"
    async with turnlog.http.post(path, data=body, headers={"Content-Type": "application/json"}) as response:
        problem = await response.json(content_type=None)
        assert (response.status, response.content_type) == (status, "application/problem+json")

    assert problem["type"] == "urn:turnlog:problem:invalid-request"
    assert problem["errors"]


async def nothing_was_set_aside(turnlog: Installation, thread: str) -> None:
    """A prompt behind whatever was written is answered, and nothing of the thread is on `dead-letters`."""
    await turnlog.prompt(thread, "still there?")
    assert (await turnlog.completion(thread))["text"] == "You said: still there?"
    key = base64.b64encode(thread.encode()).decode()
    assert not [each for each in await turnlog.log.events("dead-letters") if each["key"] == key]


def nested(levels: int) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("prompts", {"content": "x" * 1_048_460}, 413),
        ("prompts", {"content": "hello", "metadata": {"deep": nested(220)}}, 422),
        ("messages", {"messages": [{"role": "user", "content": "hello", "metadata": {"deep": nested(195)}}]}, 422),
    ],
    ids=["too-large", "too-deep-prompt", "too-deep-message"],
)
async def test_what_no_worker_would_take_is_refused_and_not_written(
    turnlog: Installation, thread: str, path: str, body: Any, status: int
) -> None:
    assert len(json.dumps(body)) <= MAX_EVENT_BYTES
    problem = await turnlog.post(f"/v1/threads/{thread}/{path}", body, status=status)

    assert problem["detail"]
    await nothing_was_set_aside(turnlog, thread)


@pytest.mark.parametrize("size", [1_200_000, 3_000_000, 6_000_000])
async def test_an_upload_of_unknown_length_is_refused_as_soon_as_it_is_too_large(
    turnlog: Installation, thread: str, size: int
) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b'{"content": "'
        for _ in range(size // 10_000):
            yield b"x" * 10_000
        yield b'"}'

    path = f"{turnlog.base_url}/v1/threads/{thread}/prompts"
    async with turnlog.http.post(path, data=parts(), headers={"Content-Type": "application/json"}) as response:
        assert (response.status, response.content_type) == (413, "application/problem+json")
        assert str(MAX_EVENT_BYTES) in await response.text()
    await nothing_was_set_aside(turnlog, thread)


async def test_messages_whose_event_is_larger_than_their_request_are_appended(
    turnlog: Installation, thread: str
) -> None:
    messages = [{"role": "user", "content": f"{number:04}" + "x" * 956} for number in range(1000)]
    assert len(json.dumps({"messages": messages})) < MAX_EVENT_BYTES

    await turnlog.post(f"/v1/threads/{thread}/messages?wait=60", {"messages": messages}, status=200)

    items = (await turnlog.get(f"/v1/threads/{thread}/messages?limit=1000"))["items"]
    assert [each["text"] for each in items] == [each["content"] for each in messages]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("messages", rb'{"messages": [{"role": "user", "content": "\ud800"}]}'),
        ("prompts", rb'{"content": "hello", "metadata": {"\udc00": 1}}'),
        ("context", rb'{"query": "\ud83d"}'),
    ],
)
async def test_a_lone_surrogate_is_refused_in_words(turnlog: Installation, thread: str, path: str, body: bytes) -> None:
    url = f"{turnlog.base_url}/v1/threads/{thread}/{path}"
    async with turnlog.http.post(url, data=body, headers={"Content-Type": "application/json"}) as response:
        assert (response.status, response.content_type) == (422, "application/problem+json")
        assert "without lone surrogates" in await response.text()


async def test_a_dead_letter_is_listed_shown_and_replayed(turnlog: Installation, thread: str) -> None:
    written = await turnlog.log.publish("prompts", b"[]", key=thread)
    [rejected] = await turnlog.log.wait_for(
        "dead-letters", lambda event: (event["partition"], event["offset"]) == (written.partition, written.offset)
    )

    listed = await turnlog.run("dead-letters", "list")
    assert rejected["rejection_id"] in listed.output
    by_reason = await turnlog.run("dead-letters", "list", "--reason", "too_large", "--json")
    assert rejected["rejection_id"] not in by_reason.output
    shown = await turnlog.run("dead-letters", "show", rejected["rejection_id"])
    for words in ("not_an_event", "expected a JSON object, got list", thread, f"@{written.offset}"):
        assert words in shown.output
    replayed = await turnlog.run("dead-letters", "replay", rejected["rejection_id"])
    assert replayed.code == 0, replayed.errors

    again = await turnlog.log.wait_for(
        "dead-letters",
        lambda event: event["value"] == rejected["value"] and event["partition"] == written.partition,
        count=2,
    )
    assert again[-1]["offset"] > written.offset


async def test_a_dead_letter_that_is_only_a_beginning_is_not_replayed(turnlog: Installation, thread: str) -> None:
    written = await turnlog.log.publish("prompts", b"{" + b"x" * 3_000_000, key=thread)
    [rejected] = await turnlog.log.wait_for(
        "dead-letters", lambda event: (event["partition"], event["offset"]) == (written.partition, written.offset)
    )
    assert rejected["cut"]

    shown = await turnlog.run("dead-letters", "show", rejected["rejection_id"])
    assert "all of it is at its position" in shown.output
    for command in (["replay", rejected["rejection_id"]], ["show", "no-such-id"]):
        refused = await turnlog.run("dead-letters", *command)
        assert refused.code == 2
        assert len(refused.errors.splitlines()) == 1
