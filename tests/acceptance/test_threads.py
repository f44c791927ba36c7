"""Threads, approvals, human agents, search and context, through the gateway."""

from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pytest
from yarl import URL

from tests.support.installation import Installation
from tests.support.waiting import eventually

pytestmark = [pytest.mark.broker, pytest.mark.asyncio(loop_scope="session")]


async def applied(turnlog: Installation, **spec: object) -> str:
    """An agent of this test's own."""
    name = f"agent-{uuid4().hex[:8]}"
    await turnlog.post("/v1/agents", {"name": name, **spec}, status=201)
    return name


async def test_a_tool_call_waits_until_somebody_approves_it(turnlog: Installation, thread: str) -> None:
    agent = await applied(turnlog, tools=["calculate"], approval=["calculate"])
    await turnlog.prompt(thread, '[[tool calculate {"expression": "6 * 7"}]] please', agent=agent)
    [waiting] = await turnlog.log.wait_for(
        "messages", lambda event: event["type"] == "turn.waiting" and event["thread_id"] == thread
    )
    assert not [each for each in await turnlog.log.events("tool-calls") if each["thread_id"] == thread]

    call_id = waiting["call_ids"][0]
    await turnlog.post(f"/v1/tool-calls/{call_id}/approval", {"approved": True, "user_id": "ada"}, status=202)

    assert (await turnlog.completion(thread))["text"] == "You said: please Result: 42"


async def test_a_denied_tool_call_is_told_to_the_model(turnlog: Installation, thread: str) -> None:
    agent = await applied(turnlog, tools=["calculate"], approval=["calculate"])
    await turnlog.prompt(thread, '[[tool calculate {"expression": "6 * 7"}]] please', agent=agent)
    [waiting] = await turnlog.log.wait_for(
        "messages", lambda event: event["type"] == "turn.waiting" and event["thread_id"] == thread
    )

    body = {"approved": False, "user_id": "ada", "reason": "too dear"}
    await turnlog.post(f"/v1/tool-calls/{waiting['call_ids'][0]}/approval", body, status=202)

    assert "denied by ada: too dear" in (await turnlog.completion(thread))["text"]
    assert not [each for each in await turnlog.log.events("tool-calls") if each["thread_id"] == thread]


async def test_a_person_answers_as_an_agent(turnlog: Installation, thread: str) -> None:
    agent = await applied(turnlog, kind="human")
    body = {"content": "is anybody there?", "agent": agent}
    accepted = await turnlog.post(f"/v1/threads/{thread}/prompts", body, status=202)

    await turnlog.post(f"/v1/turns/{accepted['turn_id']}/reply", {"content": "yes, me", "user_id": "ada"}, status=202)

    completed = await turnlog.completion(thread)
    assert (completed["type"], completed["text"], completed["agent"]) == ("turn.completed", "yes, me", agent)


async def test_a_turn_is_cancelled_as_soon_as_it_is_accepted(turnlog: Installation, thread: str) -> None:
    accepted = await turnlog.post(f"/v1/threads/{thread}/prompts", {"content": "[[think 20]] later"}, status=202)

    await turnlog.post(f"/v1/turns/{accepted['turn_id']}/cancel", {"reason": "changed my mind"}, status=202)

    assert (await turnlog.completion(thread))["type"] == "turn.cancelled"


async def test_an_answer_is_pending_then_streaming_and_kept_as_far_as_it_came_when_its_turn_is_cancelled(
    turnlog: Installation, thread: str
) -> None:
    path = f"/v1/threads/{thread}/messages"

    async def in_progress(status: str) -> Any:
        async with turnlog.http.get(f"{turnlog.base_url}{path}?status={status}") as response:
            items = (await response.json())["items"] if response.status == 200 else []
            return items or None

    accepted = await turnlog.post(f"/v1/threads/{thread}/prompts", {"content": "[[think 30]]"}, status=202)
    [pending] = await eventually(lambda: in_progress("pending"), "a pending answer")
    assert (pending["role"], pending["turn_id"], pending["text"]) == ("assistant", accepted["turn_id"], "")
    assert await in_progress("streaming") is None
    await turnlog.post(f"/v1/turns/{accepted['turn_id']}/cancel", {}, status=202)
    await turnlog.completion(thread)
    assert len(await turnlog.messages(thread, count=1)) == 1

    content = "[[long 300]] [[slow 0.2]]"
    accepted = await turnlog.post(f"/v1/threads/{thread}/prompts", {"content": content}, status=202)
    [streaming] = await eventually(lambda: in_progress("streaming"), "an answer that streams")
    assert streaming["text"].startswith("word0")
    await turnlog.post(f"/v1/turns/{accepted['turn_id']}/cancel", {}, status=202)
    assert (await turnlog.completion(thread, count=2))["type"] == "turn.cancelled"
    kept = (await turnlog.messages(thread, count=3))[-1]
    assert (kept["message_id"], kept["status"]) == (streaming["message_id"], "cancelled")
    assert kept["text"].startswith(streaming["text"].rstrip())
    assert await in_progress("cancelled") == [kept]
    assert await in_progress("streaming") is await in_progress("pending") is None


async def test_a_turn_that_nobody_knows_is_a_problem(turnlog: Installation) -> None:
    problem = await turnlog.post("/v1/turns/nowhere/cancel", {}, status=404)

    assert problem["type"] == "urn:turnlog:problem:not-found"


async def test_a_thread_is_created_changed_listed_and_deleted(turnlog: Installation) -> None:
    user, word = f"u-{uuid4().hex[:8]}", uuid4().hex
    created = await turnlog.post("/v1/threads", {"user_id": user, "title": f"about {word}"}, status=202)
    path = f"/v1/threads/{created['thread_id']}"

    async def status_of(path: str) -> int:
        async with turnlog.http.get(turnlog.base_url + path) as response:
            return response.status

    async def exists() -> bool:
        return await status_of(path) == 200

    async def is_gone() -> bool:
        return await status_of(path) == 404

    await eventually(exists, "the thread to be known")
    listed = await turnlog.get(f"/v1/threads?user_id={user}")
    assert [each["title"] for each in listed["items"]] == [f"about {word}"]
    assert [each["thread_id"] for each in (await turnlog.get(f"/v1/threads?q={word}"))["items"]] == [
        created["thread_id"]
    ]

    async with turnlog.http.patch(turnlog.base_url + path, json={"status": "archived"}) as response:
        assert response.status == 202

    async def archived() -> bool:
        return (await turnlog.get(path))["status"] == "archived"

    await eventually(archived, "the thread to be archived")
    async with turnlog.http.delete(turnlog.base_url + path) as response:
        assert response.status == 202
    await eventually(is_gone, "the thread to be gone")


async def test_messages_are_appended_searched_and_deleted(turnlog: Installation, thread: str) -> None:
    word = f"zebra{uuid4().hex[:8]}"
    messages = [{"role": "user", "content": f"a {word} crossed the road"}, {"role": "user", "content": "nothing"}]
    appended = await turnlog.post(f"/v1/threads/{thread}/messages", {"messages": messages}, status=202)
    await turnlog.messages(thread, count=2)

    hits = await turnlog.get(f"/v1/search?q={word}")
    assert [each["message"]["message_id"] for each in hits["items"]] == appended["message_ids"][:1]
    assert hits["items"][0]["highlights"] == [{"start": 2, "end": 2 + len(word)}]
    narrowed = f"/v1/search?q={word}&mode=hybrid&role=user&since=2020-01-01T00:00:00Z&thread_id="
    assert (await turnlog.get(narrowed + thread))["items"][0]["message"]["message_id"] == appended["message_ids"][0]
    assert (await turnlog.get(narrowed + "nobody's"))["items"] == []

    body = {"message_ids": appended["message_ids"][:1]}
    async with turnlog.http.delete(f"{turnlog.base_url}/v1/threads/{thread}/messages", json=body) as response:
        assert response.status == 202

    async def forgotten() -> bool:
        return not (await turnlog.get(f"/v1/search?q={word}"))["items"]

    await eventually(forgotten, "the message to be forgotten")


async def test_who_waits_for_a_change_reads_it_at_once(turnlog: Installation, thread: str) -> None:
    path = f"/v1/threads/{thread}"

    async def change(method: str, path: str, body: Any = None) -> int:
        async with turnlog.http.request(method, f"{turnlog.base_url}{path}?wait=30", json=body) as response:
            return response.status

    assert await change("POST", "/v1/threads", {"thread_id": thread, "title": "plans"}) == 200
    assert (await turnlog.get(path))["title"] == "plans"
    assert await change("POST", "/v1/threads", {"thread_id": thread, "user_id": "mallory"}) == 409
    assert await change("PATCH", path, {"summary": "of Monday", "title": None}) == 200
    view = await turnlog.get(path)
    assert (view["user_id"], view["title"], view["summary"]) == (None, None, "of Monday")
    messages = [{"message_id": f"{thread}-{number}", "role": "user", "content": "a word"} for number in range(3)]
    messages[0]["created_at"] = "2020-01-01T00:00:00Z"
    assert await change("POST", f"{path}/messages", {"messages": messages}) == 200
    listed = (await turnlog.get(f"{path}/messages"))["items"]
    assert [each["created_at"] < "2021" for each in listed] == [True, False, False]
    assert (await turnlog.get(path))["title_message_id"] == f"{thread}-0"
    assert await change("DELETE", f"{path}/messages", {"message_ids": [f"{thread}-1"]}) == 200
    listed = await turnlog.get(f"{path}/messages")
    assert [each["message_id"] for each in listed["items"]] == [f"{thread}-0", f"{thread}-2"]
    positions = {"from_position": listed["items"][1]["position"]}
    assert await change("DELETE", f"{path}/messages", positions) == 200
    assert [each["message_id"] for each in (await turnlog.get(f"{path}/messages"))["items"]] == [f"{thread}-0"]
    assert await change("DELETE", f"{path}/messages", {**positions, "message_ids": ["both"]}) == 422
    assert await change("DELETE", path) == 200
    await turnlog.get(path, status=404)
    await turnlog.get(f"{path}/messages", status=404)


async def test_a_thread_that_is_not_there_is_neither_changed_nor_made(turnlog: Installation, thread: str) -> None:
    path = f"{turnlog.base_url}/v1/threads/{thread}"
    for method, of, body in (
        ("PATCH", "", {"title": "nobody's"}),
        ("DELETE", "", None),
        ("DELETE", "/messages", {"message_ids": ["m-1"]}),
    ):
        async with turnlog.http.request(method, path + of, json=body) as response:
            assert (response.status, (await response.json())["type"]) == (404, "urn:turnlog:problem:not-found")
    await turnlog.log.publish("prompts", {"type": "thread.update", "thread_id": thread, "title": "nobody's"})
    await turnlog.log.wait_for(
        "messages", lambda event: event["type"] == "thread.updated" and event["thread_id"] == thread
    )
    await turnlog.get(f"/v1/threads/{thread}", status=404)


async def test_a_thread_is_changed_and_deleted_as_soon_as_its_creation_is_accepted(
    turnlog: Installation, thread: str
) -> None:
    path = f"{turnlog.base_url}/v1/threads/{thread}"
    await turnlog.post("/v1/threads", {"thread_id": thread, "title": "plans"}, status=202)
    async with turnlog.http.patch(path, json={"title": "other plans"}) as response:
        assert response.status == 202
    async with turnlog.http.delete(f"{path}?wait=30") as response:
        assert response.status == 200
    await turnlog.get(f"/v1/threads/{thread}", status=404)


@pytest.mark.parametrize("name", ["%41", "%2Fz", "%", "日本"])
async def test_a_thread_is_found_by_its_own_name_whatever_it_is(turnlog: Installation, thread: str, name: str) -> None:
    other, named = f"{thread}A", f"{thread}{name}"
    for each in (other, named):
        await turnlog.post("/v1/threads?wait=30", {"thread_id": each, "title": each}, status=200)
    path = f"/v1/threads/{quote(named, safe='')}"

    assert (await asked(turnlog, "GET", path))[1]["thread_id"] == named
    status, appended = await asked(
        turnlog, "POST", f"{path}/messages?wait=30", json={"messages": [{"role": "user", "content": "hello"}]}
    )
    assert (status, appended["thread_id"]) == (200, named)
    assert [each["text"] for each in (await asked(turnlog, "GET", f"{path}/messages"))[1]["items"]] == ["hello"]
    assert (await turnlog.get(f"/v1/threads/{other}/messages"))["items"] == []
    assert (await asked(turnlog, "DELETE", f"{path}?wait=30"))[0] == 200
    assert (await asked(turnlog, "GET", path))[0] == 404
    assert (await turnlog.get(f"/v1/threads/{other}"))["title"] == other


@pytest.mark.parametrize("path", ["%2e", "%2e%2e", "%2e/messages", "%2e%2e/messages"])
async def test_a_thread_named_by_dots_is_no_other_route(turnlog: Installation, path: str) -> None:
    status, problem = await asked(turnlog, "GET", f"/v1/threads/{path}")
    assert (status, problem["type"]) == (404, "urn:turnlog:problem:not-found")


async def test_who_waits_for_a_change_of_a_busy_thread_waits_until_it_is_shown(
    turnlog: Installation, thread: str
) -> None:
    path = f"/v1/threads/{thread}/messages"
    many = {"messages": [{"role": "user", "content": f"number {number}"} for number in range(1000)]}
    for _ in range(4):
        await turnlog.post(path, many, status=202)

    last = {"messages": [{"role": "user", "content": "the last"}]}
    await turnlog.post(f"{path}?wait=120", last, status=200)
    [newest] = (await turnlog.get(f"{path}?order=desc&limit=1"))["items"]
    assert newest["text"] == "the last"

    for _ in range(4):
        await turnlog.post(path, many, status=202)
    assert (await asked(turnlog, "DELETE", f"/v1/threads/{thread}?wait=120"))[0] == 200
    await turnlog.get(path, status=404)


async def asked(turnlog: Installation, method: str, path: str, **options: Any) -> tuple[int, Any]:
    """Status and JSON of an answer. The path goes over the wire as it is."""
    async with turnlog.http.request(method, URL(turnlog.base_url + path, encoded=True), **options) as response:
        return response.status, await response.json(content_type=None)


async def test_a_message_that_is_appended_again_stays_where_it_is(turnlog: Installation, thread: str) -> None:
    path = f"/v1/threads/{thread}/messages?wait=30"
    first, second = ({"message_id": f"{thread}-{number}", "role": "user", "content": "a word"} for number in (1, 2))
    await turnlog.post(path, {"messages": [first, second]}, status=200)
    before = await turnlog.messages(thread, count=2)
    await turnlog.post(path, {"messages": [{**first, "content": "another"}]}, status=200)
    assert await turnlog.messages(thread, count=2) == before


async def test_a_long_thread_is_deleted_by_position_from_kafka_and_then_as_a_whole(
    turnlog: Installation, thread: str
) -> None:
    path = f"/v1/threads/{thread}"
    for _ in range(3):
        messages = [{"role": "user", "content": "a word"}] * 1000
        await turnlog.post(f"{path}/messages?wait=60", {"messages": messages}, status=200)
    [first] = (await turnlog.get(f"{path}/messages?limit=1"))["items"]
    last = (await turnlog.get(f"{path}/messages?limit=500"))["items"][-1]
    event = {"type": "messages.delete", "thread_id": thread}
    event |= {"from_position": first["position"], "to_position": last["position"]}
    await turnlog.log.publish("prompts", event)

    async def is_shorter() -> bool:
        return first not in (await turnlog.get(f"{path}/messages?limit=1"))["items"]

    await eventually(is_shorter, "the first messages to be gone")
    async with turnlog.http.delete(f"{turnlog.base_url}{path}?wait=60") as response:
        assert response.status == 200
    await turnlog.get(path, status=404)


async def test_a_thread_is_forked_at_a_message_and_goes_on_by_itself(turnlog: Installation, thread: str) -> None:
    for content in ("hello", "and again"):
        await turnlog.post(f"/v1/threads/{thread}/prompts?wait=30", {"content": content}, status=200)
    originals = await turnlog.messages(thread, count=4)
    fork, path = f"{thread}-fork", f"/v1/threads/{thread}/fork?wait=30"
    body = {"thread_id": fork, "message_id": originals[1]["message_id"], "title": "another way"}

    for copied in (2, 0):
        forked = await turnlog.post(path, body, status=200)
        assert forked["messages"] == copied
        view = await turnlog.get(f"/v1/threads/{fork}")
        assert (view["title"], view["forked_from"]) == (
            "another way",
            {"thread_id": thread, "message_id": originals[1]["message_id"]},
        )
        copies = (await turnlog.get(f"/v1/threads/{fork}/messages"))["items"]
        said = ("role", "parts", "status", "agent", "model", "usage", "finish_reason")
        assert [[each.get(name) for name in said] for each in copies] == [
            [each.get(name) for name in said] for each in originals[:2]
        ]
        assert not {each["message_id"] for each in copies} & {each["message_id"] for each in originals}

    await turnlog.post(f"/v1/threads/{fork}/prompts?wait=30", {"content": "otherwise"}, status=200)
    assert [each["text"] for each in await turnlog.messages(fork, count=4)][:3] == [
        "hello",
        "You said: hello",
        "otherwise",
    ]
    assert [each["message_id"] for each in await turnlog.messages(thread, count=4)] == [
        each["message_id"] for each in originals
    ]


async def test_a_fork_that_is_repeated_at_once_copies_nothing_twice(turnlog: Installation, thread: str) -> None:
    messages = [{"role": "user", "content": f"number {number}"} for number in range(5)]
    await turnlog.post(f"/v1/threads/{thread}/messages?wait=30", {"messages": messages}, status=200)
    fork = f"{thread}-fork"
    for _ in range(3):
        async with turnlog.http.post(
            f"{turnlog.base_url}/v1/threads/{thread}/fork", json={"thread_id": fork}
        ) as answer:
            assert answer.status in (200, 202)
    await turnlog.post(f"/v1/threads/{thread}/fork?wait=30", {"thread_id": fork}, status=200)
    assert [each["text"] for each in await turnlog.messages(fork, count=5)] == [f"number {n}" for n in range(5)]


async def test_a_fork_has_messages_that_are_larger_than_a_prompt_may_be(turnlog: Installation, thread: str) -> None:
    text = "x" * 1_048_400
    message = {"role": "user", "content": text}
    await turnlog.post(f"/v1/threads/{thread}/messages?wait=60", {"messages": [message]}, status=200)
    await turnlog.log.publish(
        "prompts",
        {"thread_id": thread, "messages": [{"role": "user", "content": text * 3}]},
        headers=[("ce_type", b"messages.append")],
    )
    await turnlog.messages(thread, count=2)

    forked = await turnlog.post(f"/v1/threads/{thread}/fork?wait=60", {}, status=200)

    assert forked["messages"] == 2
    copies = await turnlog.messages(forked["thread_id"], count=2)
    assert [each["text"] for each in copies] == [text, text * 3]


async def test_a_fork_of_nothing_or_onto_another_thread_is_refused(turnlog: Installation, thread: str) -> None:
    missing = await turnlog.post(f"/v1/threads/{thread}/fork", {}, status=404)
    assert missing["type"] == "urn:turnlog:problem:not-found"
    for each in (thread, f"{thread}-other"):
        messages = [{"message_id": f"{each}-1", "role": "user", "content": "a word"}]
        await turnlog.post(f"/v1/threads/{each}/messages?wait=30", {"messages": messages}, status=200)
    path = f"/v1/threads/{thread}/fork"
    for message_id in ("nowhere", f"{thread}-other-1", "a/b?c"):
        await turnlog.post(path, {"message_id": message_id}, status=404)
    taken = await turnlog.post(path, {"thread_id": f"{thread}-other"}, status=409)
    assert taken["type"] == "urn:turnlog:problem:thread-exists"
    copied = await turnlog.post(f"{path}?wait=30", {}, status=200)
    assert copied["messages"] == 1


async def test_messages_are_read_page_by_page(turnlog: Installation, thread: str) -> None:
    messages = [{"role": "user", "content": f"number {number}"} for number in range(7)]
    await turnlog.post(f"/v1/threads/{thread}/messages", {"messages": messages}, status=202)
    await turnlog.messages(thread, count=7)

    texts, cursor = [], ""
    while cursor is not None:
        page = await turnlog.get(f"/v1/threads/{thread}/messages?limit=3" + (f"&cursor={cursor}" if cursor else ""))
        assert len(page["items"]) <= 3
        texts += [each["text"] for each in page["items"]]
        cursor = page["next_cursor"]

    assert texts == [f"number {number}" for number in range(7)]


async def test_the_context_is_what_a_model_would_see(turnlog: Installation, thread: str) -> None:
    await turnlog.post(f"/v1/threads/{thread}/prompts?wait=30", {"content": "hello"}, status=200)

    context = await turnlog.post(f"/v1/threads/{thread}/context", {"query": "hello"}, status=200)

    assert [each["message"]["text"] for each in context["messages"]] == ["hello", "You said: hello"]


async def test_there_is_no_context_of_a_thread_that_is_not_there(turnlog: Installation, thread: str) -> None:
    problem = await turnlog.post(f"/v1/threads/{thread}/context", {}, status=404)
    assert problem["type"] == "urn:turnlog:problem:not-found"


async def test_the_context_of_an_agent_has_its_instructions_and_goes_by_its_options(
    turnlog: Installation, thread: str
) -> None:
    name = await applied(turnlog, instructions="Be brief.", context={"recent_messages": 1})
    await turnlog.post(f"/v1/threads/{thread}/prompts?wait=30", {"content": "hello"}, status=200)

    context = await turnlog.post(f"/v1/threads/{thread}/context", {"agent": name}, status=200)
    assert context["instructions"] == "Be brief."
    assert [each["message"]["text"] for each in context["messages"]] == ["You said: hello"]

    body = {"agent": name, "options": {"recent_messages": 2}}
    context = await turnlog.post(f"/v1/threads/{thread}/context", body, status=200)
    assert [each["message"]["text"] for each in context["messages"]] == ["hello", "You said: hello"]

    problem = await turnlog.post(f"/v1/threads/{thread}/context", {"agent": "nobody"}, status=404)
    assert problem["type"] == "urn:turnlog:problem:unknown-agent"


async def test_a_prompt_may_bring_its_own_instructions_and_tools(turnlog: Installation, thread: str) -> None:
    options = {"instructions": "Be brief.", "tools": []}
    body = {"content": '[[tool calculate {"expression": "1"}]] go', "options": options}

    completed = await turnlog.post(f"/v1/threads/{thread}/prompts?wait=30", body, status=200)

    assert "there is no tool 'calculate'" in completed["text"]


async def test_the_same_idempotency_key_is_the_same_turn(turnlog: Installation, thread: str) -> None:
    headers = {"Idempotency-Key": "order-1"}
    path = f"/v1/threads/{thread}/prompts?wait=30"
    first = await turnlog.post(path, {"content": "once"}, headers=headers, status=200)
    second = await turnlog.post(path, {"content": "once"}, headers=headers, status=200)

    assert first == second
    assert len([each for each in await turnlog.log.events("completions") if each["thread_id"] == thread]) == 1
