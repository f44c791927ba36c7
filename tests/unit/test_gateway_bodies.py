"""Bodies: none is read past the limit, and text that no event can carry is refused in words."""

from collections.abc import AsyncIterator
from dataclasses import fields
from typing import Any

import httpx
import pytest

from schemas.http import ComponentHealth
from schemas.topics import MAX_EVENT_BYTES
from services.gateway.app import build_api
from services.gateway.ports import Ports
from services.gateway.settings import GatewaySettings
from services.runtime.web import PROBLEM_JSON, problem


class Log:
    """Counts what is written."""

    def __init__(self) -> None:
        self.written: list[Any] = []

    def journal_position(self, thread_id: str) -> tuple[int, int]:
        return 0, 0

    async def submit(self, event: Any) -> tuple[int, int]:
        self.written.append(event)
        return 0, len(self.written) - 1


class Memory:
    """Knows one thread."""

    def __init__(self) -> None:
        self.posted: list[str] = []

    async def get(self, path: str, **asked: Any) -> Any:
        if path != "threads/there":
            raise problem(404, "not-found", "Not found")
        return {}

    async def post(self, path: str, body: str) -> Any:
        self.posted.append(path)
        return {"messages": []}


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
async def http(log: Log, memory: Memory) -> AsyncIterator[httpx.AsyncClient]:
    settings = GatewaySettings(_env_file=None)  # pyright: ignore
    nothing: dict[str, Any] = dict.fromkeys(field.name for field in fields(Ports))
    ports = Ports(**nothing | {"settings": settings, "log": log, "memory": memory})

    async def check() -> dict[str, ComponentHealth]:
        return {}

    transport = httpx.ASGITransport(build_api(ports, check))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


class Upload:
    """A body in parts of 64 KiB without its length; counts those that were taken."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.taken = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b'{"content": "'
        for _ in range(self._size // 65_536):
            self.taken += 65_536
            yield b"x" * 65_536
        yield b'"}'


JSON = {"Content-Type": "application/json"}


async def test_a_body_of_unknown_length_is_read_as_far_as_the_limit(http: httpx.AsyncClient, log: Log) -> None:
    upload = Upload(64 * MAX_EVENT_BYTES)
    response = await http.post("/v1/threads/t/prompts", content=upload.__aiter__(), headers=JSON)
    assert (response.status_code, response.headers["content-type"]) == (413, PROBLEM_JSON)
    assert str(MAX_EVENT_BYTES) in response.json()["detail"]
    assert upload.taken <= MAX_EVENT_BYTES + 65_536
    assert log.written == []


async def test_a_smaller_one_arrives_whole(http: httpx.AsyncClient, log: Log) -> None:
    upload = Upload(MAX_EVENT_BYTES // 2)
    response = await http.post("/v1/threads/t/prompts", content=upload.__aiter__(), headers=JSON)
    assert response.status_code == 202
    [event] = log.written
    assert event.content == "x" * (MAX_EVENT_BYTES // 2)


async def test_a_body_that_says_that_it_is_too_large_is_refused(http: httpx.AsyncClient, log: Log) -> None:
    response = await http.post("/v1/threads/t/prompts", content=b" " * (MAX_EVENT_BYTES + 1), headers=JSON)
    assert (response.status_code, response.headers["content-type"]) == (413, PROBLEM_JSON)
    assert log.written == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/threads/t/messages", rb'{"messages": [{"role": "user", "content": "\ud800"}]}'),
        ("/v1/threads/t/messages", b'{"messages": [{"role": "user", "content": "\xed\xa0\x80"}]}'),
        ("/v1/threads/t/prompts", rb'{"content": "hello", "metadata": {"\udfff": 1}}'),
        ("/v1/threads", rb'{"title": "\ud83d and no more"}'),
        ("/v1/threads/there/context", rb'{"query": "\ud800"}'),
        ("/v1/chat/completions", rb'{"model": "a", "messages": [{"role": "user", "content": "\ud800"}]}'),
    ],
)
async def test_a_lone_surrogate_is_refused_in_words(
    http: httpx.AsyncClient, log: Log, memory: Memory, path: str, body: bytes
) -> None:
    response = await http.post(path, content=body, headers=JSON)
    assert (response.status_code, response.headers["content-type"]) == (422, PROBLEM_JSON)
    document = response.json()
    assert (document["type"], len(document["errors"])) == ("urn:turnlog:problem:invalid-request", 1)
    assert "without lone surrogates" in document["detail"]
    assert (log.written, memory.posted) == ([], [])


@pytest.mark.parametrize("title", [b'"\xff"', b'"\xe2\x82"', b"1" * 5000, b"[" * 300 + b"]" * 300, b'"no end'])
async def test_what_is_no_json_that_services_read_is_an_invalid_request(
    http: httpx.AsyncClient, log: Log, title: bytes
) -> None:
    response = await http.post("/v1/threads", content=b'{"title": ' + title + b"}", headers=JSON)
    assert (response.status_code, response.headers["content-type"]) == (422, PROBLEM_JSON)
    assert response.json()["type"] == "urn:turnlog:problem:invalid-request"
    assert [each["location"] for each in response.json()["errors"]] == ["body"]
    assert log.written == []


@pytest.mark.parametrize("text", ['"\\ud83d\\ude00"', '"\U0001f600"'])
async def test_a_whole_character_is_none(http: httpx.AsyncClient, log: Log, text: str) -> None:
    body = b"\xef\xbb\xbf" + f'{{"title": {text}}}'.encode()
    response = await http.post("/v1/threads", content=body, headers=JSON)
    assert response.status_code == 202
    assert log.written[0].title == "\U0001f600"


async def test_where_a_turn_is_heard_is_said_of_a_thread_of_any_name(http: httpx.AsyncClient, log: Log) -> None:
    response = await http.post("/v1/threads/%E6%97%A5%25/prompts", json={"content": "hello"})
    assert (response.status_code, log.written[0].thread_id) == (202, "日%")
    assert response.headers["location"] == "/v1/threads/%E6%97%A5%25/events"


async def test_there_is_no_context_of_a_thread_that_is_not_there(http: httpx.AsyncClient, memory: Memory) -> None:
    response = await http.post("/v1/threads/nope/context", json={})
    assert (response.status_code, response.json()["type"]) == (404, "urn:turnlog:problem:not-found")
    assert memory.posted == []

    assert (await http.post("/v1/threads/there/context", json={})).json()["messages"] == []
