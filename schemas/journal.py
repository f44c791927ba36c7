"""Topic `messages`: the journal of every thread, in the order in which things happened."""

from typing import Annotated, Literal

from pydantic import Field

from schemas.base import (
    GROWING,
    NO_FIELDS,
    NO_ITEMS,
    Identifier,
    JsonObject,
    Model,
    Name,
    ThreadEvent,
    ThreadId,
    Timestamp,
    TokenCounts,
)
from schemas.parts import Part, TextPart

Role = Literal["user", "assistant", "tool", "system"]
MessageStatus = Literal["pending", "streaming", "success", "failed", "cancelled"]
ThreadStatus = Literal["active", "archived"]
TurnOutcome = Literal["completed", "failed", "cancelled"]


class MessageAdded(ThreadEvent):
    """A message. `turn_id` and `step` say what it belongs to; a user's message has step 0."""

    type: Literal["message.added"] = "message.added"
    message_id: Identifier
    turn_id: Identifier | None = None
    step: int = 0
    role: Role
    status: MessageStatus = "success"
    parts: list[Part]
    user_id: Identifier | None = None
    agent: Name | None = None
    agent_version: str | None = None
    provider: str | None = None
    model: str | None = None
    usage: TokenCounts | None = None
    latency_ms: int | None = None
    finish_reason: str | None = None
    metadata: JsonObject = NO_FIELDS
    created_at: Timestamp
    appended_at: Timestamp | None = None
    """When it was written, where `created_at` is what was said of it."""


LAST_POSITION = 2**53
"""No offset of Kafka gets beyond, where a number is not the same to every reader of JSON."""

MessagePosition = Annotated[int, Field(ge=0, le=LAST_POSITION)]
"""Where a message is in its thread: the offset of its event."""


class MessageDeleted(ThreadEvent):
    """Messages by their ids, and those at positions before this event, both inclusive; one of them may be open."""

    type: Literal["message.deleted"] = "message.deleted"
    message_ids: list[Identifier]
    from_position: MessagePosition | None = None
    to_position: MessagePosition | None = None
    deleted_at: Timestamp


class ForkedFrom(Model):
    """Where a thread is from: it began with the messages of that thread, up to that message or all there were."""

    thread_id: ThreadId
    message_id: Identifier | None = None


class ThreadCreated(ThreadEvent):
    """Of a thread that is there already it says only what nobody has said of it yet: it stays whose it is."""

    type: Literal["thread.created"] = "thread.created"
    forked_from: ForkedFrom | None = None
    user_id: Identifier | None = None
    title: str | None = None
    summary: str | None = None
    metadata: JsonObject = NO_FIELDS
    created_at: Timestamp


ClearedField = Annotated[Literal["title", "summary", "metadata"], GROWING]
"""What of a thread can be taken back."""


class ThreadUpdated(ThreadEvent):
    """Carries what changed. A field that is null stays as it is, but where `cleared` names it: then there is none."""

    type: Literal["thread.updated"] = "thread.updated"
    title: str | None = None
    summary: str | None = None
    status: ThreadStatus | None = None
    metadata: JsonObject | None = None
    cleared: list[ClearedField] = NO_ITEMS
    updated_at: Timestamp


class ThreadDeleted(ThreadEvent):
    type: Literal["thread.deleted"] = "thread.deleted"
    deleted_at: Timestamp


class TurnOpened(ThreadEvent):
    """A prompt became a turn. A thread that was never created exists from its first turn on."""

    type: Literal["turn.opened"] = "turn.opened"
    turn_id: Identifier
    prompt_id: Identifier
    user_id: Identifier | None = None
    agent: Name
    agent_version: str
    opened_at: Timestamp


class TurnWaiting(ThreadEvent):
    """The turn goes on when a person approves a tool call or replies."""

    type: Literal["turn.waiting"] = "turn.waiting"
    turn_id: Identifier
    step: int
    reason: Literal["approval", "human"]
    call_ids: list[Identifier] = NO_ITEMS
    waiting_since: Timestamp


class TurnClosed(ThreadEvent):
    type: Literal["turn.closed"] = "turn.closed"
    turn_id: Identifier
    outcome: TurnOutcome
    steps: int
    closed_at: Timestamp


class PromptDropped(ThreadEvent):
    """A prompt that waited for its thread was cancelled, or nobody could answer it any more when its time came.

    Its turn never opened and never will: the same prompt id again is no new turn.
    """

    type: Literal["prompt.dropped"] = "prompt.dropped"
    turn_id: Identifier
    prompt_id: Identifier
    user_id: Identifier | None = None
    agent: Name
    dropped_at: Timestamp


JournalEvent = Annotated[
    MessageAdded
    | MessageDeleted
    | ThreadCreated
    | ThreadUpdated
    | ThreadDeleted
    | TurnOpened
    | TurnWaiting
    | TurnClosed
    | PromptDropped,
    Field(discriminator="type"),
]

_TURN = "01990000-0000-7000-8000-000000000001"
_MESSAGE = "01990000-0000-7000-8000-000000000003"
_AT = "2026-01-01T12:00:00.000000Z"
EXAMPLES = [
    MessageAdded.model_validate(
        {
            "thread_id": "t-1",
            "message_id": _MESSAGE,
            "turn_id": _TURN,
            "step": 1,
            "role": "assistant",
            "parts": [TextPart(text="Hello!")],
            "agent": "assistant",
            "agent_version": "0123456789ab",
            "provider": "default",
            "model": "smollm2-135m",
            "usage": {"input_tokens": 12, "output_tokens": 3},
            "created_at": _AT,
        }
    ),
    MessageDeleted.model_validate({"thread_id": "t-1", "message_ids": [_MESSAGE], "deleted_at": _AT}),
    ThreadCreated.model_validate({"thread_id": "t-1", "title": "Plans", "created_at": _AT}),
    ThreadUpdated.model_validate(
        {"thread_id": "t-1", "title": "Plans for Monday", "cleared": ["summary"], "updated_at": _AT}
    ),
    ThreadDeleted.model_validate({"thread_id": "t-1", "deleted_at": _AT}),
    TurnOpened.model_validate(
        {
            "thread_id": "t-1",
            "turn_id": _TURN,
            "prompt_id": "order-17",
            "agent": "assistant",
            "agent_version": "0123456789ab",
            "opened_at": _AT,
        }
    ),
    TurnWaiting.model_validate(
        {"thread_id": "t-1", "turn_id": _TURN, "step": 1, "reason": "approval", "waiting_since": _AT}
    ),
    TurnClosed.model_validate(
        {"thread_id": "t-1", "turn_id": _TURN, "outcome": "completed", "steps": 1, "closed_at": _AT}
    ),
    PromptDropped.model_validate(
        {"thread_id": "t-1", "turn_id": _TURN, "prompt_id": "order-17", "agent": "assistant", "dropped_at": _AT}
    ),
]
