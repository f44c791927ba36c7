"""Whose request it is: a header of a trusted proxy says so, and one that names no tenant is refused on every route."""

import re
from dataclasses import fields

import httpx
import pytest

from schemas.http import ComponentHealth
from services.gateway.app import build_api
from services.gateway.ports import Ports
from services.gateway.settings import GatewaySettings
from services.runtime.web import PROBLEM_JSON

SETTINGS = GatewaySettings(_env_file=None, trust_tenant_header=True)  # pyright: ignore


async def check() -> dict[str, ComponentHealth]:
    return {}


APP = build_api(Ports(**dict.fromkeys(field.name for field in fields(Ports)) | {"settings": SETTINGS}), check)  # pyright: ignore
ROUTES = [
    (method.upper(), re.sub(r"\{.*?\}", "x", path))
    for path, operations in APP.openapi()["paths"].items()
    for method in operations
]


@pytest.mark.parametrize("tenant", ["no tenant", "x" * 65])
@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_a_header_that_names_no_tenant_is_refused(method: str, path: str, tenant: str) -> None:
    transport = httpx.ASGITransport(APP)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
        response = await http.request(method, path, json={}, headers={"X-Tenant-Id": tenant.encode()})
    assert response.headers["content-type"] == PROBLEM_JSON
    if response.json()["type"] == "urn:turnlog:problem:operators-only":
        return
    assert (response.status_code, response.json()["type"]) == (422, "urn:turnlog:problem:invalid-request")
    assert [each["location"] for each in response.json()["errors"]] == ["header.X-Tenant-Id"]
