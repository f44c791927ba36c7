"""Bodies of requests: no larger than an event, and JSON that an event can carry."""

import codecs
from collections import deque

import pydantic_core
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from schemas.http import Problem
from services.runtime.web import invalid_request, problem_response


class ReadableBodies:
    """Reads a body before the application does. What is larger is a 413, and no more of it is kept.

    What is no JSON that services read is a 422: the application's own parser takes lone surrogates, and nests deeper.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        said = Headers(scope=scope).get("content-length", "")
        if said.isdecimal() and int(said) > self._max_bytes:
            await problem_response(self._too_large())(scope, receive, send)
            return
        messages: deque[Message] = deque()
        size, more = 0, True
        while more:
            message = await receive()
            messages.append(message)
            size += len(message.get("body", b""))
            if size > self._max_bytes:
                await problem_response(self._too_large())(scope, receive, send)
                return
            more = message.get("more_body", False)
        unreadable = _unreadable(b"".join(each.get("body", b"") for each in messages))
        if unreadable is not None:
            await problem_response(unreadable)(scope, receive, send)
            return

        async def read() -> Message:
            return messages.popleft() if messages else await receive()

        await self._app(scope, read, send)

    def _too_large(self) -> Problem:
        return Problem(
            type="urn:turnlog:problem:too-large",
            title="The request is too large",
            status=413,
            detail=f"expected a body of at most {self._max_bytes} bytes",
        )


def _unreadable(body: bytes) -> Problem | None:
    """What is wrong with a body, if there is one."""
    text = body.removeprefix(codecs.BOM_UTF8)
    if not text:
        return None
    try:
        pydantic_core.from_json(text)
    except ValueError as error:
        message = f"expected UTF-8 JSON without lone surrogates, nested at most 200 levels deep: {error}"
        return invalid_request([("body", message)])
    return None
