"""Memory and usage over HTTP: their answers pass through as they are, their problems too, but for their own errors."""

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any, NoReturn
from urllib.parse import quote

import aiohttp
from fastapi.responses import StreamingResponse
from yarl import URL

from schemas.http import Problem
from services.runtime.errors import UnavailableError
from services.runtime.web import ProblemError

STREAM_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=330)
"""An export of usage is written for five minutes at most before its first byte is sent."""

PASSED_HEADERS = {"content-type", "content-disposition", "content-length"}


def path_of(*segments: str) -> str:
    """A path of segments as they are: an id may hold `/` and `%`, and may be `.` or `..`, which else is no segment."""
    return "/".join(quote(each, safe="") if each not in (".", "..") else each.replace(".", "%2E") for each in segments)


class Upstream:
    """A service behind the gateway. Paths are as they go over the wire; see `path_of`.

    Args:
        seconds: longest wait for an answer: more than the service lets itself take.
    """

    def __init__(self, name: str, base_url: str, *, seconds: float) -> None:
        self.name = name
        self._base_url = base_url
        self._seconds = seconds
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        self._session = aiohttp.ClientSession(
            base_url=self._base_url + "/", timeout=aiohttp.ClientTimeout(total=self._seconds)
        )

    async def stop(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str, **parameters: object) -> Any:
        """The JSON of an answer. Raises ProblemError with the service's own problem, UnavailableError when down."""
        return await self._request("GET", path, params=_named(parameters))

    async def stream(self, path: str, **parameters: object) -> StreamingResponse:
        """An answer to the byte, of any size, while it arrives; it may take minutes to begin. Raises as `get`."""
        assert self._session is not None
        open_until = contextlib.AsyncExitStack()
        try:
            request = self._session.request(
                "GET", URL(path, encoded=True), params=_named(parameters), timeout=STREAM_TIMEOUT
            )
            response = await open_until.enter_async_context(request)
            if response.status != 200:
                await self._refused(response)
        except BaseException as error:
            await open_until.aclose()
            if isinstance(error, aiohttp.ClientError | TimeoutError):
                raise self._away(error) from error
            raise

        async def parts() -> AsyncIterator[bytes]:
            async with open_until:
                async for part in response.content.iter_any():
                    yield part

        passed = {name: value for name, value in response.headers.items() if name.lower() in PASSED_HEADERS}
        return StreamingResponse(parts(), headers=passed)

    async def post(self, path: str, body: str) -> Any:
        """As `get`, with a JSON body."""
        return await self._request("POST", path, data=body, headers={"Content-Type": "application/json"})

    async def ready(self) -> str | None:
        """None, or why not."""
        assert self._session is not None
        try:
            async with self._session.get("readyz", timeout=aiohttp.ClientTimeout(total=2)) as response:
                return None if response.status == 200 else f"{self.name}: {(await response.text())[:300]}"
        except (aiohttp.ClientError, TimeoutError):
            return f"{self.name} does not answer at {self._base_url}"

    async def _request(self, method: str, path: str, **options: Any) -> Any:
        assert self._session is not None
        try:
            async with self._session.request(method, URL(path, encoded=True), **options) as response:
                if response.status == 200:
                    return await response.json()
                return await self._refused(response)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._away(error) from error

    async def _refused(self, response: aiohttp.ClientResponse) -> NoReturn:
        if response.content_type == "application/problem+json" and response.status != 500:
            document = Problem.model_validate_json(await response.read())
            headers = {"Retry-After": response.headers["Retry-After"]} if response.status == 503 else {}
            raise ProblemError(document, headers=headers)
        raise UnavailableError(f"{self.name} answered {response.status}")

    def _away(self, error: Exception) -> UnavailableError:
        return UnavailableError(f"{self.name} does not answer at {self._base_url}: {error!r}")


def _named(parameters: Mapping[str, object]) -> dict[str, str]:
    return {
        name.rstrip("_"): str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in parameters.items()
        if value is not None
    }
