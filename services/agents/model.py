"""What a worker asks of a model and what it gets, independent of any client. One call is one attempt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import JsonValue

from schemas.base import TokenCounts
from schemas.completions import ErrorCode


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """A chat completion. `call` has what the agent's author set: `temperature`, `max_output_tokens` and the like."""

    model: str
    """`provider/model`, or a model of the default provider."""
    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] = ()
    call: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    response_schema: Mapping[str, JsonValue] | None = None
    timeout_seconds: float = 120
    tenant_id: str = "default"


@dataclass(frozen=True, slots=True)
class ModelToolCall:
    """A tool that the model asked for; `arguments` is the JSON text that it wrote."""

    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """A whole answer. `estimated`: the provider counted no tokens, so the counts are ours."""

    provider: str
    model: str
    text: str
    reasoning: str
    tool_calls: tuple[ModelToolCall, ...]
    finish_reason: str
    usage: TokenCounts
    latency_ms: int
    first_token_ms: int | None = None
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class ModelFailure:
    """No answer. `retryable`: a later call may succeed, after `retry_after_seconds` where the provider said so."""

    provider: str
    model: str
    code: ErrorCode
    message: str
    retryable: bool
    latency_ms: int
    retry_after_seconds: float | None = None
    usage: TokenCounts = field(default_factory=TokenCounts)


class DeltaSink(Protocol):
    """Takes the pieces of an answer as they arrive. Must not block."""

    def model(self, name: str) -> None:
        """What the provider calls the model that answers."""
        ...

    def text(self, piece: str) -> None: ...

    def reasoning(self, piece: str) -> None: ...

    def tool_arguments(self, index: int, name: str, piece: str) -> None: ...


class ModelClient(Protocol):
    """Asks models. `attempt` never raises but for cancellation, which ends the request."""

    def resolve(self, model: str) -> tuple[str, str]:
        """The provider of `provider/model`, or of a model of the default provider, and the model's name there."""
        ...

    async def attempt(self, request: ModelRequest, sink: DeltaSink) -> ModelAnswer | ModelFailure: ...
