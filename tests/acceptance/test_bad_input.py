"""What nobody can use is answered with a reason, and everything else goes on."""

import base64
import json

import pytest

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
