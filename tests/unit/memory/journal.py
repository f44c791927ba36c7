"""Events of the journal, written short, and a memory that they can be told to."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from schemas.http import MessageView
from schemas.journal import (
    JournalEvent,
    MessageAdded,
    MessageDeleted,
    ThreadCreated,
    ThreadDeleted,
    ThreadUpdated,
    TurnClosed,
    TurnOpened,
    TurnWaiting,
)
from schemas.parts import Part, TextPart, ToolCallPart, ToolResultPart
from services.memory.projection import JournalProjection
from services.memory.reads import Reads
from services.memory.store import MemoryStore
from services.runtime.records import ProjectedRecord

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def added(
    message_id: str, content: str | list[Part] = "", *, thread_id: str = "t-1", seconds: float = 0, **fields: Any
) -> MessageAdded:
    parts: list[Part] = [TextPart(text=content)] if isinstance(content, str) and content else []
    given = {"role": "user", "created_at": at(seconds)} | fields
    return MessageAdded(
        thread_id=thread_id, message_id=message_id, parts=content if isinstance(content, list) else parts, **given
    )


def asks(message_id: str, *call_ids: str, text: str = "", **fields: Any) -> MessageAdded:
    """A message of an assistant that calls tools."""
    calls: list[Part] = [ToolCallPart(call_id=each, name="look_up", arguments="{}") for each in call_ids]
    parts = [TextPart(text=text), *calls] if text else calls
    return added(message_id, parts, **({"role": "assistant", "agent": "assistant", "turn_id": "turn-1"} | fields))


def answers(message_id: str, call_id: str, **fields: Any) -> MessageAdded:
    """A tool's answer."""
    result = ToolResultPart(call_id=call_id, name="look_up", result={"found": True})
    return added(message_id, [result], **({"role": "tool", "turn_id": "turn-1"} | fields))


def opened(turn_id: str = "turn-1", *, thread_id: str = "t-1", seconds: float = 0, **fields: Any) -> TurnOpened:
    given = {"prompt_id": f"prompt of {turn_id}", "agent": "assistant", "agent_version": "0123456789ab"} | fields
    return TurnOpened(thread_id=thread_id, turn_id=turn_id, opened_at=at(seconds), **given)


def waiting(turn_id: str = "turn-1", *, thread_id: str = "t-1", **fields: Any) -> TurnWaiting:
    return TurnWaiting(thread_id=thread_id, turn_id=turn_id, step=1, reason="approval", waiting_since=at(1), **fields)


def closed(turn_id: str = "turn-1", *, thread_id: str = "t-1", seconds: float = 2, **fields: Any) -> TurnClosed:
    given = {"outcome": "completed", "steps": 1} | fields
    return TurnClosed(thread_id=thread_id, turn_id=turn_id, closed_at=at(seconds), **given)


def created(thread_id: str = "t-1", *, seconds: float = 0, **fields: Any) -> ThreadCreated:
    return ThreadCreated(thread_id=thread_id, created_at=at(seconds), **fields)


def updated(thread_id: str = "t-1", *, seconds: float = 1, **fields: Any) -> ThreadUpdated:
    return ThreadUpdated(thread_id=thread_id, updated_at=at(seconds), **fields)


def deleted(thread_id: str = "t-1", *, seconds: float = 3, **fields: Any) -> ThreadDeleted:
    return ThreadDeleted(thread_id=thread_id, deleted_at=at(seconds), **fields)


def removed(*message_ids: str, thread_id: str = "t-1", **fields: Any) -> MessageDeleted:
    return MessageDeleted(thread_id=thread_id, message_ids=list(message_ids), deleted_at=at(3), **fields)


def view_of(message_id: str, position: int, thread_id: str = "t-1") -> MessageView:
    """A message as memory has it."""
    event = added(message_id, thread_id=thread_id)
    return MessageView.model_validate({**event.model_dump(), "position": position, "text": ""})


@dataclass
class Told:
    """A tenant's journal in a store that tests share, and the reads of it."""

    store: MemoryStore
    tenant: str
    reads: Reads = field(init=False)
    offset: int = 0

    def __post_init__(self) -> None:
        self.reads = Reads(self.store)

    async def tell(self, *events: JournalEvent) -> None:
        """One batch, each event at the next offset."""
        records: Sequence[ProjectedRecord] = [
            ProjectedRecord(
                self.offset + number, 0, event.thread_id, event.model_copy(update={"tenant_id": self.tenant})
            )
            for number, event in enumerate(events)
        ]
        self.offset += len(events)
        await JournalProjection(self.store).apply(0, records, self.offset)
