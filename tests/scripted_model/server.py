"""The HTTP side of the scripted model."""

import asyncio
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, Self

from aiohttp import web

from tests.scripted_model.script import Failure, Step, key_of, next_step, pieces, usage


class ScriptedModel:
    """`async with ScriptedModel() as model`: listens at `model.base_url`; `model.requests` are the bodies received."""

    def __init__(self, *, port: int = 0) -> None:
        self._port = port
        self._attempts: Counter[str] = Counter()
        self._runner: web.AppRunner | None = None
        self.requests: list[dict[str, Any]] = []
        self.streams_cancelled = 0
        """Streams that the client left before their end."""

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.die()

    async def start(self) -> None:
        """Listens, after a death on the same port; what it has counted goes on."""
        app = web.Application(client_max_size=64 * 1024**2)
        app.add_routes([web.post("/v1/chat/completions", self._chat), web.get("/v1/models", self._models)])
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def die(self) -> None:
        """As if its process was killed: nobody listens, and every connection breaks wherever it is."""
        assert self._runner is not None
        for site in self._runner.sites:
            await site.stop()
        for connection in self._runner.server.connections if self._runner.server else ():
            if connection.transport is not None:
                connection.transport.abort()
        await self._runner.cleanup()

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "scripted", "object": "model"}]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        step = next_step(body["messages"])
        key = key_of(body)
        failure = step.failure(self._attempts[key]) if step.failures else None
        if failure is not None:
            self._attempts[key] += 1
        await asyncio.sleep(step.think_seconds)
        if failure is not None and failure.kind == "status":
            return _refused(failure)
        if not body.get("stream"):
            return web.json_response(_whole(body, step))
        try:
            return await self._streamed(request, body, step, failure)
        except (ConnectionError, asyncio.CancelledError):
            self.streams_cancelled += 1
            raise

    async def _streamed(
        self, request: web.Request, body: Mapping[str, Any], step: Step, failure: Failure | None
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        chunks = pieces(step, model=body["model"])
        if failure is not None:
            for chunk in chunks[: len(chunks) // 2]:
                await response.write(_data(chunk))
            if failure.kind == "malformed":
                await response.write(b"data: {not json\n\n")
            assert request.transport is not None
            request.transport.close()
            return response
        if (body.get("stream_options") or {}).get("include_usage"):
            counted = usage(body["messages"], step)
            chunks.append({**chunks[-1], "choices": [], "usage": counted})
        if step.slow_seconds:
            for chunk in chunks:
                await response.write(_data(chunk))
                await asyncio.sleep(step.slow_seconds)
            await response.write(b"data: [DONE]\n\n")
        else:
            await response.write(b"".join(map(_data, chunks)) + b"data: [DONE]\n\n")
        return response


def _data(chunk: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def _refused(failure: Failure) -> web.Response:
    headers = {} if failure.retry_after is None else {"Retry-After": failure.retry_after}
    error = {"message": f"scripted {failure.status}", "type": "scripted", "code": None}
    return web.json_response({"error": error}, status=failure.status, headers=headers)


def _whole(body: Mapping[str, Any], step: Step) -> dict[str, Any]:
    calls = [
        {"id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for index, (name, arguments) in enumerate(step.tool_calls)
    ]
    message = {"role": "assistant", "content": step.text or None, **({"tool_calls": calls} if calls else {})}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop"}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": body["model"],
        "choices": [choice],
        "usage": usage(body["messages"], step),
    }
