"""Models behind the chat completions API: one streamed completion an attempt, whichever client carries it."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Protocol

from schemas.base import TokenCounts
from services.agents.answer import Received
from services.agents.failures import CallFailed
from services.agents.fairness import FairLimiter
from services.agents.lean import LeanConnection
from services.agents.model import DeltaSink, ModelAnswer, ModelFailure, ModelRequest
from services.agents.providers import Provider, Providers
from services.agents.server_sent_events import EventReader

END_SECONDS = 0.1
"""How long the end of a stream may come after `[DONE]`. Only then does its connection serve the next call."""

PROBE_SECONDS = 2


class Connection(Protocol):
    """A provider over HTTP. It never asks twice, and its time limit is the caller's cancellation."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def stream(self, body: Mapping[str, Any]) -> AsyncGenerator[bytes]:
        """The bytes of a streamed answer as they arrive. Closing the generator, or cancelling it, closes the stream.

        Raises:
            CallFailed: what went wrong.
        """
        ...

    async def probe(self) -> int:
        """The HTTP status of the list of models. Raises CallFailed when there is none."""
        ...


class ChatCompletions:
    """One connection pool and one limit a provider. Retries are decided elsewhere."""

    def __init__(self, providers: Providers) -> None:
        self._providers = providers
        self._connections: dict[str, Connection] = {each.name: _connection(each) for each in providers}
        self._limiters = {each.name: FairLimiter(each.concurrency) for each in providers}

    async def start(self) -> None:
        for connection in self._connections.values():
            await connection.start()

    async def stop(self) -> None:
        for connection in self._connections.values():
            await connection.stop()

    async def reachable(self) -> str | None:
        """None when the default provider answers, else why not. Any HTTP answer counts: not every one lists models."""
        provider = self._providers.default
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                status = await self._connections[provider.name].probe()
        except (CallFailed, TimeoutError):
            return f"no model answers at {provider.base_url}"
        return f"model provider: {status}" if status in (401, 403) else None

    def resolve(self, model: str) -> tuple[str, str]:
        provider, name = self._providers.resolve(model)
        return provider.name, name

    async def attempt(self, request: ModelRequest, sink: DeltaSink) -> ModelAnswer | ModelFailure:
        """One streamed chat completion. Never raises but for cancellation, which closes the stream."""
        provider, model = self._providers.resolve(request.model)
        limit = min(request.timeout_seconds, provider.timeout_seconds)
        received = Received(sink)
        began = time.monotonic()
        try:
            # Waiting for a slot is no attempt of the model: the turn's deadline ends it, not the call's time limit.
            async with self._limiters[provider.name].slot(request.tenant_id):
                began = time.monotonic()
                stream = self._connections[provider.name].stream(_body(provider, model, request))
                async with contextlib.aclosing(stream):
                    async with asyncio.timeout(limit):
                        await _read(stream, received)
                    await _drain(stream)
        except CallFailed as failure:
            return _failure(provider, model, request, received, began, failure)
        except TimeoutError:
            failure = CallFailed("timeout", f"no answer within {limit:g} s")
            return _failure(provider, model, request, received, began, failure)
        return _answer(provider, model, request, received, began)


def _connection(provider: Provider) -> Connection:
    match provider.client:
        case "lean":
            return LeanConnection(provider)
        case "openai":
            from services.agents.openai import OpenAIConnection  # noqa: PLC0415 - takes most of a second, and few ask for it

            return OpenAIConnection(provider)


async def _read(stream: AsyncGenerator[bytes], received: Received) -> None:
    reader = EventReader()
    async for piece in stream:
        for event in reader.feed(piece):
            received.take(event)
        if received.done:
            break
    if rest := reader.rest():
        received.take_rest(rest)
    received.check_whole()


async def _drain(stream: AsyncGenerator[bytes]) -> None:
    """Reads the end of a stream whose answer is complete. Nothing depends on it but the use of its connection."""
    with contextlib.suppress(CallFailed, TimeoutError):
        async with asyncio.timeout(END_SECONDS):
            async for _ in stream:
                pass


def _body(provider: Provider, model: str, request: ModelRequest) -> dict[str, Any]:
    """What the API is sent. The author of an agent has the last word."""
    body: dict[str, Any] = {
        "model": model,
        "messages": request.messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        **request.call,
    }
    if "max_output_tokens" in body:
        body[provider.max_tokens_field] = body.pop("max_output_tokens")
    if request.tools:
        body["tools"] = request.tools
    if request.response_schema is not None:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": request.response_schema},
        }
    return body


def _answer(provider: Provider, model: str, request: ModelRequest, received: Received, began: float) -> ModelAnswer:
    first = received.first_at
    return ModelAnswer(
        provider=provider.name,
        model=received.model or model,
        text=received.text,
        reasoning=received.reasoning,
        tool_calls=received.tool_calls,
        finish_reason=received.finish_reason,
        usage=received.counts(request),
        latency_ms=_milliseconds(began),
        first_token_ms=None if first is None else round((first - began) * 1000),
        estimated=received.usage is None,
    )


def _failure(
    provider: Provider, model: str, request: ModelRequest, received: Received, began: float, failure: CallFailed
) -> ModelFailure:
    return ModelFailure(
        provider=provider.name,
        model=received.model or model,
        code=failure.code,
        message=failure.message,
        retryable=failure.retryable,
        latency_ms=_milliseconds(began),
        retry_after_seconds=failure.retry_after_seconds,
        usage=received.counts(request) if received.first_at is not None else TokenCounts(),
    )


def _milliseconds(began: float) -> int:
    return round((time.monotonic() - began) * 1000)
