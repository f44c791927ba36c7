"""From journal events to documents. Pure: what exists is given, what changes comes back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from operator import attrgetter
from typing import Any, Literal, NamedTuple

from pydantic import Field
from pydantic_core import to_json

from schemas.base import Model, TenantId, ThreadId, Timestamp, format_time
from schemas.http import MessageView, ThreadDeletion, ThreadView
from schemas.ids import microseconds
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
from services.memory.store import Changes, Document, Fields, Find, Kind, Range, point_id

TITLE_LENGTH = 80

ABOUT_TOOLS: Fields = {"about": "tools"}
"""Field of a tool's answer, and of a message that does nothing but call tools."""

OF_MESSAGES: tuple[Kind, ...] = ("message", "call")
"""Kinds of documents that go with the messages that they are from."""

CALLS = "calls"
"""Field of a message: the ids of the tool calls that are known by it."""


SAID_OF_A_MESSAGE = sorted(MessageAdded.model_fields.keys() & MessageView.model_fields.keys())
_said_of = attrgetter(*SAID_OF_A_MESSAGE)


class StoredThread(ThreadView):
    """A thread as its document has it: with the position of the message that its title is from."""

    title_position: int | None = None


FROM_NO_MESSAGE = {"title_message_id": None, "title_position": None}
"""Of a title that somebody has given, or that is none."""


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


def points_read(events: Sequence[JournalEvent]) -> list[str]:
    """The documents that `project` needs to see: the threads, the turns that change, and messages that may be there."""
    points = {thread_point(event.tenant_id, event.thread_id) for event in events}
    for event in events:
        match event.type:
            case "turn.waiting" | "turn.closed":
                points.add(turn_point(event.tenant_id, event.turn_id))
            case "message.added":
                points.add(message_point(event.tenant_id, event.thread_id, event.message_id))
            case "message.deleted":
                points.update(message_point(event.tenant_id, event.thread_id, each) for each in event.message_ids)
            case _:
                pass
    return sorted(points)


class _Thread(NamedTuple):
    """`view` but for when it was changed last, which every event of a thread moves."""

    view: StoredThread
    position: int
    """Offset of the last event that it shows."""
    updated_at: datetime

    @staticmethod
    def of(view: StoredThread, position: int) -> "_Thread":
        return _Thread(view, position, view.updated_at)


@dataclass(slots=True)
class _Batch:
    existing: Mapping[str, Document]
    upserts: dict[str, Document] = field(default_factory=dict[str, Document])
    deletes: set[str] = field(default_factory=set[str])
    delete_all: list[Find] = field(default_factory=list[Find])
    threads: dict[str, _Thread] = field(default_factory=dict[str, _Thread])
    """Those that change. A batch has many messages of a thread, which is read and written once."""

    def thread(self, point: str) -> _Thread | None:
        if point in self.threads or (document := self.document(point)) is None:
            return self.threads.get(point)
        return _Thread.of(StoredThread.model_validate_json(document.body), position_of(document))

    def has_passed(self, offset: int, event: JournalEvent) -> bool:
        """Whether the thread shows this event already, and whatever came of it: a restart reads it again."""
        point = thread_point(event.tenant_id, event.thread_id)
        if (known := self.threads.get(point)) is not None and known.position >= offset:
            return True
        return (document := self.document(point)) is not None and position_of(document) >= offset

    def put_thread(self, point: str, thread: _Thread) -> None:
        self.deletes.discard(point)
        self.threads[point] = thread

    def document(self, point: str) -> Document | None:
        """As the events so far have left it."""
        return self.upserts.get(point) or (None if point in self.deletes else self.existing.get(point))

    def put(self, document: Document) -> None:
        self.deletes.discard(document.point_id)
        self.upserts[document.point_id] = document

    def remove(self, point: str) -> None:
        self.upserts.pop(point, None)
        self.threads.pop(point, None)
        self.deletes.add(point)

    def remove_all(self, find: Find) -> None:
        """Those that the batch knows of, and whatever else the store has."""
        known = [self.document(point) for point in {*self.existing, *self.upserts}]
        for document in known:
            if document is not None and find.matches(document):
                self.remove(document.point_id)
        self.delete_all.append(find)


def position_of(document: Document) -> int:
    """Offset of the event that a message is from, or of the last one that a thread shows.

    Of a thread that an earlier release wrote it is not known: any event is behind it.
    """
    position = document.fields.get("position", -1)
    assert isinstance(position, int)
    return position


def project(events: Sequence[tuple[int, JournalEvent]], existing: Mapping[str, Document]) -> Changes:
    """What a batch of one partition (offset and event, in order) changes.

    The same batch twice changes nothing more, also where what came behind it is there already: a thread knows how far
    it is. Threads are written last, so that one that is this far has all of its documents.
    """
    batch = _Batch(existing)
    for offset, event in events:
        match event.type:
            case "turn.opened" | "turn.waiting" | "turn.closed" | "prompt.dropped":
                _turn_changed(batch, event)
            case _:
                pass
        if not batch.has_passed(offset, event):
            _apply(batch, offset, event)
    upserts = batch.upserts | {point: _thread_document(point, thread) for point, thread in batch.threads.items()}
    return Changes(list(upserts.values()), sorted(batch.deletes), batch.delete_all)


def _apply(batch: _Batch, offset: int, event: JournalEvent) -> None:
    match event.type:
        case "message.added":
            _message_added(batch, offset, event)
        case "message.deleted":
            _messages_deleted(batch, offset, event)
        case "thread.created":
            _put_thread(batch, offset, event, event.created_at, _said_first(batch, event))
        case "thread.updated":
            if batch.thread(thread_point(event.tenant_id, event.thread_id)) is not None:
                said = _cleared(event) | _given(event, "title", "summary", "status", "metadata")
                _put_thread(batch, offset, event, event.updated_at, said)
        case "thread.deleted":
            _thread_deleted(batch, offset, event)
        case "turn.opened":
            _put_thread(batch, offset, event, event.opened_at, {}, first_user=event.user_id, agent=event.agent)
        case "prompt.dropped" | "turn.waiting" | "turn.closed":
            pass


def _said_first(batch: _Batch, event: ThreadCreated) -> dict[str, Any]:
    """What the event says of a thread and nobody has said before: one that is there stays whose it is."""
    said = _given(event, "forked_from", "user_id", "title", "summary")
    said |= {"metadata": event.metadata} if event.metadata else {}
    known = batch.thread(thread_point(event.tenant_id, event.thread_id))
    if known is None:
        return said
    view = known.view
    is_titled = view.title is not None and view.title_message_id is None
    return {name: said[name] for name in said if not (is_titled if name == "title" else getattr(view, name))}


def _turn_changed(batch: _Batch, event: TurnOpened | TurnWaiting | TurnClosed | PromptDropped) -> None:
    """A turn outlives its thread, so it does not go by how far that is."""
    match event:
        case TurnOpened():
            _put_turn(batch, TurnView.model_validate(event.model_dump(exclude={"type"})))
        case PromptDropped():
            ended = {"status": "cancelled", "opened_at": event.dropped_at, "closed_at": event.dropped_at}
            _put_turn(batch, TurnView.model_validate(event.model_dump(exclude={"type", "dropped_at"}) | ended))
        case TurnWaiting() | TurnClosed():
            document = batch.document(turn_point(event.tenant_id, event.turn_id))
            if document is not None:
                turn = TurnView.model_validate_json(document.body)
                changed: dict[str, Any] = (
                    {"status": event.outcome, "closed_at": event.closed_at}
                    if isinstance(event, TurnClosed)
                    else {"status": "waiting"}
                )
                _put_turn(batch, turn.model_copy(update=changed))


def _message_added(batch: _Batch, offset: int, event: MessageAdded) -> None:
    """The first message of an id stays as it is and where it is, until it is deleted."""
    point = message_point(event.tenant_id, event.thread_id, event.message_id)
    known = batch.document(point)
    if known is not None and position_of(known) < offset:
        _thread_passes(batch, offset, event)
        return
    calls = [part for part in event.parts if part.type == "tool_call"] if event.turn_id is not None else []
    text = text_of(event.parts)
    batch.put(_message_document(point, offset, event, text, [each.call_id for each in calls]))
    for call in calls:
        batch.put(_call_document(offset, event, call))
    titles = event if event.role == "user" else None
    _put_thread(batch, offset, event, event.created_at, {}, first_user=event.user_id, titles=titles, agent=event.agent)


def _message_document(point: str, offset: int, event: MessageAdded, text: str, call_ids: Sequence[str]) -> Document:
    fields: dict[str, str | int | Sequence[str]] = {
        "thread_id": event.thread_id,
        "position": offset,
        "role": event.role,
        "status": event.status,
        "created": microseconds(event.created_at),
    }
    if call_ids:
        fields[CALLS] = call_ids
    if _only_about_tools(event, text):
        fields |= ABOUT_TOOLS
    for name in ("turn_id", "user_id", "agent"):
        if (value := getattr(event, name)) is not None:
            fields[name] = value
    return Document(point, "message", event.tenant_id, fields, _message_body(offset, event, text), text)


def _message_body(offset: int, event: MessageAdded, text: str) -> str:
    """A MessageView as JSON, without making one: that took a tenth of what it takes to project a message."""
    said = {name: value for name, value in zip(SAID_OF_A_MESSAGE, _said_of(event), strict=True) if value is not None}
    said |= {"position": offset, "text": text, "created_at": format_time(event.created_at)}
    if event.appended_at is not None:
        said["appended_at"] = format_time(event.appended_at)
    return to_json(said, exclude_none=True, inf_nan_mode="null").decode()


def _call_document(offset: int, event: MessageAdded, part: ToolCallPart) -> Document:
    assert event.turn_id is not None
    call = CallView(
        call_id=part.call_id,
        thread_id=event.thread_id,
        tenant_id=event.tenant_id,
        turn_id=event.turn_id,
        name=part.name,
    )
    return Document(
        call_point(event.tenant_id, part.call_id),
        "call",
        event.tenant_id,
        {"thread_id": event.thread_id, "turn_id": event.turn_id, "position": offset},
        call.model_dump_json(),
    )


def _messages_deleted(batch: _Batch, offset: int, event: MessageDeleted) -> None:
    """A title that is from one of them goes with it.

    The thread says which message that is: where a process died in the middle, the message may be gone already.
    """
    for message_id in event.message_ids:
        _message_deleted(batch, message_point(event.tenant_id, event.thread_id, message_id), event.tenant_id)
    for find in removed_together(offset, event):
        batch.remove_all(find)
    thread = batch.thread(thread_point(event.tenant_id, event.thread_id))
    if thread is None:
        return
    within = _positions_deleted(offset, event)
    titled, position = thread.view.title_message_id, thread.view.title_position
    goes = titled in event.message_ids or (within is not None and position is not None and within.holds(position))
    _thread_passes(batch, offset, event, {"title": None, **FROM_NO_MESSAGE} if goes else {})


def _message_deleted(batch: _Batch, point: str, tenant_id: str) -> None:
    """Its tool calls go with it, so that nobody can approve one that no message tells of."""
    known = batch.document(point)
    batch.remove(point)
    calls = known.fields.get(CALLS) if known is not None else None
    for call_id in calls if isinstance(calls, list) else ():
        batch.remove(call_point(tenant_id, call_id))


def _only_about_tools(event: MessageAdded, text: str) -> bool:
    return event.role == "tool" or (not text and any(isinstance(part, ToolCallPart) for part in event.parts))


def removed_together(offset: int, event: JournalEvent) -> list[Find]:
    """What an event removes without naming each of it, messages before their calls: there may be very many."""
    match event:
        case ThreadDeleted():
            within = Range(below=offset)
        case MessageDeleted():
            within = _positions_deleted(offset, event)
        case _:
            within = None
    if within is None:
        return []
    where, between = {"thread_id": event.thread_id}, {"position": within}
    return [Find(kind, event.tenant_id, where, between=between) for kind in OF_MESSAGES]


def _positions_deleted(offset: int, event: MessageDeleted) -> Range | None:
    """Of messages before the event, and of their calls, which are from the same ones; None where only ids are named."""
    if event.from_position is None and event.to_position is None:
        return None
    last = offset - 1 if event.to_position is None else min(event.to_position, offset - 1)
    return Range(above=None if event.from_position is None else event.from_position - 1, below=last + 1)


def _thread_deleted(batch: _Batch, offset: int, event: ThreadDeleted) -> None:
    """Removes everything of the thread; its turns stay, so that an old prompt id is still known."""
    batch.remove(thread_point(event.tenant_id, event.thread_id))
    for find in removed_together(offset, event):
        batch.remove_all(find)


def being_deleted(thread: Document, remaining: int) -> Document:
    """A thread while it goes, with so many messages still there; what an earlier start has removed counts too."""
    view = StoredThread.model_validate_json(thread.body)
    total = max(view.deletion.total if view.deletion else 0, remaining)
    deletion = ThreadDeletion(removed=total - remaining, total=total)
    changed = view.model_copy(update={"status": "deleting", "deletion": deletion})
    return _thread_document(thread.point_id, _Thread.of(changed, position_of(thread)))


def _thread_passes(batch: _Batch, offset: int, event: JournalEvent, changes: Mapping[str, Any] | None = None) -> None:
    """The thread shows an event that does not move it to the front, if there is such a thread."""
    point = thread_point(event.tenant_id, event.thread_id)
    known = batch.thread(point)
    if known is not None:
        view = known.view.model_copy(update=changes) if changes else known.view
        batch.put_thread(point, _Thread(view, offset, known.updated_at))


def _put_thread(
    batch: _Batch,
    offset: int,
    event: JournalEvent,
    at: datetime,
    changes: Mapping[str, Any],
    *,
    first_user: str | None = None,
    titles: MessageAdded | None = None,
    agent: str | None = None,
) -> None:
    """Creates or changes the thread; `first_user` and what `titles` says fill what nobody has said yet, user and agent
    take part from now on."""
    point = thread_point(event.tenant_id, event.thread_id)
    known = batch.thread(point)
    if known is None:
        new = StoredThread(tenant_id=event.tenant_id, thread_id=event.thread_id, created_at=at, updated_at=at)
        known = _Thread(new, offset, at)
    view, said = known.view, dict(changes)
    if "title" in said:
        said |= FROM_NO_MESSAGE
    if first_user and view.user_id is None:
        said.setdefault("user_id", first_user)
    if titles is not None and view.title is None:
        said |= _title_of(titles, offset)
    if new_users := _new(view.users, changes.get("user_id"), first_user):
        said["users"] = [*view.users, *new_users]
    if new_agents := _new(view.agents, agent):
        said["agents"] = [*view.agents, *new_agents]
    batch.put_thread(point, _Thread(view.model_copy(update=said) if said else view, offset, max(at, known.updated_at)))


def _title_of(message: MessageAdded, position: int) -> dict[str, Any]:
    """The first line of what it says, and whose that is; nothing where it says nothing."""
    lines = text_of(message.parts).strip().splitlines()
    if not lines:
        return {}
    title = lines[0][:TITLE_LENGTH].rstrip()
    return {"title": title, "title_message_id": message.message_id, "title_position": position}


def _thread_document(point: str, known: _Thread) -> Document:
    thread = known.view.model_copy(update={"updated_at": known.updated_at})
    fields: dict[str, str | int | Sequence[str]] = {
        "thread_id": thread.thread_id,
        "position": known.position,
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
            {
                "thread_id": turn.thread_id,
                "turn_id": turn.turn_id,
                "status": turn.status,
                "created": microseconds(turn.opened_at),
            },
            turn.model_dump_json(exclude_none=True),
        )
    )


def _new(names: Sequence[str], *others: str | None) -> Sequence[str]:
    """Those of the others that are not among the names, each once. Mostly there are none."""
    new = [each for each in others if each and each not in names]
    return [*dict.fromkeys(new)] if new else new


def _cleared(event: ThreadUpdated) -> dict[str, Any]:
    return {name: StoredThread.model_fields[name].get_default(call_default_factory=True) for name in event.cleared}


def _given(event: Model, *names: str) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(event, name)) is not None}
