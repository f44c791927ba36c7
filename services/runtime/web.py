"""What every FastAPI application of Turnlog has: problem documents, health endpoints, a server without signals."""

import asyncio
import contextlib
import socket
from collections.abc import Generator, Sequence

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from schemas.http import Problem
from services.runtime.errors import BehindError, ConfigurationError, UnavailableError
from services.runtime.health import ReadinessCheck, readiness

PROBLEM_JSON = "application/problem+json"


class ProblemError(Exception):
    """Raised by a handler to answer with a problem document."""

    def __init__(self, problem: Problem, *, headers: dict[str, str] | None = None) -> None:
        super().__init__(problem.detail or problem.title)
        self.problem = problem
        self.headers = headers or {}


def problem(
    status: int, slug: str, title: str, detail: str | None = None, *, headers: dict[str, str] | None = None
) -> ProblemError:
    """An RFC 9457 problem with the stable type `urn:turnlog:problem:<slug>`."""
    document = Problem(type=f"urn:turnlog:problem:{slug}", title=title, status=status, detail=detail)
    return ProblemError(document, headers=headers)


def invalid_request(errors: Sequence[tuple[str, str]]) -> Problem:
    """What is wrong with a request: where, and what."""
    return Problem(
        type="urn:turnlog:problem:invalid-request",
        title="The request is not valid",
        status=422,
        detail="; ".join(f"{location}: {message}" for location, message in errors[:5]),
        errors=[{"location": location, "message": message} for location, message in errors],
    )


def problem_response(document: Problem, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(
        document.model_dump(mode="json", exclude_none=True),
        status_code=document.status,
        media_type=PROBLEM_JSON,
        headers=headers,
    )


def install_problems(app: FastAPI) -> None:
    """Makes every error that leaves the application a problem document.

    One that nobody expected says nothing of itself: the server logs it, with its traceback.
    """

    async def on_problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, ProblemError)
        return problem_response(error.problem, error.headers)

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        slug = {404: "not-found", 405: "method-not-allowed", 413: "too-large"}.get(error.status_code, "http-error")
        document = Problem(type=f"urn:turnlog:problem:{slug}", title=str(error.detail), status=error.status_code)
        return problem_response(document, dict(error.headers or {}))

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return problem_response(
            invalid_request([(".".join(str(step) for step in each["loc"]), each["msg"]) for each in error.errors()])
        )

    async def on_unavailable(request: Request, error: Exception) -> Response:
        slug = "behind" if isinstance(error, BehindError) else "unavailable"
        document = Problem(type=f"urn:turnlog:problem:{slug}", title="Not available now", status=503, detail=str(error))
        return problem_response(document, {"Retry-After": "1"})

    async def on_unexpected(request: Request, error: Exception) -> Response:
        return problem_response(
            Problem(
                type="urn:turnlog:problem:internal-error",
                title="Internal error",
                status=500,
                detail="what went wrong is in the service's log",
            )
        )

    app.add_exception_handler(Exception, on_unexpected)
    app.add_exception_handler(ProblemError, on_problem)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(UnavailableError, on_unavailable)


def install_health(app: FastAPI, check: ReadinessCheck) -> None:
    """Adds `/healthz`, `/readyz` and `/metrics`."""

    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    async def readyz() -> Response:
        answer = await readiness(check)
        return Response(answer.model_dump_json(), 200 if answer.ready else 503, media_type="application/json")

    async def metrics() -> Response:
        return Response(generate_latest(REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app.add_api_route("/healthz", healthz, include_in_schema=False)
    app.add_api_route("/readyz", readyz, include_in_schema=False)
    app.add_api_route("/metrics", metrics, include_in_schema=False)


class _Server(uvicorn.Server):
    """The process's signals belong to `services.runtime.service`, not to one of several servers in it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


class WebServer:
    """Serves an application until `stop`, which waits up to `grace_seconds` for requests in hand. Port 0: any free."""

    def __init__(self, app: FastAPI, *, host: str, port: int, grace_seconds: int = 5) -> None:
        self._host = host
        self.port = port
        self._server = _Server(
            uvicorn.Config(
                app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=grace_seconds
            )
        )
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises ConfigurationError when the port is in use."""
        listener = socket.socket(socket.AF_INET6 if ":" in self._host else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((self._host, self.port))
        except OSError as error:
            listener.close()
            raise ConfigurationError(
                f"cannot listen on {self._host}:{self.port}: {error.strerror}; set TURNLOG_HTTP_PORT to a free port"
            ) from error
        self.port = listener.getsockname()[1]
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]), name=f"http:{self.port}")

    async def stop(self) -> None:
        self._server.should_exit = True
        if self._task is not None:
            await self._task
            self._task = None
