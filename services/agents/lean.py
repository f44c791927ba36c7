"""Chat completions on an aiohttp session by hand: a third to a sixth of the CPU of a call by the `openai` client."""

from collections.abc import AsyncGenerator, Mapping
from io import BytesIO
from typing import Any
from urllib.request import getproxies, proxy_bypass

import aiohttp
import orjson
from pydantic_core import to_json
from yarl import URL

from services.agents.failures import CallFailed, refused, stream_cut, unreachable
from services.agents.providers import IDLE_SECONDS, PROBE_CONNECTIONS, Provider

MOST_REDIRECTS = 20
"""As many as the `openai` client follows."""

MOST_ERROR_BYTES = 64 * 1024
"""Of an error's body that are read; the message of a failure has a few hundred characters."""

LARGE_BODY_BYTES = 1024 * 1024
"""A body from here on is sent in parts, so that the event loop goes on meanwhile."""


class LeanConnection:
    """Requests as the `openai` client sends them, and its treatment of redirects, proxies and compression."""

    def __init__(self, provider: Provider) -> None:
        base_url = provider.base_url.removesuffix("/")
        self._provider = provider
        self._completions = URL(f"{base_url}/chat/completions")
        self._models = URL(f"{base_url}/models")
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        provider = self._provider
        key = provider.api_key.get_secret_value() or "none"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=provider.concurrency + PROBE_CONNECTIONS, keepalive_timeout=IDLE_SECONDS
            ),
            headers={
                "Authorization": f"Bearer {key}",
                "Accept": "application/json",
                "User-Agent": "turnlog",
                **provider.headers,
            },
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(),
            proxy=_proxy(self._completions),
        )

    async def stop(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def stream(self, body: Mapping[str, Any]) -> AsyncGenerator[bytes]:
        """The bytes of a streamed answer as they arrive. Raises CallFailed."""
        assert self._session is not None
        answering = False
        try:
            async with self._session.post(
                self._completions,
                data=_payload(body),
                headers={"Content-Type": "application/json"},
                max_redirects=MOST_REDIRECTS,
            ) as response:
                if not 200 <= response.status < 300:
                    raise refused(response.status, response.headers, await _beginning(response.content))
                answering = True
                async for piece in response.content.iter_any():
                    yield piece
        except (aiohttp.ClientError, OSError) as error:
            raise stream_cut(error) if answering else unreachable(self._provider.base_url, error) from error

    async def probe(self) -> int:
        """The HTTP status of the list of models. Raises CallFailed."""
        assert self._session is not None
        try:
            async with self._session.get(self._models, max_redirects=MOST_REDIRECTS) as response:
                return response.status
        except (aiohttp.ClientError, OSError) as error:
            raise unreachable(self._provider.base_url, error) from error


def _payload(body: Mapping[str, Any]) -> bytes | BytesIO:
    encoded = _encoded(body)
    return encoded if len(encoded) < LARGE_BODY_BYTES else BytesIO(encoded)


def _encoded(body: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(body)
    except TypeError:
        pass
    try:
        return to_json(body)  # integers of more than 64 bits, which a tool's parameters may name
    except ValueError as error:
        raise CallFailed("bad_request", f"the request can't be written as JSON: {error}", retryable=False) from error


async def _beginning(content: aiohttp.StreamReader) -> bytes:
    read = bytearray()
    async for piece in content.iter_any():
        read += piece
        if len(read) >= MOST_ERROR_BYTES:
            break
    return bytes(read)


def _proxy(url: URL) -> str | None:
    """`HTTPS_PROXY` and the like, `ALL_PROXY`, `NO_PROXY`. Read once: aiohttp would do it in a thread at each call."""
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(url.host or ""):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"
