"""The HTTP interface over the engine: pages, filters, waiting for an offset, and problems in words."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from schemas.http import (
    ComponentHealth,
    ContextResponse,
    Highlight,
    MessageView,
    Page,
    Problem,
    SearchPage,
    SeenResponse,
    ThreadDeletion,
    ThreadView,
)
from services.memory.api import WAIT_SECONDS, build_api
from services.memory.projector import CallView, TurnView, being_deleted, thread_point
from services.memory.qdrant_edge import EdgeMemoryStore
from services.memory.reads import Reads
from services.memory.store import Changes
from services.runtime.errors import BehindError
from services.runtime.projection import LAG
from services.runtime.web import PROBLEM_JSON
from tests.unit.memory.journal import Told, added, answers, asks, closed, created, opened

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Reached:
    """How far a journal was read; waiting for more fails, and what was waited for is remembered."""

    def __init__(self, positions: dict[int, int]) -> None:
        self.positions = positions
        self.asked: list[tuple[int, int, float]] = []

    async def wait_for(self, partition: int, min_offset: int, timeout_seconds: float) -> None:
        self.asked.append((partition, min_offset, timeout_seconds))
        if self.positions.get(partition, 0) < min_offset:
            raise BehindError(f"messages[{partition}] is at {self.positions.get(partition, 0)}, asked for {min_offset}")


@pytest.fixture
def reached() -> Reached:
    return Reached({0: 100})


@pytest_asyncio.fixture(loop_scope="module")
async def http(engine: EdgeMemoryStore, reached: Reached) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(engine, reached) as client:
        yield client


@contextlib.asynccontextmanager
async def serving(store: EdgeMemoryStore, reached: Reached) -> AsyncIterator[httpx.AsyncClient]:
    async def check() -> dict[str, ComponentHealth]:
        return {
            "projection": ComponentHealth(ready=bool(reached.positions), detail="" if reached.positions else "waits")
        }

    transport = httpx.ASGITransport(build_api(Reads(store), reached, check))
    async with httpx.AsyncClient(transport=transport, base_url="http://memory") as client:
        yield client


def problem(response: httpx.Response, status: int, slug: str) -> Problem:
    assert response.headers["content-type"] == PROBLEM_JSON
    document = Problem.model_validate_json(response.content)
    assert (response.status_code, document.status, document.type) == (status, status, f"urn:turnlog:problem:{slug}")
    return document


async def test_messages_are_read_page_by_page(http: httpx.AsyncClient, told: Told) -> None:
    await told.tell(*(added(f"m-{number}", f"number {number}") for number in range(5)))
    read: list[str] = []
    parameters = {"tenant_id": told.tenant, "limit": 2, "order": "desc"}
    while True:
        response = await http.get("/threads/t-1/messages", params=parameters)
        page = Page[MessageView].model_validate_json(response.content)
        read += [each.message_id for each in page.items]
        if page.next_cursor is None:
            break
        parameters["cursor"] = page.next_cursor
    assert read == ["m-4", "m-3", "m-2", "m-1", "m-0"]


async def test_messages_are_filtered(http: httpx.AsyncClient, told: Told) -> None:
    await told.tell(added("m-1", "hi"), asks("m-2", "c-1"), answers("m-3", "c-1"))
    for parameters, found in (
        ({"role": "tool"}, ["m-3"]),
        ({"turn_id": "turn-1"}, ["m-2", "m-3"]),
        ({"exclude_tool": "true"}, ["m-1"]),
        ({"turn_id": "nobody's"}, []),
        ({"agent": "assistant"}, ["m-2"]),
        ({"status": "failed"}, []),
        ({"from_position": 1}, ["m-2", "m-3"]),
        ({"from_position": 1, "to_position": 1}, ["m-2"]),
    ):
        response = await http.get("/threads/t-1/messages", params={"tenant_id": told.tenant, **parameters})
        assert [each["message_id"] for each in response.json()["items"]] == found


async def test_threads_turns_and_calls_are_read_by_their_ids(http: httpx.AsyncClient, told: Told) -> None:
    await told.tell(created(title="Plans"), opened(), asks("m-1", "c-1"), closed())
    parameters = {"tenant_id": told.tenant}
    thread = ThreadView.model_validate_json((await http.get("/threads/t-1", params=parameters)).content)
    turn = TurnView.model_validate_json((await http.get("/turns/turn-1", params=parameters)).content)
    call = CallView.model_validate_json((await http.get("/tool-calls/c-1", params=parameters)).content)
    assert (thread.title, turn.status, turn.thread_id, call.turn_id) == ("Plans", "completed", "t-1", "turn-1")


async def test_a_thread_that_is_being_deleted_is_answered_without_waiting(
    http: httpx.AsyncClient, told: Told, reached: Reached
) -> None:
    await told.tell(created(title="Plans"))
    [thread] = await told.store.get([thread_point(told.tenant, "t-1")])
    await told.store.write(0, Changes([being_deleted(thread, 7)]), told.offset)
    parameters = {"tenant_id": told.tenant, "partition": 0, "min_offset": 10_000}
    view = ThreadView.model_validate_json((await http.get("/threads/t-1", params=parameters)).content)
    assert (view.status, view.deletion) == ("deleting", ThreadDeletion(removed=0, total=7))
    listed = await http.get("/threads", params={"tenant_id": told.tenant, "status": "deleting"})
    assert [each["thread_id"] for each in listed.json()["items"]] == ["t-1"]
    assert reached.asked == []


async def test_a_thread_whose_name_needs_escaping_is_read(http: httpx.AsyncClient, told: Told) -> None:
    await told.tell(created("straße:1&2=%", title="Plans"))
    response = await http.get("/threads/stra%C3%9Fe%3A1%262%3D%25", params={"tenant_id": told.tenant})
    assert response.json()["title"] == "Plans"


async def test_threads_are_listed_and_searched(http: httpx.AsyncClient, told: Told) -> None:
    await told.tell(created("t-1", title="Lisbon", user_id="u-1"), created("t-2", title="Porto", seconds=1))
    for parameters, found in (
        ({}, ["t-2", "t-1"]),
        ({"q": "lisbon"}, ["t-1"]),
        ({"user_id": "u-1"}, ["t-1"]),
        ({"status": "archived"}, []),
    ):
        response = await http.get("/threads", params={"tenant_id": told.tenant, **parameters})
        page = Page[ThreadView].model_validate_json(response.content)
        assert [each.thread_id for each in page.items] == found


async def test_messages_are_searched(http: httpx.AsyncClient, told: Told) -> None:
    await told.tell(added("m-1", "the lighthouse", user_id="u-1"), added("m-2", "a lighthouse", thread_id="t-2"))
    response = await http.get("/search", params={"tenant_id": told.tenant, "q": "lighthouse", "thread_id": "t-2"})
    page = SearchPage.model_validate_json(response.content)
    assert [hit.message.message_id for hit in page.items] == ["m-2"]
    assert page.items[0].score > 0


@pytest.mark.parametrize(
    ("parameters", "found"),
    [
        ({}, ["m-0", "m-1", "m-2", "m-3"]),
        ({"user_id": "u-1"}, ["m-0", "m-1", "m-2"]),
        ({"thread_id": "t-2"}, ["m-3"]),
        ({"role": "assistant"}, ["m-1"]),
        ({"agent": "helper"}, ["m-1"]),
        ({"since": "2026-01-01T12:00:01Z"}, ["m-1", "m-2", "m-3"]),
        ({"until": "2026-01-01T12:00:01Z"}, ["m-0"]),
        ({"since": "2026-01-01T13:00:01+01:00", "until": "2026-01-01T12:00:02Z"}, ["m-1"]),
        ({"user_id": "nobody"}, []),
        ({"score_threshold": 1e9}, []),
    ],
)
async def test_a_search_is_narrowed(
    http: httpx.AsyncClient, told: Told, parameters: dict[str, Any], found: list[str]
) -> None:
    await told.tell(
        added("m-0", "a lighthouse", user_id="u-1", seconds=0),
        added("m-1", "a lighthouse", role="assistant", agent="helper", seconds=1),
        added("m-2", "a lighthouse", user_id="u-1", seconds=2),
        added("m-3", "a lighthouse", thread_id="t-2", seconds=3),
    )
    response = await http.get("/search", params={"tenant_id": told.tenant, "q": "lighthouse", **parameters})
    page = SearchPage.model_validate_json(response.content)
    assert sorted(hit.message.message_id for hit in page.items) == found
    assert all(hit.found_by == ["text"] and hit.highlights == [Highlight(start=2, end=12)] for hit in page.items)


@pytest.mark.parametrize("limit", [1, 2, 3, 5])
async def test_hits_are_read_page_by_page_and_each_once(http: httpx.AsyncClient, told: Told, limit: int) -> None:
    await told.tell(*(added(f"m-{number}", "plum " * (number + 1)) for number in range(5)))
    parameters: dict[str, Any] = {"tenant_id": told.tenant, "q": "plum", "limit": limit}
    read: list[tuple[float, str]] = []
    while True:
        page = SearchPage.model_validate_json((await http.get("/search", params=parameters)).content)
        read += [(hit.score, hit.message.message_id) for hit in page.items]
        if page.next_cursor is None:
            break
        parameters["cursor"] = page.next_cursor
    assert {message_id for _, message_id in read} == {f"m-{number}" for number in range(5)}
    assert len(read) == 5
    assert [score for score, _ in read] == sorted((score for score, _ in read), reverse=True)


async def test_meaning_that_nobody_can_search_by_is_unavailable_alone_and_said_beside_words(
    http: httpx.AsyncClient, told: Told
) -> None:
    await told.tell(added("m-1", "the lighthouse"))
    parameters = {"tenant_id": told.tenant, "q": "lighthouse"}
    hybrid = SearchPage.model_validate_json(
        (await http.get("/search", params={**parameters, "mode": "hybrid"})).content
    )
    assert [hit.message.message_id for hit in hybrid.items] == ["m-1"]
    assert "TURNLOG_EMBEDDING_MODEL" in (hybrid.without_vector or "")
    alone = await http.get("/search", params={**parameters, "mode": "vector"})
    assert "TURNLOG_EMBEDDING_MODEL" in (problem(alone, 503, "unavailable").detail or "")


@pytest.mark.parametrize(
    "parameters",
    [
        {"score_threshold": "nan"},
        {"score_threshold": "inf"},
        {"since": "0001-01-01T00:00:00+14:00"},
        {"until": "9999-12-31T23:59:59-12:00"},
    ],
)
async def test_a_search_by_what_cannot_be_compared_is_refused(
    http: httpx.AsyncClient, parameters: dict[str, str]
) -> None:
    document = problem(await http.get("/search", params={"q": "lighthouse"} | parameters), 422, "invalid-request")
    assert next(iter(parameters)) in str(document.errors)


@pytest.mark.parametrize("cursor", ["nonsense", "QC0x", "QDEwMDA", "QDEwMDAw", "MTIuMDEyMzQ1Njc4OWFiY2RlZg"])
async def test_a_search_with_a_cursor_of_somebody_else_is_refused(http: httpx.AsyncClient, cursor: str) -> None:
    problem(await http.get("/search", params={"q": "lighthouse", "cursor": cursor}), 400, "bad-cursor")


async def test_a_context_is_asked_for_with_options(http: httpx.AsyncClient, told: Told) -> None:
    await told.tell(*(added(f"m-{number}", f"number {number}") for number in range(3)))
    body = {"tenant_id": told.tenant, "thread_id": "t-1", "options": {"recent_messages": 2}}
    answer = ContextResponse.model_validate_json((await http.post("/context", json=body)).content)
    assert [(each.message.message_id, each.reason) for each in answer.messages] == [
        ("m-1", "recent"),
        ("m-2", "recent"),
    ]


async def test_prompts_are_told_that_they_were_seen(http: httpx.AsyncClient, told: Told, reached: Reached) -> None:
    body = {"partition": 0, "min_offset": 7, "prompts": [{"thread_id": "t-1", "prompt_id": "p"}], "wait_seconds": 2}
    answer = SeenResponse.model_validate_json((await http.post("/prompts/seen", json=body)).content)
    assert answer.seen == []
    assert reached.asked == [(0, 7, 2.0)]


READS = [
    "/threads",
    "/threads?q=plans",
    "/threads/t-1",
    "/threads/t-1/messages",
    "/threads/t-1/messages/m-1",
    "/search?q=lighthouse",
    "/turns/turn-1",
    "/tool-calls/c-1",
]


@pytest.mark.parametrize("path", READS)
async def test_a_read_waits_for_the_offset_that_it_names(
    http: httpx.AsyncClient, told: Told, reached: Reached, path: str
) -> None:
    await told.tell(opened(), asks("m-1", "c-1", text="the lighthouse"))
    for position in ({}, {"partition": 3, "min_offset": 0}, {"partition": 0, "min_offset": 100}):
        url = httpx.URL(path).copy_merge_params({"tenant_id": told.tenant, **position})
        assert (await http.get(url)).status_code == 200
    assert reached.asked == [(3, 0, WAIT_SECONDS), (0, 100, WAIT_SECONDS)]


@pytest.mark.parametrize("position", [{"partition": 0}, {"min_offset": 5}])
@pytest.mark.parametrize("path", [*READS, "/context"])
async def test_an_offset_without_its_partition_is_refused_and_so_is_one_without_the_other(
    http: httpx.AsyncClient, reached: Reached, path: str, position: dict[str, int]
) -> None:
    if path == "/context":
        response = await http.post(path, json={"thread_id": "t-1", **position})
    else:
        response = await http.get(httpx.URL(path).copy_merge_params(position))
    assert "give partition and min_offset, or neither" in (problem(response, 422, "invalid-request").detail or "")
    assert reached.asked == []


@pytest.mark.parametrize("path", READS)
async def test_a_read_that_waited_in_vain_says_how_far_memory_is(http: httpx.AsyncClient, path: str) -> None:
    response = await http.get(httpx.URL(path).copy_merge_params({"partition": 0, "min_offset": 101}))
    assert problem(response, 503, "behind").detail == "messages[0] is at 100, asked for 101"
    assert response.headers["Retry-After"] == "1"


async def test_a_context_that_waited_in_vain_says_how_far_memory_is(
    http: httpx.AsyncClient, told: Told, reached: Reached
) -> None:
    body = {"thread_id": "t-1", "partition": 2, "min_offset": 1, "wait_seconds": 0.5}
    assert problem(await http.post("/context", json=body), 503, "behind").detail == "messages[2] is at 0, asked for 1"
    assert reached.asked == [(2, 1, 0.5)]


@pytest.mark.parametrize("path", ["/threads/nobody's", "/threads/nobody's/messages", "/turns/none", "/tool-calls/none"])
async def test_what_does_not_exist_is_not_found(http: httpx.AsyncClient, told: Told, path: str) -> None:
    await told.tell(created())
    document = problem(await http.get(path, params={"tenant_id": told.tenant}), 404, "not-found")
    assert document.detail is not None
    assert document.detail.startswith("there is no ")


async def test_a_thread_without_messages_has_an_empty_page(http: httpx.AsyncClient, told: Told) -> None:
    await told.tell(created())
    response = await http.get("/threads/t-1/messages", params={"tenant_id": told.tenant})
    assert response.json() == {"items": [], "next_cursor": None}


async def test_a_tenant_does_not_see_what_is_anothers(http: httpx.AsyncClient, told: Told) -> None:
    await told.tell(created(title="secret"), opened(), asks("m-1", "c-1", text="secret"))
    for path in ("/threads/t-1", "/threads/t-1/messages", "/turns/turn-1", "/tool-calls/c-1"):
        assert (await http.get(path, params={"tenant_id": "stranger"})).status_code == 404
    for path in ("/threads", "/threads?q=secret", "/search?q=secret"):
        joined = path + ("&" if "?" in path else "?") + "tenant_id=stranger"
        assert (await http.get(joined)).json()["items"] == []


@pytest.mark.parametrize(
    ("path", "parameters", "named"),
    [
        ("/threads/t-1/messages", {"limit": "0"}, "query.limit"),
        ("/threads/t-1/messages", {"limit": "1001"}, "query.limit"),
        ("/threads/t-1/messages", {"limit": "many"}, "query.limit"),
        ("/threads/t-1/messages", {"order": "random"}, "query.order"),
        ("/threads/t-1/messages", {"role": "nobody"}, "query.role"),
        ("/threads/t-1/messages", {"exclude_tool": "perhaps"}, "query.exclude_tool"),
        ("/threads/t-1/messages", {"partition": "first"}, "query.partition"),
        ("/threads", {"tenant_id": "no/tenant"}, "query.tenant_id"),
        ("/threads", {"limit": "-1"}, "query.limit"),
        ("/search", {}, "query.q"),
        ("/search", {"q": ""}, "query.q"),
    ],
)
async def test_bad_parameters_are_named(
    http: httpx.AsyncClient, path: str, parameters: dict[str, str], named: str
) -> None:
    document = problem(await http.get(path, params=parameters), 422, "invalid-request")
    assert [each["location"] for each in document.errors or []] == [named]
    assert named in (document.detail or "")


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("/context", {}, "body.thread_id"),
        ("/context", {"thread_id": "t 1"}, "body.thread_id"),
        ("/context", {"thread_id": "t-1", "wait_seconds": 61}, "body.wait_seconds"),
        ("/context", {"thread_id": "t-1", "options": {"recent_messages": -1}}, "body.options.recent_messages"),
        ("/prompts/seen", {"partition": 0}, "body.prompts"),
        ("/prompts/seen", {"partition": 0, "prompts": [{"thread_id": "t"}]}, "body.prompts.0.prompt_id"),
        ("/prompts/seen", {"partition": 0, "prompts": [{"thread_id": "t", "prompt_id": "p"}] * 1001}, "body.prompts"),
    ],
)
async def test_bad_bodies_are_named(http: httpx.AsyncClient, path: str, body: Any, named: str) -> None:
    document = problem(await http.post(path, json=body), 422, "invalid-request")
    assert [each["location"] for each in document.errors or []] == [named]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[]", b"null"])
async def test_a_body_that_is_no_json_object_is_refused(http: httpx.AsyncClient, body: bytes) -> None:
    problem(await http.post("/context", content=body), 422, "invalid-request")


@pytest.mark.parametrize("path", ["/threads", "/threads/t-1/messages"])
async def test_a_cursor_of_somebodys_own_making_is_refused(http: httpx.AsyncClient, path: str) -> None:
    document = problem(await http.get(path, params={"cursor": "nonsense"}), 400, "bad-cursor")
    assert "leave it out" in (document.detail or "")


async def test_unknown_paths_and_methods_are_problems(http: httpx.AsyncClient) -> None:
    problem(await http.get("/nothing"), 404, "not-found")
    problem(await http.get("/context"), 405, "method-not-allowed")


async def test_a_store_that_is_not_open_yet_is_not_available(tmp_path: Path, reached: Reached) -> None:
    store = EdgeMemoryStore(tmp_path)
    async with serving(store, reached) as http:
        for path in ("/threads", "/threads/t-1", "/turns/t", "/search?q=x"):
            response = await http.get(path)
            assert "not open" in (problem(response, 503, "unavailable").detail or "")
            assert response.headers["Retry-After"] == "1"
        body = {"thread_id": "t-1"}
        problem(await http.post("/context", json=body), 503, "unavailable")
    await store.close()


async def test_readiness_and_metrics_are_served(http: httpx.AsyncClient, reached: Reached) -> None:
    assert (await http.get("/healthz")).status_code == 200
    assert (await http.get("/readyz")).status_code == 200
    reached.positions.clear()
    response = await http.get("/readyz")
    assert response.status_code == 503
    assert response.json()["components"]["projection"] == {"ready": False, "detail": "waits"}
    assert LAG.describe()[0].name == "turnlog_projection_lag_records"
    assert "turnlog_projection_lag_records" in (await http.get("/metrics")).text


async def test_many_readers_and_a_writer_get_along(http: httpx.AsyncClient, told: Told) -> None:
    await told.tell(added("m-0", "number 0"))

    async def read() -> int:
        response = await http.get("/threads/t-1/messages", params={"tenant_id": told.tenant, "limit": 1000})
        positions = [each["position"] for each in response.json()["items"]]
        assert positions == list(range(len(positions)))
        return len(positions)

    async def write() -> int:
        for number in range(1, 20):
            await told.tell(added(f"m-{number}", f"number {number}"))
        return 0

    counts = await asyncio.gather(write(), *(read() for _ in range(20)))
    assert all(1 <= count <= 20 for count in counts[1:])
    assert await read() == 20


async def test_times_are_in_utc_and_absent_fields_are_null(http: httpx.AsyncClient, told: Told) -> None:
    await told.tell(created())
    document = (await http.get("/threads/t-1", params={"tenant_id": told.tenant})).json()
    assert document["created_at"] == "2026-01-01T12:00:00.000000Z"
    assert document["user_id"] is None
