"""`turnlog usage` over a gateway that remembers what it was asked."""

import asyncio

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from typer.testing import CliRunner

from services.cli.app import app


@pytest.mark.parametrize(("options", "tenant"), [([], "default"), (["--tenant", "acme"], "acme")])
async def test_usage_is_asked_for_of_the_tenant_that_is_named(
    monkeypatch: pytest.MonkeyPatch, options: list[str], tenant: str
) -> None:
    asked: list[tuple[str, str | None]] = []

    async def usage(request: web.Request) -> web.Response:
        asked.append((request.query["tenant_id"], request.headers.get("X-Tenant-Id")))
        return web.json_response({"items": [], "next_cursor": None})

    gateway = web.Application()
    gateway.router.add_get("/v1/usage", usage)
    async with TestServer(gateway) as server:
        monkeypatch.setenv("TURNLOG_HTTP_PORT", str(server.port))
        finished = await asyncio.to_thread(CliRunner().invoke, app, ["usage", "--json", *options])
    assert (finished.exit_code, asked) == (0, [(tenant, tenant)])
