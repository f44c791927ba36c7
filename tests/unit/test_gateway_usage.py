"""`GET /v1/usage`: the operator names any tenant, a tenant no other one."""

from dataclasses import fields
from typing import Any

import httpx
import pytest
from fastapi import Response

from schemas.http import ComponentHealth
from services.gateway.app import build_api
from services.gateway.ports import Ports
from services.gateway.settings import GatewaySettings

PATHS = ("/v1/usage", "/v1/usage/quality", "/v1/usage?format=csv")


class Usage:
    """The usage service: whom it was asked about."""

    def __init__(self) -> None:
        self.tenants: list[str] = []

    async def get(self, path: str, **parameters: str) -> Any:
        self.tenants.append(parameters["tenant_id"])
        return {"items": [], "next_cursor": None}

    async def stream(self, path: str, **parameters: str) -> Response:
        self.tenants.append(parameters["tenant_id"])
        return Response(b"", media_type="text/csv")


@pytest.fixture
def usage() -> Usage:
    return Usage()


def client(usage: Usage, *, trust_tenant_header: bool) -> httpx.AsyncClient:
    settings = GatewaySettings(_env_file=None, trust_tenant_header=trust_tenant_header)  # pyright: ignore
    nothing: dict[str, Any] = dict.fromkeys(field.name for field in fields(Ports))

    async def check() -> dict[str, ComponentHealth]:
        return {}

    transport = httpx.ASGITransport(build_api(Ports(**nothing | {"settings": settings, "usage": usage}), check))
    return httpx.AsyncClient(transport=transport, base_url="http://gateway", headers={"X-Tenant-Id": "acme"})


@pytest.mark.parametrize("path", PATHS)
async def test_the_operator_asks_about_any_tenant(usage: Usage, path: str) -> None:
    async with client(usage, trust_tenant_header=False) as http:
        assert (await http.get(path)).status_code == 200
        assert (await http.get(httpx.URL(path).copy_add_param("tenant_id", "other"))).status_code == 200
    assert usage.tenants == ["default", "other"]


@pytest.mark.parametrize("path", PATHS)
async def test_a_tenant_asks_about_itself_and_no_other_one(usage: Usage, path: str) -> None:
    async with client(usage, trust_tenant_header=True) as http:
        assert (await http.get(path)).status_code == 200
        assert (await http.get(httpx.URL(path).copy_add_param("tenant_id", "acme"))).status_code == 200
        for named in (["other"], ["acme", "other"]):
            refused = await http.get(httpx.URL(path).copy_merge_params({"tenant_id": named}))
            assert (refused.status_code, refused.json()["type"]) == (403, "urn:turnlog:problem:other-tenant")
        twice = await http.get(httpx.URL(path).copy_merge_params({"tenant_id": ["other", "acme"]}))
        assert twice.status_code == 200
        assert (await http.get(httpx.URL(path).copy_add_param("tenant_id", ""))).status_code == 422
    assert set(usage.tenants) == {"acme"}
