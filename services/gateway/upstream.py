"""Memory and usage over HTTP: their answers pass through as they are, their problems too."""

from typing import Any

import aiohttp
from fastapi import Response

from schemas.http import Problem
from services.runtime.errors import UnavailableError
from services.runtime.web import ProblemError

REQUEST_SECONDS = 15

PASSED_HEADERS = ("Content-Type", "Content-Disposition")


class Upstream:
    """A service behind the gateway."""

    def __init__(self, name: str, base_url: str) -> None:
        self.name = name
        self._base_url = base_url
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        self._session = aiohttp.ClientSession(
            base_url=self._base_url + "/", timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS)
        )

    async def stop(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str, **parameters: object) -> Any:
        """The JSON of an answer. Raises ProblemError with the service's own problem, UnavailableError when down."""
        named = {
            name.rstrip("_"): str(value).lower() if isinstance(value, bool) else str(value)
            for name, value in parameters.items()
            if value is not None
        }
        return await self._request("GET", path, params=named)

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

    async def file(self, path: str, **parameters: str) -> Response:
        """An answer as it is, to the byte. Raises as `get`."""
        body, headers = await self._request("GET", path, params=parameters, as_file=True)
        return Response(body, headers=headers)

    async def _request(self, method: str, path: str, *, as_file: bool = False, **options: Any) -> Any:
        assert self._session is not None
        try:
            async with self._session.request(method, path, **options) as response:
                if response.status == 200 and as_file:
                    kept = {name: value for name, value in response.headers.items() if name in PASSED_HEADERS}
                    return await response.read(), kept
                if response.status == 200:
                    return await response.json()
                if response.content_type == "application/problem+json":
                    document = Problem.model_validate_json(await response.read())
                    headers = {"Retry-After": response.headers["Retry-After"]} if response.status == 503 else {}
                    raise ProblemError(document, headers=headers)
                raise UnavailableError(f"{self.name} answered {response.status}")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UnavailableError(f"{self.name} does not answer at {self._base_url}: {error!r}") from error
