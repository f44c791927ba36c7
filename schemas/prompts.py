"""Topic `prompts`: what the world asks of a thread. Anyone allowed may write here, in any language."""

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import Field

from schemas.agents import ContextOptions, Limits, ModelRef
from schemas.base import NO_FIELDS, NO_ITEMS, Identifier, JsonObject, Model, Name, ThreadEvent, Timestamp, TokenCounts
from schemas.journal import ClearedField, ForkedFrom, MessagePosition, MessageStatus, Role, ThreadStatus
from schemas.parts import Content, TextPart


class TurnOptions(Model):
    """What this turn does otherwise than its agent says."""

    instructions: str | None = None
    model: ModelRef | None = None
    context: ContextOptions | None = None
    response_schema: JsonObject | None = None
    tools: list[Name] | None = None
    call: JsonObject | None = None
    limits: Limits = Limits()


class PromptSubmitted(ThreadEvent):
    """A prompt. `prompt_id` is its idempotency key: the same id twice on a thread is one turn."""

    type: Literal["prompt.submitted"] = "prompt.submitted"
    agent: Name
    content: Content
    user_id: Identifier | None = None
    team_id: Identifier | None = None
    """A group of users of the tenant that what is spent is counted for."""
    prompt_id: Identifier | None = None
    options: TurnOptions = TurnOptions()
    metadata: JsonObject = NO_FIELDS


class TurnCancel(ThreadEvent):
    """Ends a turn that is open or queued; without `turn_id` every turn of the thread."""

    type: Literal["turn.cancel"] = "turn.cancel"
    turn_id: Identifier | None = None
    user_id: Identifier | None = None
    reason: str | None = None


class ToolApproval(ThreadEvent):
    """A person's word on a tool call that waits for approval."""

    type: Literal["tool.approval"] = "tool.approval"
    call_id: Identifier
    approved: bool
    user_id: Identifier | None = None
    reason: str | None = None


class HumanReply(ThreadEvent):
    """The answer of a human agent to the turn that waits for it."""

    type: Literal["human.reply"] = "human.reply"
    turn_id: Identifier
    content: Content
    user_id: Identifier | None = None


class ThreadCreate(ThreadEvent):
    """`forked_from` says where the thread is from; whoever creates it appends the messages.

    A thread that is there already stays whose it is, and takes what nobody has said of it yet.
    """

    type: Literal["thread.create"] = "thread.create"
    forked_from: ForkedFrom | None = None
    user_id: Identifier | None = None
    title: str | None = None
    summary: str | None = None
    metadata: JsonObject = NO_FIELDS


class ThreadUpdate(ThreadEvent):
    """Changes what is given, `metadata` as a whole. What is left out or null stays, but where `cleared` names it: then
    there is none.
    """

    type: Literal["thread.update"] = "thread.update"
    title: str | None = None
    summary: str | None = None
    status: ThreadStatus | None = None
    metadata: JsonObject | None = None
    cleared: list[ClearedField] = NO_ITEMS


class ThreadDelete(ThreadEvent):
    type: Literal["thread.delete"] = "thread.delete"


class NewMessage(Model):
    """A message that is added without a turn, as imports, forks and people do; nothing is metered for it."""

    message_id: Identifier | None = None
    role: Role
    status: MessageStatus = "success"
    content: Content
    user_id: Identifier | None = None
    agent: Name | None = None
    agent_version: str | None = None
    provider: str | None = None
    model: str | None = None
    usage: TokenCounts | None = None
    latency_ms: int | None = None
    finish_reason: str | None = None
    metadata: JsonObject = NO_FIELDS
    created_at: Timestamp | None = None
    """When it was said: not before 1970, and not more than 5 minutes from now. None: now."""


class MessagesAppend(ThreadEvent):
    type: Literal["messages.append"] = "messages.append"
    messages: Annotated[list[NewMessage], Field(min_length=1, max_length=1000)]


class MessagesDelete(ThreadEvent):
    """By ids, by positions, or both. One position may be left out; both are inclusive.

    By position it removes what is there when it is carried out, however many that are; without any of them nothing.
    """

    type: Literal["messages.delete"] = "messages.delete"
    message_ids: Annotated[list[Identifier], Field(max_length=1000)] = NO_ITEMS
    from_position: MessagePosition | None = None
    to_position: MessagePosition | None = None


PromptsEvent = Annotated[
    PromptSubmitted
    | TurnCancel
    | ToolApproval
    | HumanReply
    | ThreadCreate
    | ThreadUpdate
    | ThreadDelete
    | MessagesAppend
    | MessagesDelete,
    Field(discriminator="type"),
]

_TURN = "01990000-0000-7000-8000-000000000001"
EXAMPLES = [
    PromptSubmitted(thread_id="t-1", agent="assistant", content="hello"),
    TurnCancel(thread_id="t-1", turn_id=_TURN, reason="changed my mind"),
    ToolApproval(thread_id="t-1", call_id="01990000-0000-7000-8000-000000000002", approved=True, user_id="u-1"),
    HumanReply(thread_id="t-1", turn_id=_TURN, content=[TextPart(text="On my way.")], user_id="u-2"),
    ThreadCreate(thread_id="t-1", user_id="u-1", title="Plans"),
    ThreadUpdate(thread_id="t-1", title="Plans for Monday", status="archived", cleared=["summary"]),
    ThreadDelete(thread_id="t-1"),
    MessagesAppend(
        thread_id="t-1",
        messages=[NewMessage(role="user", content="imported", created_at=datetime(2020, 1, 1, tzinfo=UTC))],
    ),
    MessagesDelete(thread_id="t-1", message_ids=["01990000-0000-7000-8000-000000000003"]),
]
