"""Bodies of requests: no larger than an event, and text that an event can carry."""

import codecs
from collections import deque

import pydantic_core
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from schemas.http import Problem
from services.runtime.web import problem_response


class BodyLimit:
    """Reads a body before the application does. What is larger is a 413, and no more of it is kept."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        said = Headers(scope=scope).get("content-length", "")
        if said.isdecimal() and int(said) > self._max_bytes:
            await self._refuse(scope, receive, send)
            return
        messages: deque[Message] = deque()
        size, more = 0, True
        while more:
            message = await receive()
            messages.append(message)
            size += len(message.get("body", b""))
            if size > self._max_bytes:
                await self._refuse(scope, receive, send)
                return
            more = message.get("more_body", False)

        async def read() -> Message:
            return messages.popleft() if messages else await receive()

        await self._app(scope, read, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        document = Problem(
            type="urn:turnlog:problem:too-large",
            title="The request is too large",
            status=413,
            detail=f"expected a body of at most {self._max_bytes} bytes",
        )
        await problem_response(document)(scope, receive, send)


async def readable_body(request: Request) -> None:
    """Holds a JSON body to what services read: FastAPI's parser takes lone surrogates too, and nests deeper.

    Raises RequestValidationError.
    """
    body = (await request.body()).removeprefix(codecs.BOM_UTF8)
    if not body:
        return
    try:
        pydantic_core.from_json(body)
    except ValueError as error:
        message = f"expected UTF-8 JSON without lone surrogates, nested at most 200 levels deep: {error}"
        raise RequestValidationError([{"type": "json_invalid", "loc": ("body",), "msg": message}]) from error
