"""`GET /v1/usage?format=csv`: a file of usage passes through the gateway as it is, its problems too."""

from collections.abc import AsyncIterator
from dataclasses import fields
from typing import Any

import httpx
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from schemas.http import ComponentHealth, Problem
from services.gateway.app import build_api
from services.gateway.ports import Ports
from services.gateway.settings import GatewaySettings
from services.gateway.upstream import Upstream
from services.runtime.web import PROBLEM_JSON

LARGE = b"user,events\r\n" + b"ann,1\r\n" * 200_000


async def usage(request: web.Request) -> web.Response:
    if request.query["tenant_id"] != "acme":
        document = Problem(type="urn:turnlog:problem:too-much-asked", title="Too much asked", status=422, detail="less")
        return web.Response(status=422, text=document.model_dump_json(), content_type=PROBLEM_JSON)
    headers = {"Content-Type": "text/csv; charset=utf-8", "Content-Disposition": "attachment", "X-Inside": "yes"}
    return web.Response(body=LARGE, headers=headers)


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    app = web.Application()
    app.router.add_get("/usage", usage)
    async with TestServer(app) as server:
        upstream = Upstream("usage", str(server.make_url("")).rstrip("/"), seconds=60)
        await upstream.start()
        settings = GatewaySettings(_env_file=None, trust_tenant_header=True)  # pyright: ignore
        nothing: dict[str, Any] = dict.fromkeys(field.name for field in fields(Ports))
        ports = Ports(**nothing | {"settings": settings, "usage": upstream})

        async def check() -> dict[str, ComponentHealth]:
            return {}

        transport = httpx.ASGITransport(build_api(ports, check))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            yield client
        await upstream.stop()


async def test_a_file_passes_through_as_it_is(http: httpx.AsyncClient) -> None:
    response = await http.get("/v1/usage", params={"format": "csv"}, headers={"X-Tenant-Id": "acme"})
    assert (response.status_code, response.content) == (200, LARGE)
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    assert response.headers["content-disposition"] == "attachment"
    assert response.headers["content-length"] == str(len(LARGE))
    assert "x-inside" not in response.headers


async def test_the_tenant_of_an_export_is_that_of_the_request(http: httpx.AsyncClient) -> None:
    response = await http.get("/v1/usage", params={"format": "csv"}, headers={"X-Tenant-Id": "other"})
    assert (response.status_code, response.headers["content-type"]) == (422, PROBLEM_JSON)
    assert response.json()["type"] == "urn:turnlog:problem:too-much-asked"
