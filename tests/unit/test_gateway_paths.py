"""An id goes over the wire as it is, whatever it is made of: no other thread, turn or route answers for it."""

from collections.abc import AsyncIterator
from dataclasses import fields
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from starlette.types import Scope

from schemas.http import ComponentHealth, Page, Problem, ThreadView
from schemas.prompts import ThreadDelete
from services.gateway.app import build_api
from services.gateway.ports import Ports
from services.gateway.reads import read_thread
from services.gateway.settings import GatewaySettings
from services.gateway.upstream import Upstream, path_of
from services.gateway.writes import _shown
from services.runtime.web import PROBLEM_JSON, ProblemError

IDS = ["pX%41", "sX%2Fz", ".", "..", "a%", "tag+1", "日本", "a:b@c;d=e&f", "%2e", "\\", '"quoted"']


@pytest.fixture
def asked() -> list[str]:
    """Paths as they came over the wire."""
    return []


@pytest.fixture
async def ports(asked: list[str]) -> AsyncIterator[Ports]:
    """Memory knows every thread by its path alone, and no list of them."""

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.raw_path.partition("?")[0])
        if request.path == "/threads/":
            return web.Response(text=Page[ThreadView](items=[]).model_dump_json(), content_type="application/json")
        document = Problem(type="urn:turnlog:problem:not-found", title="Not found", status=404)
        return web.Response(status=404, text=document.model_dump_json(), content_type=PROBLEM_JSON)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as server:
        upstream = Upstream("memory", str(server.make_url("")).rstrip("/"), seconds=10)
        await upstream.start()
        nothing: dict[str, Any] = dict.fromkeys(field.name for field in fields(Ports))
        settings = GatewaySettings(_env_file=None)  # pyright: ignore
        log = SimpleNamespace(journal_position=lambda thread_id: (0, 0))
        yield Ports(**nothing | {"settings": settings, "memory": upstream, "log": log})
        await upstream.stop()


@pytest.mark.parametrize("thread_id", IDS)
async def test_a_thread_is_asked_for_by_its_own_name(ports: Ports, asked: list[str], thread_id: str) -> None:
    with pytest.raises(ProblemError):
        await read_thread(ports, "default", thread_id)
    with pytest.raises(ProblemError):
        await read_thread(ports, "default", thread_id, "messages", "m/1")
    assert await _shown(ports, ThreadDelete(thread_id=thread_id), 0, 1) == 200

    wire = f"/threads/{path_of(thread_id)}"
    assert asked == [wire, f"{wire}/messages/m%2F1", wire]
    assert httpx.URL(f"http://memory{wire}").path == f"/threads/{thread_id}"


@pytest.mark.parametrize("thread_id", IDS)
@pytest.mark.parametrize("path", ["/v1/threads/{}", "/v1/threads/{}/messages"])
async def test_no_other_route_answers_for_a_thread(ports: Ports, asked: list[str], path: str, thread_id: str) -> None:
    async def check() -> dict[str, ComponentHealth]:
        return {}

    status, content_type = await _get(build_api(ports, check), path.format(quote(thread_id, safe="")), thread_id)
    assert (status, content_type) == (404, PROBLEM_JSON)
    assert asked == [path.removeprefix("/v1").format(path_of(thread_id))]


async def _get(app: Any, raw_path: str, thread_id: str) -> tuple[int, str]:
    """Status and content type, asked as a server asks: HTTP clients tidy up paths with dots."""
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": raw_path.replace(quote(thread_id, safe=""), thread_id),
        "raw_path": raw_path.encode(),
        "query_string": b"",
        "headers": [],
    }
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], dict(sent[0]["headers"])[b"content-type"].decode()
