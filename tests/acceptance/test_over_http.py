"""The same main job through the gateway."""

import asyncio
import json
from uuid import uuid4

import pytest

from tests.scripted_model.server import ScriptedModel
from tests.support.installation import Installation
from tests.support.waiting import eventually

pytestmark = [pytest.mark.broker, pytest.mark.asyncio(loop_scope="session")]


async def test_a_prompt_is_accepted_with_its_ids(turnlog: Installation, thread: str) -> None:
    accepted = await turnlog.post(f"/v1/threads/{thread}/prompts", {"content": "hello"}, status=202)

    completed = await turnlog.completion(thread)
    assert accepted["thread_id"] == thread
    assert (accepted["turn_id"], accepted["prompt_id"]) == (completed["turn_id"], completed["prompt_id"])


async def test_a_prompt_that_waits_gets_its_completion(turnlog: Installation, thread: str) -> None:
    completed = await turnlog.post(f"/v1/threads/{thread}/prompts?wait=30", {"content": "hello"}, status=200)

    assert completed["type"] == "turn.completed"
    assert completed["text"] == "You said: hello"


async def test_a_prompt_is_streamed_as_it_is_answered(turnlog: Installation, thread: str) -> None:
    text, names, completed = "", [], None
    async for name, event_id, data in turnlog.stream(
        "POST",
        f"/v1/threads/{thread}/prompts",
        json={"content": "[[long 40]][[slow 0.02]]"},
        headers={"Accept": "text/event-stream"},
    ):
        names.append(name)
        if name == "text.delta":
            text += data["text"]
        if name == "turn.completed":
            assert event_id
            completed = data
            break

    assert completed is not None
    assert text == completed["text"]
    assert names.count("text.delta") >= 3, "the text comes in pieces, while it is written"


async def test_the_conversation_is_read_back_in_order(turnlog: Installation, thread: str) -> None:
    for content in ("first", "second"):
        body = {"content": content, "user_id": "ada"}
        await turnlog.post(f"/v1/threads/{thread}/prompts?wait=30", body, status=200)

    messages = await turnlog.messages(thread, count=4)

    assert [(each["role"], each["text"]) for each in messages] == [
        ("user", "first"),
        ("assistant", "You said: first"),
        ("user", "second"),
        ("assistant", "You said: second"),
    ]
    answer = messages[1]
    assert (answer["agent"], answer["model"], answer["status"]) == ("assistant", "scripted", "success")
    assert answer["usage"]["output_tokens"] == 3
    assert [each["position"] for each in messages] == sorted(each["position"] for each in messages)


async def test_a_second_prompt_sees_the_first_ones_messages(
    turnlog: Installation, shared_model: ScriptedModel, thread: str
) -> None:
    word = f"walnut-{uuid4().hex}"
    await turnlog.post(f"/v1/threads/{thread}/prompts?wait=30", {"content": f"remember {word}"}, status=200)
    await turnlog.post(f"/v1/threads/{thread}/prompts?wait=30", {"content": f"what was it? {word}?"}, status=200)

    asked = [each for each in shared_model.requests if word in json.dumps(each)]
    assert [each["content"] for each in asked[-1]["messages"] if each["role"] != "system"] == [
        f"remember {word}",
        f"You said: remember {word}",
        f"what was it? {word}?",
    ]


async def test_a_turn_in_the_middle_of_its_answer_is_cancelled(turnlog: Installation, thread: str) -> None:
    accepted = await turnlog.post(
        f"/v1/threads/{thread}/prompts", {"content": "[[long 2000]][[slow 0.05]]"}, status=202
    )
    await turnlog.log.wait_for("deltas", lambda event: event["thread_id"] == thread)

    async def cancelled() -> bool:
        async with turnlog.http.post(f"{turnlog.base_url}/v1/turns/{accepted['turn_id']}/cancel") as response:
            return response.status == 202

    await eventually(cancelled, "the cancel to be accepted")

    assert (await turnlog.completion(thread))["type"] == "turn.cancelled"


async def test_an_events_stream_resumes_after_the_last_event_it_saw(turnlog: Installation, thread: str) -> None:
    for content in ("one", "two"):
        await turnlog.post(f"/v1/threads/{thread}/prompts?wait=30", {"content": content}, status=200)

    async def seen(headers: dict[str, str], stop_after: int) -> list[tuple[str, str]]:
        path = f"/v1/threads/{thread}/events?from_start=true"
        events: list[tuple[str, str]] = []
        async for name, event_id, data in turnlog.stream("GET", path, headers=headers):
            if name != "text.delta":
                events.append((name, event_id))
            if data["type"] == "turn.completed" and sum(each[0] == "turn.completed" for each in events) == stop_after:
                break
        return events

    whole = await asyncio.wait_for(seen({}, 2), 30)
    first = whole[: [name for name, _ in whole].index("turn.completed") + 1]
    rest = await asyncio.wait_for(seen({"Last-Event-ID": first[-1][1]}, 1), 30)

    assert [name for name, _ in first + rest] == [name for name, _ in whole]


async def test_openais_client_talks_to_an_agent(turnlog: Installation) -> None:
    body = {"model": "assistant", "messages": [{"role": "user", "content": "hello"}]}

    answer = await turnlog.post("/v1/chat/completions", body, status=200)

    assert answer["choices"][0]["message"]["content"] == "You said: hello"
