"""An answer while it is put together from the chunks of a chat completion."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic_core import from_json

from schemas.base import TokenCounts
from schemas.tokens import estimated_tokens
from services.agents.chat import sent_tokens
from services.agents.failures import CallFailed, message_of
from services.agents.model import DeltaSink, ModelRequest, ModelToolCall

MOST_CHARACTERS = 600_000
"""Of an answer, with its reasoning and its tool calls. Six times as many bytes, the most that JSON makes of them, still
fit in a record; the longest answers that models give today have about 500,000."""


@dataclass(slots=True)
class _Call:
    call_id: str = ""
    name: str = ""
    arguments: str = ""


class Received:
    """What has arrived of an answer; each piece goes on to the sink."""

    def __init__(self, sink: DeltaSink) -> None:
        self._sink = sink
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, _Call] = {}
        self._characters = 0
        self._finish_reason: str | None = None
        self.done = False
        """Whether the stream has said that nothing follows."""
        self.usage: TokenCounts | None = None
        self.model: str | None = None
        self.first_at: float | None = None
        """When the first token came, by the monotonic clock."""

    def take(self, event: bytes) -> None:
        """Adds the data of one event. One without any keeps a connection alive and says nothing.

        Raises:
            CallFailed: the event is an error, no chunk of an answer, or makes it longer than `MOST_CHARACTERS`.
        """
        text = event.strip()
        if text == b"[DONE]":
            self.done = True
        if self.done or not text:
            return
        try:
            self._take_chunk(parse_chunk(event))
        except (AttributeError, TypeError, ValueError) as error:
            shown = event[:200].decode(errors="replace")
            raise CallFailed("malformed_response", f"not a chunk of an answer: {shown} ({error})") from error

    def take_rest(self, rest: bytes) -> None:
        """Adds an event that came without its end, where it is whole. Else it belongs to a stream that was cut."""
        try:
            parse_chunk(rest)
        except ValueError:
            self.done = self.done or rest.strip() == b"[DONE]"
        else:
            self.take(rest)

    def check_whole(self) -> None:
        """Raises CallFailed when the stream is over and the answer isn't, or when there is none."""
        if self._finish_reason is None and not self.done:
            raise CallFailed("stream_cut", "the stream ended before the answer did")
        if self._finish_reason is None and not self._text and not self._calls:
            raise CallFailed("malformed_response", "the answer is empty and gives no finish reason")

    @property
    def text(self) -> str:
        return "".join(self._text)

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)

    @property
    def finish_reason(self) -> str:
        return self._finish_reason or "stop"

    @property
    def tool_calls(self) -> tuple[ModelToolCall, ...]:
        """In the provider's order. One without an id gets its number."""
        return tuple(
            ModelToolCall(call.call_id or f"call_{index}", call.name, call.arguments)
            for index, call in sorted(self._calls.items())
        )

    def counts(self, request: ModelRequest) -> TokenCounts:
        """The provider's counts, or an estimate by length."""
        if self.usage is not None:
            return self.usage
        return TokenCounts(input_tokens=sent_tokens(request.messages), output_tokens=estimated_tokens(self._characters))

    def _take_chunk(self, chunk: Mapping[str, Any]) -> None:
        if error := chunk.get("error"):
            raise CallFailed("provider_error", f"the provider broke the stream off: {message_of(error)}")
        if (model := chunk.get("model")) and model != self.model:
            self.model = _text(model)
            self._sink.model(self.model)
        if usage := chunk.get("usage"):
            self.usage = _token_counts(usage)
        for choice in chunk.get("choices") or ():
            if delta := choice.get("delta"):
                self._take_delta(delta)
            if reason := choice.get("finish_reason"):
                self._finish_reason = _text(reason)

    def _take_delta(self, delta: Mapping[str, Any]) -> None:
        if self.first_at is None and len(delta) > ("role" in delta):
            self.first_at = time.monotonic()
        if piece := delta.get("content"):
            self._text.append(_text(piece))
            self._sink.text(piece)
            self._count(piece)
        if piece := delta.get("reasoning_content") or delta.get("reasoning"):
            self._reasoning.append(_text(piece))
            self._sink.reasoning(piece)
            self._count(piece)
        for position, part in enumerate(delta.get("tool_calls") or ()):
            index = part.get("index")
            self._take_call(position if index is None else int(index), part)

    def _take_call(self, index: int, part: Mapping[str, Any]) -> None:
        function: Mapping[str, Any] = part.get("function") or {}
        name, arguments = _text(function.get("name") or ""), _text(function.get("arguments") or "")
        call = self._calls.setdefault(index, _Call())
        call.call_id = _text(part.get("id") or call.call_id)
        call.name += name
        call.arguments += arguments
        self._sink.tool_arguments(index, name, arguments)
        self._count(name + arguments)

    def _count(self, piece: str) -> None:
        """After the piece is kept: what has arrived was spent."""
        self._characters += len(piece)
        if self._characters > MOST_CHARACTERS:
            message = f"the answer has more than {MOST_CHARACTERS} characters, the most that a message can carry"
            raise CallFailed("malformed_response", message, retryable=False)


def parse_chunk(event: bytes) -> Any:
    """JSON as providers write it: also NaN, and bytes that are no UTF-8, which the HTML standard (9.2.5) replaces.

    Raises:
        ValueError: it is no JSON, or text in it is no Unicode (half of a surrogate pair).
    """
    try:
        return orjson.loads(event)
    except ValueError:
        return from_json(event.decode(errors="replace"))


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    raise TypeError(f"expected text, got {type(value).__name__}")


def _token_counts(usage: Mapping[str, Any]) -> TokenCounts:
    prompt: Mapping[str, Any] = usage.get("prompt_tokens_details") or {}
    completion: Mapping[str, Any] = usage.get("completion_tokens_details") or {}
    return TokenCounts(
        input_tokens=usage.get("prompt_tokens") or 0,
        cached_input_tokens=prompt.get("cached_tokens") or 0,
        output_tokens=usage.get("completion_tokens") or 0,
        reasoning_tokens=completion.get("reasoning_tokens") or 0,
    )
