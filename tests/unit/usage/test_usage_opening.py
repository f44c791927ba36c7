"""While usage reads what it needs from the log, it says so instead of answering something wrong."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from services.runtime.connections import REPEAT_SECONDS, Repeated
from services.runtime.web import PROBLEM_JSON
from services.usage.app import UsageService
from services.usage.settings import UsageSettings

ANSWERED_LATER = [
    ("GET", "/usage", None),
    ("GET", "/usage/quality", None),
    ("GET", "/invoices", None),
    ("GET", "/invoices/draft?period=2026-01", None),
    ("GET", "/invoices/INV-000001", None),
    ("POST", "/invoices", {"tenant_id": "acme", "period": "2026-01"}),
    ("GET", "/credits", None),
    ("GET", "/budgets", None),
    ("GET", "/audit/conflicts", None),
    ("POST", "/rebuild", None),
]


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Of a service whose HTTP server is open, and that has read nothing yet."""
    service = UsageService(UsageSettings(_env_file=None, data_dir=tmp_path, http_port=0))  # pyright: ignore
    async with httpx.AsyncClient(transport=httpx.ASGITransport(service.api), base_url="http://usage") as client:
        yield client


@pytest.mark.parametrize(("method", "path", "body"), ANSWERED_LATER)
async def test_what_rests_on_topics_that_are_not_read_is_unavailable(
    http: httpx.AsyncClient, method: str, path: str, body: object
) -> None:
    response = await http.request(method, path, json=body)
    assert (response.status_code, response.headers["content-type"]) == (503, PROBLEM_JSON)
    assert response.headers["retry-after"] == "1"
    assert response.json()["type"] == "urn:turnlog:problem:unavailable"


async def test_health_is_told_from_the_first_moment(http: httpx.AsyncClient) -> None:
    assert (await http.get("/healthz")).status_code == 200
    assert (await http.get("/metrics")).status_code == 200
    ready = await http.get("/readyz")
    assert ready.status_code == 503
    assert ready.json()["components"]["topics"] == {"ready": False, "detail": "usage has not started yet"}


async def test_a_trouble_that_lasts_is_told_once_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = asyncio.get_running_loop().time()
    monkeypatch.setattr("services.runtime.connections.time.monotonic", lambda: now)
    repeated = Repeated()
    assert [repeated.is_news(each) for each in ("a", "a", "b", "b", "a")] == [True, False, True, False, True]
    now += REPEAT_SECONDS
    assert [repeated.is_news("a"), repeated.is_news("a")] == [True, False]
