"""Models behind the chat completions API, through the `openai` client on its aiohttp transport.

Streams are read as raw lines: parsing each chunk into the client's models costs three times the CPU.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, cast

import openai

from schemas.base import TokenCounts
from schemas.completions import ErrorCode
from services.agents.fairness import FairLimiter
from services.agents.model import DeltaSink, ModelAnswer, ModelFailure, ModelRequest, ModelToolCall
from services.agents.providers import Provider, Providers

CHARACTERS_PER_TOKEN = 4
"""Rule of thumb of OpenAI's documentation for English text, used only where a provider counts no tokens."""


KEPT_CONNECTIONS = 100
"""Idle connections to a provider that wait for the next call."""

Limits = type(openai.DEFAULT_CONNECTION_LIMITS)
"""The client's own: it allows 1,000 connections unless it is told otherwise, whatever the provider's concurrency."""

MOST_CHARACTERS = 600_000
"""Of an answer, with its reasoning and its tool calls. Six times as many bytes, the most that JSON makes of them, still
fit in a record; the longest answers that models give today have about 500,000."""


class _StreamError(Exception):
    def __init__(self, code: ErrorCode, message: str, *, retryable: bool = True) -> None:
        super().__init__(message)
        self.code: ErrorCode = code
        self.retryable = retryable


class _Received:
    """What has arrived of an answer."""

    def __init__(self, sink: DeltaSink) -> None:
        self._sink = sink
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.calls: dict[int, dict[str, str]] = {}
        self.finish_reason: str | None = None
        self.usage: TokenCounts | None = None
        self.model: str | None = None
        self.first_at: float | None = None
        self._characters = 0

    def take(self, chunk: Mapping[str, Any]) -> None:
        if "error" in chunk:
            raise _StreamError("provider_error", f"the provider broke the stream off: {_message(chunk['error'])}")
        self.model = chunk.get("model") or self.model
        if usage := chunk.get("usage"):
            self.usage = _token_counts(usage)
        for choice in chunk.get("choices") or ():
            self._take_delta(choice.get("delta") or {})
            self.finish_reason = choice.get("finish_reason") or self.finish_reason

    def _take_delta(self, delta: Mapping[str, Any]) -> None:
        if self.first_at is None and len(delta) > ("role" in delta):
            self.first_at = time.monotonic()
        if piece := delta.get("content"):
            self.text.append(piece)
            self._sink.text(piece)
        if piece := delta.get("reasoning_content") or delta.get("reasoning"):
            self.reasoning.append(piece)
            self._sink.reasoning(piece)
        for position, part in enumerate(delta.get("tool_calls") or ()):
            index = part.get("index", position)
            call = self.calls.setdefault(index, {"id": "", "name": "", "arguments": ""})
            function = part.get("function") or {}
            call["id"] = part.get("id") or call["id"]
            call["name"] += function.get("name") or ""
            call["arguments"] += function.get("arguments") or ""
            self._sink.tool_arguments(index, function.get("name") or "", function.get("arguments") or "")
        self._characters += _length(delta)
        if self._characters > MOST_CHARACTERS:
            message = f"the answer has more than {MOST_CHARACTERS} characters, the most that a message can carry"
            raise _StreamError("malformed_response", message, retryable=False)

    def counts(self, request: ModelRequest) -> TokenCounts:
        """The provider's counts, or an estimate by length."""
        if self.usage is not None:
            return self.usage
        sent = sum(len(str(message.get("content") or "")) for message in request.messages)
        calls = sum(len(call["arguments"]) for call in self.calls.values())
        got = sum(map(len, self.text)) + sum(map(len, self.reasoning)) + calls
        return TokenCounts(input_tokens=-(-sent // CHARACTERS_PER_TOKEN), output_tokens=-(-got // CHARACTERS_PER_TOKEN))


class OpenAIModels:
    """One client a provider; retries are decided elsewhere, so the client itself makes none."""

    def __init__(self, providers: Providers) -> None:
        self._providers = providers
        self._clients: dict[str, openai.AsyncOpenAI] = {}
        self._limiters: dict[str, FairLimiter] = {}

    async def start(self) -> None:
        for provider in self._providers:
            self._clients[provider.name] = openai.AsyncOpenAI(
                base_url=provider.base_url,
                api_key=provider.api_key.get_secret_value() or "none",
                max_retries=0,
                timeout=provider.timeout_seconds,
                http_client=openai.DefaultAioHttpClient(
                    timeout=provider.timeout_seconds,
                    limits=Limits(max_connections=provider.concurrency, max_keepalive_connections=KEPT_CONNECTIONS),
                ),
            )
            self._limiters[provider.name] = FairLimiter(provider.concurrency)

    async def stop(self) -> None:
        for client in self._clients.values():
            await client.close()

    async def reachable(self) -> str | None:
        """None when the default provider answers, else why not. Any HTTP answer counts: not every one lists models."""
        client = self._clients[self._providers.default.name]
        try:
            async with asyncio.timeout(2):
                await client.models.list()
        except openai.APIStatusError as error:
            return None if error.status_code not in (401, 403) else f"model provider: {error.status_code}"
        except (openai.APIConnectionError, TimeoutError):
            return f"no model answers at {self._providers.default.base_url}"
        except Exception:  # noqa: BLE001 - an odd list of models says nothing about completions
            return None
        return None

    async def attempt(self, request: ModelRequest, sink: DeltaSink) -> ModelAnswer | ModelFailure:
        """One streamed chat completion. Never raises but for cancellation, which closes the stream."""
        provider, model = self._providers.resolve(request.model)
        received = _Received(sink)
        began = time.monotonic()
        try:
            # Waiting for a slot is no attempt of the model: the turn's deadline ends it, not the call's time limit.
            async with self._limiters[provider.name].slot(request.tenant_id):
                began = time.monotonic()
                async with asyncio.timeout(min(request.timeout_seconds, provider.timeout_seconds)):
                    await self._stream(provider, model, request, received)
        except _StreamError as error:
            failure: tuple[ErrorCode, str, bool, float | None] = (error.code, str(error), error.retryable, None)
        except openai.APIStatusError as error:
            failure = _status_failure(error)
        except (TimeoutError, openai.APITimeoutError) as error:
            if (refused := _refused(error)) is not None:
                failure = ("unreachable", f"{provider.base_url} does not answer: {refused}", True, None)
            else:
                failure = ("timeout", f"no answer within {request.timeout_seconds:g} s", True, None)
        except (openai.APIConnectionError, OSError) as error:
            failure = ("unreachable", f"{provider.base_url} does not answer: {error}", True, None)
        except Exception as error:
            if not type(error).__module__.startswith(("aiohttp", "httpx", "openai")):
                raise
            failure = ("stream_cut", f"the stream broke off: {error!r}", True, None)
        else:
            return _answer(provider, model, request, received, began)
        code, message, retryable, retry_after = failure
        spent = received.counts(request) if received.first_at is not None else TokenCounts()
        return ModelFailure(provider.name, model, code, message, retryable, _milliseconds(began), retry_after, spent)

    async def _stream(self, provider: Provider, model: str, request: ModelRequest, received: _Received) -> None:
        create: Any = self._clients[provider.name].chat.completions.with_streaming_response.create
        done = False
        async with create(
            model=model,
            messages=request.messages,
            stream=True,
            stream_options={"include_usage": True},
            extra_body=_parameters(provider, request),
        ) as response:
            async for line in _data_lines(response.iter_lines()):
                if line == "[DONE]":
                    done = True
                    break
                try:
                    chunk = json.loads(line)
                except ValueError as error:
                    raise _StreamError("malformed_response", f"a chunk of the answer is not JSON: {error}") from error
                try:
                    received.take(chunk)
                except (AttributeError, TypeError, ValueError) as error:
                    raise _StreamError("malformed_response", f"a chunk has another shape: {line[:200]}") from error
        if received.finish_reason is None and not done:
            raise _StreamError("stream_cut", "the stream ended before the answer did")
        if received.finish_reason is None and not received.text and not received.calls:
            raise _StreamError("malformed_response", "the answer is empty and gives no finish reason")


def _length(delta: Mapping[str, Any]) -> int:
    """Characters of the texts that a piece adds."""
    functions = [part.get("function") or {} for part in delta.get("tool_calls") or ()]
    texts = [delta.get("content"), delta.get("reasoning_content") or delta.get("reasoning")]
    texts += [function.get(name) for function in functions for name in ("name", "arguments")]
    return sum(len(text) for text in texts if text)


async def _data_lines(lines: AsyncIterator[str]) -> AsyncIterator[str]:
    async for line in lines:
        if line.startswith("data:"):
            yield line[5:].strip()


def _parameters(provider: Provider, request: ModelRequest) -> dict[str, Any]:
    parameters: dict[str, Any] = dict(request.call)
    if "max_output_tokens" in parameters:
        parameters[provider.max_tokens_field] = parameters.pop("max_output_tokens")
    if request.tools:
        parameters["tools"] = list(request.tools)
    if request.response_schema is not None:
        parameters["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": dict(request.response_schema)},
        }
    return parameters


def _answer(provider: Provider, model: str, request: ModelRequest, received: _Received, began: float) -> ModelAnswer:
    first = received.first_at
    calls = tuple(
        ModelToolCall(call["id"] or f"call_{index}", call["name"], call["arguments"])
        for index, call in sorted(received.calls.items())
    )
    return ModelAnswer(
        provider=provider.name,
        model=received.model or model,
        text="".join(received.text),
        reasoning="".join(received.reasoning),
        tool_calls=calls,
        finish_reason=received.finish_reason or "stop",
        usage=received.counts(request),
        latency_ms=_milliseconds(began),
        first_token_ms=None if first is None else round((first - began) * 1000),
        estimated=received.usage is None,
    )


def _refused(error: BaseException) -> OSError | None:
    """The connection that could not be made, where the transport calls that a time-out."""
    cause = error.__cause__ or error.__context__
    if cause is None:
        return None
    if isinstance(cause, OSError) and not isinstance(cause, TimeoutError):
        return cause
    return _refused(cause)


def _status_failure(error: openai.APIStatusError) -> tuple[ErrorCode, str, bool, float | None]:
    status = error.status_code
    message = f"{status}: {_message(error.body)}"
    retry_after = _retry_after(error.response.headers)
    match status:
        case 401 | 403:
            return "auth", message, False, None
        case 404:
            return "model_not_found", message, False, None
        case 429:
            return "rate_limited", message, True, retry_after
        case 408 | 409:
            return "provider_error", message, True, retry_after
        case 413:
            return "context_length", message, False, None
        case _ if status >= 500:
            return "provider_error", message, True, retry_after
        case _ if "context_length" in message or "maximum context" in message:
            return "context_length", message, False, None
        case _:
            return "bad_request", message, False, None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait: `retry-after-ms`, or `Retry-After` in seconds or as a date (RFC 9110, 10.2.3)."""
    try:
        if milliseconds := headers.get("retry-after-ms"):
            return float(milliseconds) / 1000
        value = headers.get("retry-after")
        if value is None:
            return None
        try:
            return float(value)
        except ValueError:
            return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _message(error: object) -> str:
    """What the provider says, short; bodies may be anything."""
    for field in ("error", "message"):
        if isinstance(error, dict):
            error = cast("dict[str, object]", error).get(field, cast("object", error))
    return str(error)[:500]


def _token_counts(usage: Mapping[str, Any]) -> TokenCounts:
    prompt: Mapping[str, Any] = usage.get("prompt_tokens_details") or {}
    completion: Mapping[str, Any] = usage.get("completion_tokens_details") or {}
    return TokenCounts(
        input_tokens=usage.get("prompt_tokens") or 0,
        cached_input_tokens=prompt.get("cached_tokens") or 0,
        output_tokens=usage.get("completion_tokens") or 0,
        reasoning_tokens=completion.get("reasoning_tokens") or 0,
    )


def _milliseconds(began: float) -> int:
    return round((time.monotonic() - began) * 1000)
