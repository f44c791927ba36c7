"""Topic `turns`: the work that is left, compacted. What a new owner of a partition reads to go on."""

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import Field

from schemas.base import NO_FIELDS, Identifier, JsonObject, Model, Money, Name, ThreadEvent, Timestamp, TokenCounts
from schemas.parts import Content
from schemas.prompts import TurnOptions


class PendingCall(Model):
    """A tool call of the current step that has no result yet."""

    call_id: Identifier
    provider_call_id: str
    name: Name
    arguments: JsonObject
    state: Literal["approval", "running"]
    queue: Name | None = None
    deadline_at: Timestamp


class Thinking(Model):
    """A model call is in flight, or waits until `retry_at`. `model` counts through the agent's fallbacks."""

    phase: Literal["thinking"] = "thinking"
    attempt: int
    tries: int = 1
    """How often the present model was asked in this step."""
    model: int = 0
    started_at: Timestamp
    retry_at: Timestamp | None = None


class Calling(Model):
    """Tools were called; the next step begins when all of them are answered."""

    phase: Literal["calling"] = "calling"
    calls: list[PendingCall]


class AwaitingHuman(Model):
    """A human agent has the word."""

    phase: Literal["human"] = "human"


Phase = Annotated[Thinking | Calling | AwaitingHuman, Field(discriminator="phase")]


class ActiveTurn(Model):
    """The turn that a thread is in."""

    turn_id: Identifier
    prompt_id: Identifier
    user_id: Identifier | None = None
    team_id: Identifier | None = None
    agent: Name
    agent_version: str
    options: TurnOptions = TurnOptions()
    opened_at: Timestamp
    deadline_at: Timestamp
    step: int
    """The step that runs now, counted from 1."""
    usage: TokenCounts = TokenCounts()
    cost: Money = Decimal(0)
    """What its model calls have cost in USD, as far as anybody knows; kept where the cost of the turn is capped."""
    context_tokens: int = 0
    """Tokens that its next model call is sent at least: those of its own messages, estimated, or what its last step has
    counted."""
    traceparent: str | None = None
    """W3C trace context that the prompt came with."""
    phase: Phase


class QueuedPrompt(Model):
    """A prompt whose turn opens when the thread is free."""

    sequence: int
    turn_id: Identifier
    prompt_id: Identifier
    user_id: Identifier | None = None
    team_id: Identifier | None = None
    agent: Name
    content: Content
    options: TurnOptions = TurnOptions()
    metadata: JsonObject = NO_FIELDS
    traceparent: str | None = None


class TurnState(ThreadEvent):
    """State of a thread that has work left. Key: the thread; the tombstone says that it is idle."""

    type: Literal["turn.state"] = "turn.state"
    turn: ActiveTurn


class TurnQueued(ThreadEvent):
    """One queued prompt of a busy thread, a record of its own so that a long queue costs no more a turn."""

    type: Literal["turn.queued"] = "turn.queued"
    prompt: QueuedPrompt


TurnStateEvent = Annotated[TurnState | TurnQueued, Field(discriminator="type")]

_TURN = {
    "turn_id": "01990000-0000-7000-8000-000000000001",
    "prompt_id": "order-17",
    "agent": "assistant",
}
EXAMPLES = [
    TurnState.model_validate(
        {
            "thread_id": "t-1",
            "turn": {
                **_TURN,
                "agent_version": "0123456789ab",
                "opened_at": "2026-01-01T12:00:00.000000Z",
                "deadline_at": "2026-01-01T12:10:00.000000Z",
                "step": 1,
                "phase": {"phase": "thinking", "attempt": 1, "started_at": "2026-01-01T12:00:00.000000Z"},
            },
        }
    ),
    TurnQueued.model_validate({"thread_id": "t-1", "prompt": {**_TURN, "sequence": 7, "content": "and tomorrow?"}}),
]
