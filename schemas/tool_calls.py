"""Topics `tool-calls` and `tool-results`: the work that agents hand out, and what comes back."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from schemas.base import Identifier, JsonObject, Name, ThreadEvent, Timestamp


class ToolCalled(ThreadEvent):
    """A call. `call_id` is the idempotency key: a call may be delivered twice, never with two ids."""

    type: Literal["tool.called"] = "tool.called"
    call_id: Identifier
    turn_id: Identifier
    step: int
    name: Name
    arguments: JsonObject
    user_id: Identifier | None = None
    team_id: Identifier | None = None
    agent: Name
    called_at: Timestamp
    deadline_at: Timestamp
    """After this time the turn goes on without the result."""


class ToolReturned(ThreadEvent):
    type: Literal["tool.returned"] = "tool.returned"
    call_id: Identifier
    result: JsonValue = None
    latency_ms: int | None = None


class ToolFailed(ThreadEvent):
    """The call will give no result; the model is told why."""

    type: Literal["tool.failed"] = "tool.failed"
    call_id: Identifier
    code: str = "error"
    message: str
    latency_ms: int | None = None


class ToolProgress(ThreadEvent):
    type: Literal["tool.progress"] = "tool.progress"
    call_id: Identifier
    message: str | None = None
    fraction: float | None = Field(default=None, ge=0, le=1)


ToolCallEvent = ToolCalled
ToolResultEvent = Annotated[ToolReturned | ToolFailed | ToolProgress, Field(discriminator="type")]

_CALL = "01990000-0000-7000-8000-000000000002"
CALL_EXAMPLES = [
    ToolCalled.model_validate(
        {
            "thread_id": "t-1",
            "call_id": _CALL,
            "turn_id": "01990000-0000-7000-8000-000000000001",
            "step": 1,
            "name": "get_weather",
            "arguments": {"city": "Paris"},
            "agent": "assistant",
            "called_at": "2026-01-01T12:00:00.000000Z",
            "deadline_at": "2026-01-01T12:01:00.000000Z",
        }
    )
]
RESULT_EXAMPLES = [
    ToolReturned(thread_id="t-1", call_id=_CALL, result={"celsius": 21}, latency_ms=12),
    ToolFailed(thread_id="t-1", call_id=_CALL, code="timeout", message="no answer within 60 s"),
    ToolProgress(thread_id="t-1", call_id=_CALL, message="half way", fraction=0.5),
]
