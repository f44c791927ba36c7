"""Threads and messages as clients of the gateway write and read them, with the memory behind it."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio

from schemas.agents import AgentSpec, ContextOptions
from schemas.prompts import ThreadCreate
from tests.unit.memory.gateway import Gateway, gateway_over
from tests.unit.memory.journal import Told, added, asks, opened

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not there will not come."""
    monkeypatch.setattr("services.gateway.reads.KNOWN_SECONDS", 0)


@pytest_asyncio.fixture(loop_scope="module")
async def gateway(told: Told) -> AsyncIterator[Gateway]:
    async with gateway_over(told) as made:
        yield made


def message(content: str, **said: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **said}


async def append(gateway: Gateway, *messages: dict[str, Any], thread_id: str = "t-1") -> list[str]:
    appended = await gateway.asked("POST", f"threads/{thread_id}/messages", {"messages": messages})
    return appended["message_ids"]


async def texts(gateway: Gateway, query: str) -> list[str]:
    return [each["text"] for each in (await gateway.read(f"threads/t-1/messages?{query}"))["items"]]


# Messages that are not written yet.


async def test_messages_that_were_appended_before_they_are_whole_are_listed_by_their_status(gateway: Gateway) -> None:
    await append(
        gateway,
        message("pending one", status="pending"),
        message("streaming one", status="streaming"),
        message("pending two", status="pending"),
        message("streaming two", status="streaming"),
    )
    for status in ("pending", "streaming"):
        assert await texts(gateway, f"status={status}") == [f"{status} one", f"{status} two"]
        first = await gateway.read(f"threads/t-1/messages?status={status}&limit=1")
        assert [each["text"] for each in first["items"]] == [f"{status} one"]
        assert await texts(gateway, f"status={status}&limit=1&cursor={first['next_cursor']}") == [f"{status} two"]


async def test_what_open_turns_have_yet_to_answer_is_behind_what_was_appended(gateway: Gateway) -> None:
    await append(gateway, message("appended", status="pending"), message("appended", status="streaming"))
    await gateway.told.tell(opened(), added("m-1", "Where is it?", turn_id="turn-1"))
    assert await texts(gateway, "status=pending") == ["appended", ""]
    assert await texts(gateway, "status=streaming") == ["appended"]

    gateway.log.deltas["turn-1"] = {1: "It is"}
    assert await texts(gateway, "status=pending") == ["appended"]
    assert await texts(gateway, "status=streaming") == ["appended", "It is"]
    assert await texts(gateway, "status=streaming&order=desc") == ["It is", "appended"]
    assert await texts(gateway, "turn_id=turn-1&status=streaming") == ["It is"]


# Times of messages.

THEN = "2020-01-01T00:00:00.000000Z"


async def test_what_is_imported_keeps_its_time_and_so_does_what_is_forked(gateway: Gateway) -> None:
    await append(gateway, message("old", created_at=THEN, turn_id="turn-1", step=3), message("new"))
    old, new = (await gateway.read("threads/t-1/messages"))["items"]
    now = new["created_at"]
    assert (old["created_at"], old["appended_at"], old["turn_id"], old["step"]) == (THEN, now, None, 0)
    assert (new["created_at"] > THEN, new["appended_at"]) == (True, None)

    gateway.log.story.waits(60)
    await gateway.asked("POST", "threads/t-1/fork", {"thread_id": "t-2"})
    copies = (await gateway.read("threads/t-2/messages"))["items"]
    assert [each["created_at"] for each in copies] == [THEN, now]
    assert min(each["appended_at"] for each in copies) > now


async def test_an_import_moves_a_thread_by_the_time_of_its_messages(gateway: Gateway) -> None:
    await append(gateway, message("a kite", created_at=THEN), thread_id="imported")
    await append(gateway, message("now"))
    thread = await gateway.read("threads/imported")
    assert (thread["created_at"], thread["updated_at"]) == (THEN, THEN)
    await append(gateway, message("a kite", created_at=THEN))
    assert (await gateway.read("threads/t-1"))["updated_at"] > THEN
    assert [each["thread_id"] for each in (await gateway.read("threads"))["items"]] == ["t-1", "imported"]
    found = await gateway.read("search?q=kite&until=2021-01-01T00:00:00Z")
    assert len(found["items"]) == 2
    assert await texts(gateway, "order=asc") == ["now", "a kite"]


async def test_a_message_of_a_time_that_cannot_be_is_refused(gateway: Gateway) -> None:
    for at in ("1969-12-31T23:59:59Z", (datetime.now(UTC) + timedelta(hours=1)).isoformat(), "yesterday"):
        messages = [message("x", created_at=at)]
        await gateway.asked("POST", "threads/t-1/messages", {"messages": messages}, status=422)
    await gateway.read("threads/t-1", status=404)


# Changes of a thread.


async def test_null_clears_and_what_is_left_out_stays(gateway: Gateway) -> None:
    said = {"title": "Plans", "summary": "What comes", "metadata": {"a": 1, "b": 2}}
    await gateway.asked("POST", "threads", {"thread_id": "t-1", **said})

    async def after(patch: dict[str, Any]) -> list[Any]:
        await gateway.asked("PATCH", "threads/t-1", patch)
        thread = await gateway.read("threads/t-1")
        return [thread[name] for name in said]

    assert await after({"status": "archived"}) == ["Plans", "What comes", {"a": 1, "b": 2}]
    assert await after({"title": None, "metadata": {"c": 3}}) == [None, "What comes", {"c": 3}]
    assert await after({"summary": None, "title": "Others"}) == ["Others", None, {"c": 3}]
    assert await after({"metadata": None}) == ["Others", None, {}]


@pytest.mark.parametrize(
    ("patch", "location"),
    [({}, "body"), ({"status": None}, "body.status"), ({"title": "x", "status": None}, "body.status")],
)
async def test_a_patch_that_can_change_nothing_is_refused(
    gateway: Gateway, patch: dict[str, Any], location: str
) -> None:
    await gateway.asked("POST", "threads", {"thread_id": "t-1", "title": "Plans"})
    problem = await gateway.asked("PATCH", "threads/t-1", patch, status=422)
    assert [each["location"] for each in problem["errors"]] == [location]


# Whose a thread is.


async def test_a_thread_that_is_there_is_not_created_again(gateway: Gateway) -> None:
    mine = {"thread_id": "t-1", "user_id": "u-1", "title": "Plans"}
    await gateway.asked("POST", "threads", mine)
    before = await gateway.read("threads/t-1")
    for body in ({"thread_id": "t-1", "user_id": "mallory", "title": "taken"}, mine):
        problem = await gateway.asked("POST", "threads", body, status=409)
        assert problem["type"] == "urn:turnlog:problem:thread-exists"
    assert await gateway.read("threads/t-1") == before

    await gateway.asked("DELETE", "threads/t-1")
    await gateway.asked("POST", "threads", mine)


async def test_a_thread_that_is_created_from_kafka_again_stays_whose_it_is(gateway: Gateway) -> None:
    for user in ("u-1", "mallory"):
        command = ThreadCreate(tenant_id=gateway.told.tenant, thread_id="t-1", user_id=user, title=f"of {user}")
        await gateway.log.submit(command)
    thread = await gateway.read("threads/t-1")
    assert (thread["user_id"], thread["users"], thread["title"]) == ("u-1", ["u-1"], "of u-1")
    assert (await gateway.read("threads?user_id=mallory"))["items"] == []


# Titles.


@pytest.mark.parametrize("body", [{"message_ids": ["m-1"]}, {"from_position": 0}])
async def test_what_was_deleted_is_neither_read_nor_found_as_the_title_of_its_thread(
    gateway: Gateway, body: dict[str, Any]
) -> None:
    await append(gateway, message("my password is hunter2", message_id="m-1"))
    thread = await gateway.read("threads/t-1")
    assert (thread["title"], thread["title_message_id"]) == ("my password is hunter2", "m-1")
    assert len((await gateway.read("threads?q=hunter2"))["items"]) == 1

    await gateway.asked("DELETE", "threads/t-1/messages", body)
    assert (await gateway.read("threads/t-1"))["title"] is None
    assert (await gateway.read("threads?q=hunter2"))["items"] == []


async def test_a_fork_has_the_title_that_was_given_or_one_of_its_own_messages(gateway: Gateway) -> None:
    await append(gateway, message("my password is hunter2", message_id="m-1"))
    await gateway.asked("POST", "threads/t-1/fork", {"thread_id": "t-2"})
    fork = await gateway.read("threads/t-2")
    [copy] = (await gateway.read("threads/t-2/messages"))["items"]
    assert (fork["title"], fork["title_message_id"]) == ("my password is hunter2", copy["message_id"])
    await gateway.asked("DELETE", "threads/t-2/messages", {"message_ids": [copy["message_id"]]})
    assert (await gateway.read("threads/t-2"))["title"] is None

    await gateway.asked("PATCH", "threads/t-1", {"title": "Plans"})
    await gateway.asked("POST", "threads/t-1/fork", {"thread_id": "t-3"})
    fork = await gateway.read("threads/t-3")
    assert (fork["title"], fork["title_message_id"]) == ("Plans", None)


# What a model would see.


async def seen(gateway: Gateway, body: dict[str, Any]) -> dict[str, str]:
    context = await gateway.asked("POST", "threads/t-1/context", body, status=200)
    return {each["message"]["message_id"]: each["reason"] for each in context["messages"]}


SEARCH: dict[str, Any] = {"recent_messages": 0, "search": {"message_range": {"before": 0, "after": 0}}}


async def test_a_context_shows_a_turn(gateway: Gateway) -> None:
    await gateway.told.tell(
        added("m-1", "My parcel is at the lighthouse"),
        opened(user_id="u-1"),
        added("m-2", "Which lighthouse?", turn_id="turn-1", user_id="u-1"),
        asks("m-3", "c-1"),
        added("m-4", "The weather"),
        added("elsewhere", "A lighthouse", thread_id="t-2", user_id="u-1"),
        opened("turn-2", thread_id="t-2"),
    )
    turn = {"m-2": "turn", "m-3": "turn"}
    assert await seen(gateway, {"turn_id": "turn-1", "options": SEARCH}) == {"m-1": "hit", **turn}
    others = {**SEARCH, "search": {**SEARCH["search"], "other_threads": True}}
    assert await seen(gateway, {"turn_id": "turn-1", "options": others}) == {"elsewhere": "hit", "m-1": "hit", **turn}
    for name in ("turn-2", "nobody's"):
        await gateway.asked("POST", "threads/t-1/context", {"turn_id": name}, status=404)


async def test_a_context_of_an_agent_that_searches_finds_what_a_user_has_said_last(gateway: Gateway) -> None:
    gateway.agents["finder"] = AgentSpec(name="finder", context=ContextOptions.model_validate(SEARCH))
    await gateway.told.tell(
        added("m-1", "My parcel is at the lighthouse"), added("m-2", "No"), added("m-3", "Which lighthouse?")
    )
    assert await seen(gateway, {"agent": "finder"}) == {"m-1": "hit"}
    assert set((await seen(gateway, {"agent": "finder", "options": {"max_tokens": 1000}})).values()) == {"recent"}
