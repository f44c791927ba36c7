"""From journal events to documents. Pure: what exists is given, what changes comes back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

from pydantic import Field

from schemas.base import Model, TenantId, ThreadId, Timestamp
from schemas.http import MessageView, ThreadView
from schemas.ids import EPOCH
from schemas.journal import (
    JournalEvent,
    MessageAdded,
    MessageDeleted,
    PromptDropped,
    ThreadCreated,
    ThreadDeleted,
    ThreadUpdated,
    TurnClosed,
    TurnOpened,
    TurnWaiting,
)
from schemas.parts import ToolCallPart, text_of
from services.memory.store import Changes, Document, Fields, Find, point_id

TITLE_LENGTH = 80

ABOUT_TOOLS: Fields = {"about": "tools"}
"""Field of a tool's answer, and of a message that does nothing but call tools."""


SAID_OF_A_MESSAGE = sorted(MessageAdded.model_fields.keys() & MessageView.model_fields.keys())


class TurnView(Model):
    """A turn as memory knows it."""

    turn_id: str
    thread_id: ThreadId
    tenant_id: TenantId
    prompt_id: str
    user_id: str | None = None
    agent: str
    status: Literal["open", "waiting", "completed", "failed", "cancelled"] = "open"
    opened_at: Timestamp
    closed_at: Timestamp | None = None


class CallView(Model):
    """Where a tool call belongs."""

    call_id: str
    thread_id: ThreadId
    tenant_id: TenantId
    turn_id: str
    name: str = Field(default="")


def thread_point(tenant_id: str, thread_id: str) -> str:
    return point_id("thread", tenant_id, thread_id)


def message_point(tenant_id: str, thread_id: str, message_id: str) -> str:
    """Of a thread: whoever appends or deletes by an id reaches no other, whose partition has an order of its own."""
    return point_id("message", tenant_id, thread_id, message_id)


def turn_point(tenant_id: str, turn_id: str) -> str:
    return point_id("turn", tenant_id, turn_id)


def call_point(tenant_id: str, call_id: str) -> str:
    return point_id("call", tenant_id, call_id)


def microseconds(at: datetime) -> int:
    """A time as memory orders by it: since 1970, UTC."""
    return (at - EPOCH) // timedelta(microseconds=1)


def points_read(events: Sequence[JournalEvent]) -> list[str]:
    """The documents that `project` needs to see: the threads, and the turns that change."""
    points = {thread_point(event.tenant_id, event.thread_id) for event in events}
    points |= {
        turn_point(event.tenant_id, event.turn_id) for event in events if isinstance(event, TurnWaiting | TurnClosed)
    }
    return sorted(points)


@dataclass(slots=True)
class _Batch:
    existing: Mapping[str, Document]
    upserts: dict[str, Document] = field(default_factory=dict[str, Document])
    deletes: set[str] = field(default_factory=set[str])
    delete_all: list[Find] = field(default_factory=list[Find])
    threads: dict[str, ThreadView] = field(default_factory=dict[str, ThreadView])
    """Those that change. A batch has many messages of a thread, which is read and written once."""

    def thread(self, point: str) -> ThreadView | None:
        body = None if point in self.threads else self.body(point)
        return self.threads.get(point) if body is None else ThreadView.model_validate_json(body)

    def put_thread(self, point: str, thread: ThreadView) -> None:
        self.deletes.discard(point)
        self.threads[point] = thread

    def body(self, point: str) -> str | None:
        document = self.upserts.get(point) or (None if point in self.deletes else self.existing.get(point))
        return document.body if document else None

    def put(self, document: Document) -> None:
        self.deletes.discard(document.point_id)
        self.upserts[document.point_id] = document

    def remove(self, point: str) -> None:
        self.upserts.pop(point, None)
        self.threads.pop(point, None)
        self.deletes.add(point)


def project(events: Sequence[tuple[int, JournalEvent]], existing: Mapping[str, Document]) -> Changes:
    """What a batch of one partition (offset and event, in order) changes. The same batch twice changes nothing more."""
    batch = _Batch(existing)
    for offset, event in events:
        _apply(batch, offset, event)
    upserts = batch.upserts | {point: _thread_document(point, thread) for point, thread in batch.threads.items()}
    return Changes(list(upserts.values()), sorted(batch.deletes), batch.delete_all)


def _apply(batch: _Batch, offset: int, event: JournalEvent) -> None:
    match event:
        case MessageAdded():
            _message_added(batch, offset, event)
        case MessageDeleted():
            for message_id in event.message_ids:
                batch.remove(message_point(event.tenant_id, event.thread_id, message_id))
        case ThreadCreated():
            _put_thread(
                batch, event, event.created_at, _given(event, "forked_from", "user_id", "title", "summary", "metadata")
            )
        case ThreadUpdated():
            _put_thread(batch, event, event.updated_at, _given(event, "title", "summary", "status", "metadata"))
        case ThreadDeleted():
            _thread_deleted(batch, event)
        case TurnOpened():
            _put_thread(batch, event, event.opened_at, {}, first_user=event.user_id, agent=event.agent)
            turn = TurnView.model_validate(event.model_dump(exclude={"type"}))
            _put_turn(batch, turn)
        case PromptDropped():
            ended = {"status": "cancelled", "opened_at": event.dropped_at, "closed_at": event.dropped_at}
            _put_turn(batch, TurnView.model_validate(event.model_dump(exclude={"type", "dropped_at"}) | ended))
        case TurnWaiting() | TurnClosed():
            body = batch.body(turn_point(event.tenant_id, event.turn_id))
            if body is not None:
                turn = TurnView.model_validate_json(body)
                changed: dict[str, Any] = (
                    {"status": event.outcome, "closed_at": event.closed_at}
                    if isinstance(event, TurnClosed)
                    else {"status": "waiting"}
                )
                _put_turn(batch, turn.model_copy(update=changed))


def _message_added(batch: _Batch, offset: int, event: MessageAdded) -> None:
    text = text_of(event.parts)
    said = {name: getattr(event, name) for name in SAID_OF_A_MESSAGE}
    view = MessageView(**said, position=offset, text=text)
    fields: dict[str, str | int] = {
        "thread_id": event.thread_id,
        "position": offset,
        "role": event.role,
        "status": event.status,
        "created": microseconds(event.created_at),
    }
    if _only_about_tools(event):
        fields |= ABOUT_TOOLS
    for name in ("turn_id", "user_id", "agent"):
        if (value := getattr(event, name)) is not None:
            fields[name] = value
    batch.put(
        Document(
            message_point(event.tenant_id, event.thread_id, event.message_id),
            "message",
            event.tenant_id,
            fields,
            view.model_dump_json(exclude_none=True),
            text,
        )
    )
    title = text.strip().split("\n")[0][:TITLE_LENGTH] if event.role == "user" else None
    _put_thread(batch, event, event.created_at, {}, first_user=event.user_id, first_title=title, agent=event.agent)
    for part in event.parts:
        if isinstance(part, ToolCallPart) and event.turn_id is not None:
            call = CallView(
                call_id=part.call_id,
                thread_id=event.thread_id,
                tenant_id=event.tenant_id,
                turn_id=event.turn_id,
                name=part.name,
            )
            batch.put(
                Document(
                    call_point(event.tenant_id, part.call_id),
                    "call",
                    event.tenant_id,
                    {"thread_id": event.thread_id, "turn_id": event.turn_id},
                    call.model_dump_json(),
                )
            )


def _only_about_tools(event: MessageAdded) -> bool:
    return event.role == "tool" or (
        not text_of(event.parts) and any(isinstance(part, ToolCallPart) for part in event.parts)
    )


def _thread_deleted(batch: _Batch, event: ThreadDeleted) -> None:
    """Removes everything of the thread; its turns stay, so that an old prompt id is still known."""
    where = {"thread_id": event.thread_id}
    for document in [d for d in batch.upserts.values() if d.tenant_id == event.tenant_id]:
        if document.fields.get("thread_id") == event.thread_id and document.kind != "turn":
            batch.remove(document.point_id)
    batch.remove(thread_point(event.tenant_id, event.thread_id))
    batch.delete_all += [Find("message", event.tenant_id, where), Find("call", event.tenant_id, where)]


def _put_thread(
    batch: _Batch,
    event: JournalEvent,
    at: datetime,
    changes: Mapping[str, Any],
    *,
    first_user: str | None = None,
    first_title: str | None = None,
    agent: str | None = None,
) -> None:
    """Creates or changes the thread; `first_*` fill what nobody has said yet, user and agent take part from now on."""
    point = thread_point(event.tenant_id, event.thread_id)
    thread = batch.thread(point) or ThreadView(
        tenant_id=event.tenant_id, thread_id=event.thread_id, created_at=at, updated_at=at
    )
    filled = {
        name: value
        for name, value in (("user_id", first_user), ("title", first_title))
        if value and getattr(thread, name) is None
    }
    took_part = {
        "users": _with(thread.users, changes.get("user_id"), first_user),
        "agents": _with(thread.agents, agent),
    }
    changed = {**filled, **took_part, **changes, "updated_at": max(at, thread.updated_at)}
    batch.put_thread(point, thread.model_copy(update=changed))


def _thread_document(point: str, thread: ThreadView) -> Document:
    fields: dict[str, str | int | list[str]] = {
        "thread_id": thread.thread_id,
        "created": microseconds(thread.created_at),
        "updated": microseconds(thread.updated_at),
        "status": thread.status,
    }
    if thread.users:
        fields["user_id"] = thread.users
    text = " ".join(filter(None, (thread.title, thread.summary)))
    return Document(point, "thread", thread.tenant_id, fields, thread.model_dump_json(exclude_none=True), text)


def _put_turn(batch: _Batch, turn: TurnView) -> None:
    batch.put(
        Document(
            turn_point(turn.tenant_id, turn.turn_id),
            "turn",
            turn.tenant_id,
            {"thread_id": turn.thread_id, "turn_id": turn.turn_id},
            turn.model_dump_json(exclude_none=True),
        )
    )


def _with(names: list[str], *others: str | None) -> list[str]:
    return list(dict.fromkeys([*names, *filter(None, others)]))


def _given(event: Model, *names: str) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(event, name)) is not None}
