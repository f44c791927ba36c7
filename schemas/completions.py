"""Topic `completions`: exactly one terminal event for every accepted prompt."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from schemas.base import GROWING, Identifier, Model, Name, ThreadEvent, Timestamp, TokenCounts

ErrorCode = Annotated[
    Literal[
        "auth",
        "bad_request",
        "budget",
        "busy",
        "context_handler",
        "context_length",
        "deadline",
        "malformed_response",
        "max_cost",
        "max_steps",
        "model_not_found",
        "provider_error",
        "rate_limited",
        "response_schema",
        "stream_cut",
        "timeout",
        "unknown_agent",
        "unknown_tool",
        "unreachable",
    ],
    GROWING,
]
"""Why a turn failed or was rejected."""


class TurnError(Model):
    """`retryable` says whether the same prompt may well succeed later."""

    code: ErrorCode
    message: str
    retryable: bool


class _Terminal(ThreadEvent):
    turn_id: Identifier
    prompt_id: Identifier
    user_id: Identifier | None = None
    agent: Name
    completed_at: Timestamp


class _Closed(_Terminal):
    agent_version: str
    text: str = ""
    object: JsonValue = None
    """The answer read as JSON where the turn had a response schema."""
    finish_reason: str | None = None
    steps: int
    """How many model steps were committed."""
    usage: TokenCounts
    """Sum of the committed steps."""
    opened_at: Timestamp


class TurnCompleted(_Closed):
    type: Literal["turn.completed"] = "turn.completed"


class TurnFailed(_Closed):
    type: Literal["turn.failed"] = "turn.failed"
    error: TurnError


class TurnCancelled(_Closed):
    type: Literal["turn.cancelled"] = "turn.cancelled"
    reason: str | None = None


class TurnRejected(_Terminal):
    """The prompt was well formed and is not going to be a turn."""

    type: Literal["turn.rejected"] = "turn.rejected"
    error: TurnError


CompletionEvent = Annotated[TurnCompleted | TurnFailed | TurnCancelled | TurnRejected, Field(discriminator="type")]

_TERMINAL = {
    "thread_id": "t-1",
    "turn_id": "01990000-0000-7000-8000-000000000001",
    "prompt_id": "order-17",
    "agent": "assistant",
    "completed_at": "2026-01-01T12:00:02.000000Z",
}
_CLOSED = {
    **_TERMINAL,
    "agent_version": "0123456789ab",
    "steps": 1,
    "usage": {"input_tokens": 12, "output_tokens": 3},
    "opened_at": "2026-01-01T12:00:00.000000Z",
}
EXAMPLES = [
    TurnCompleted.model_validate({**_CLOSED, "text": "Hello!", "finish_reason": "stop"}),
    TurnFailed.model_validate(
        {**_CLOSED, "error": TurnError(code="deadline", message="600 s are over", retryable=True)}
    ),
    TurnCancelled.model_validate({**_CLOSED, "reason": "changed my mind"}),
    TurnRejected.model_validate(
        {**_TERMINAL, "error": TurnError(code="unknown_agent", message="no agent 'x'", retryable=False)}
    ),
]
