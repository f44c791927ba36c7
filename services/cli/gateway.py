"""The gateway, and inside the platform memory and usage, as the command line sees them."""

import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp

from schemas.http import BEHIND
from services.runtime.errors import BehindError, UnavailableError
from services.runtime.settings import RuntimeSettings

Answering = Literal["gateway", "memory", "usage"]


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """A server-sent event."""

    type: str
    data: dict[str, Any]
    raw: str


def base_url(settings: RuntimeSettings) -> str:
    return f"http://{settings.http_host}:{settings.http_port}"


def _place(settings: RuntimeSettings, service: Answering) -> tuple[str, str]:
    """Where a service answers, and the setting that says so."""
    match service:
        case "gateway":
            return base_url(settings), "TURNLOG_HTTP_PORT"
        case "memory":
            return settings.memory_base_url, "TURNLOG_MEMORY_URL"
        case "usage":
            return settings.usage_base_url, "TURNLOG_USAGE_URL"


@contextlib.asynccontextmanager
async def request(
    settings: RuntimeSettings, method: str, path: str, *, service: Answering = "gateway", **options: Any
) -> AsyncGenerator[aiohttp.ClientResponse]:
    """A request. Raises UnavailableError when nobody answers or the answer is a problem; BehindError is one of them."""
    base, setting = _place(settings, service)
    url = base + path
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_connect=5)) as session,
            session.request(method, url, **options) as response,
        ):
            if response.status >= 400:
                try:
                    body = json.loads(await response.text())
                    said, kind = body.get("detail") or body.get("title"), body.get("type")
                except ValueError:
                    said = kind = None
                error = BehindError if kind == BEHIND else UnavailableError
                raise error(f"{method} {path}: {response.status} {said or response.reason}")
            yield response
    except aiohttp.ClientConnectorError as error:
        raise UnavailableError(f"nothing answers at {base}: start `turnlog up` or set {setting}") from error
    except (aiohttp.ClientError, TimeoutError) as error:
        raise UnavailableError(f"{service} at {base} broke off its answer: {error or type(error).__name__}") from error


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
