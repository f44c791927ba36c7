"""The gateway as the command line sees it."""

import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp

from services.runtime.errors import UnavailableError
from services.runtime.settings import RuntimeSettings


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """A server-sent event."""

    type: str
    data: dict[str, Any]
    raw: str


def base_url(settings: RuntimeSettings) -> str:
    return f"http://{settings.http_host}:{settings.http_port}"


@contextlib.asynccontextmanager
async def request(
    settings: RuntimeSettings, method: str, path: str, **options: Any
) -> AsyncGenerator[aiohttp.ClientResponse]:
    """A request. Raises UnavailableError when nobody answers or the answer is a problem."""
    url = base_url(settings) + path
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_connect=5)) as session,
            session.request(method, url, **options) as response,
        ):
            if response.status >= 400:
                try:
                    body = json.loads(await response.text())
                    said = body.get("detail") or body.get("title")
                except ValueError:
                    said = None
                raise UnavailableError(f"{method} {path}: {response.status} {said or response.reason}")
            yield response
    except aiohttp.ClientConnectorError as error:
        raise UnavailableError(
            f"nothing answers at {base_url(settings)}: start `turnlog up` or set TURNLOG_HTTP_PORT"
        ) from error


async def server_events(response: aiohttp.ClientResponse) -> AsyncIterator[ServerEvent]:
    """Events as they arrive (WHATWG HTML, server-sent events)."""
    kind, data = "message", ""
    async for line in response.content:
        text = line.decode().rstrip("\r\n")
        if not text:
            if data:
                yield ServerEvent(kind, json.loads(data), data)
            kind, data = "message", ""
        elif text.startswith("event:"):
            kind = text[6:].strip()
        elif text.startswith("data:"):
            data += text[5:].strip()
