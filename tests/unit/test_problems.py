"""What nobody expected leaves a service as a problem that says nothing of it, and is in the log."""

import logging
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from starlette.middleware.base import RequestResponseEndpoint

from services.gateway.upstream import Upstream
from services.runtime.errors import UnavailableError
from services.runtime.web import PROBLEM_JSON, WebServer, install_problems


@pytest.fixture
async def url() -> AsyncIterator[str]:
    """A service with a bug, behind a middleware as the gateway has one."""
    app = FastAPI()
    install_problems(app)

    @app.middleware("http")
    async def enter(request: Request, following: RequestResponseEndpoint) -> Response:
        return await following(request)

    @app.get("/broken")
    async def broken() -> None:
        raise KeyError("the secret of somebody")

    server = WebServer(app, host="127.0.0.1", port=0)
    await server.start()
    yield f"http://127.0.0.1:{server.port}"
    await server.stop()


async def test_an_unexpected_error_is_a_problem_without_its_words_and_logged_with_its_traceback(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with httpx.AsyncClient() as http:
        response = await http.get(f"{url}/broken")
    assert (response.status_code, response.headers["content-type"]) == (500, PROBLEM_JSON)
    assert response.json()["type"] == "urn:turnlog:problem:internal-error"
    assert "secret" not in response.text
    [record] = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert "in broken" in caplog.text
    assert record.exc_info is not None
    assert record.exc_info[0] is KeyError


async def test_an_unexpected_error_of_memory_is_no_answer_of_it(url: str) -> None:
    memory = Upstream("memory", url, seconds=10)
    await memory.start()
    with pytest.raises(UnavailableError, match="memory answered 500"):
        await memory.get("broken")
    await memory.stop()
