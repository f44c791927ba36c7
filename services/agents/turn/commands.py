"""Changes of a thread that are no turns: created, updated, deleted; messages appended and deleted."""

from dataclasses import replace
from typing import Any

from schemas.ids import derived_id, time_of
from schemas.journal import MessageAdded, MessageDeleted, ThreadCreated, ThreadDeleted, ThreadUpdated
from schemas.parts import parts_of
from schemas.prompts import MessagesAppend, MessagesDelete, NewMessage, ThreadCreate, ThreadDelete, ThreadUpdate
from schemas.topics import MESSAGES
from services.agents.turn.closing import cancel_turns
from services.agents.turn.inputs import CommandArrived, Decision, Environment
from services.agents.turn.state import ThreadState
from services.runtime.owner.actor import Emit

APPENDED_AS_SAID = NewMessage.model_fields.keys() - {"message_id", "content", "created_at"}


def command_arrived(state: ThreadState | None, arrived: CommandArrived, env: Environment) -> Decision:
    """Writes a change of the thread to its journal; deleting a thread ends its turns first."""
    command = arrived.command
    identity: Any = {"tenant_id": command.tenant_id, "thread_id": command.thread_id}
    match command:
        case ThreadCreate():
            event = ThreadCreated(
                **identity,
                forked_from=command.forked_from,
                user_id=command.user_id,
                title=command.title,
                summary=command.summary,
                metadata=command.metadata,
                created_at=env.at,
            )
        case ThreadUpdate():
            event = ThreadUpdated(
                **identity,
                title=command.title,
                summary=command.summary,
                status=command.status,
                metadata=command.metadata,
                cleared=command.cleared,
                updated_at=env.at,
            )
        case MessagesDelete():
            event = MessageDeleted(
                **identity,
                message_ids=command.message_ids,
                from_position=command.from_position,
                to_position=command.to_position,
                deleted_at=env.at,
            )
        case MessagesAppend():
            return Decision(state, tuple(_appended(command, arrived.record_id, env)))
        case ThreadDelete():
            deleted = Emit(MESSAGES.name, ThreadDeleted(**identity, deleted_at=env.at), arrived.record_id)
            if state is None:
                return Decision(None, (deleted,))
            ended = cancel_turns(state, None, env, "the thread was deleted")
            return replace(ended, emits=(*ended.emits, deleted))
    return Decision(state, (Emit(MESSAGES.name, event, arrived.record_id),))


def _appended(command: MessagesAppend, record_id: str, env: Environment) -> list[Emit]:
    emits: list[Emit] = []
    for index, message in enumerate(command.messages):
        message_id = message.message_id or derived_id("append", record_id, index, at=time_of(record_id))
        said = {name: getattr(message, name) for name in APPENDED_AS_SAID}
        event = MessageAdded(
            tenant_id=command.tenant_id,
            thread_id=command.thread_id,
            message_id=message_id,
            parts=parts_of(message.content),
            created_at=message.created_at or env.at,
            appended_at=env.at if message.created_at else None,
            **said,
        )
        emits.append(Emit(MESSAGES.name, event, message_id))
    return emits
