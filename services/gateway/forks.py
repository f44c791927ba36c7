"""A fork: a new thread that begins with the messages of another one, up to some message.

Commands on the log carry it out, one after the other in the new thread's partition: `thread.create`, which says where
it is from, then `messages.append`. A copy has an id derived from the original's, so that a fork that was cut short is
finished by the same request: what is there already is left out, the rest is appended.
"""

from collections.abc import AsyncIterator, Iterator, Sequence

from schemas.envelope import encode_event
from schemas.http import MessageView, ThreadView
from schemas.ids import derived_id
from schemas.journal import ForkedFrom
from schemas.prompts import MessagesAppend, NewMessage, ThreadCreate
from schemas.topics import MAX_EVENT_BYTES
from services.gateway.accepting import hold_event
from services.gateway.ports import Ports
from services.gateway.reads import known_thread, message_pages, once_known, read_thread, thread_if_any
from services.gateway.writes import ThreadChange
from services.runtime.web import ProblemError, problem

BATCH_MESSAGES, BATCH_BYTES = 200, MAX_EVENT_BYTES // 2
"""Of one command, which an agents worker carries out in one transaction. A larger message is a command of its own,
for which a worker takes more than it does of anything else: see `schemas.incoming`."""


async def fork(
    ports: Ports, tenant_id: str, source: ForkedFrom, create: ThreadCreate
) -> AsyncIterator[tuple[ThreadChange, int]]:
    """The commands, each with how many messages it copies.

    The messages are read twice, so that nothing is written where one of them is more than a command can carry.

    Raises ProblemError: 404 where the source or its message is not there, 409 where the new thread is another one,
    where a message can't be copied, or where the source was deleted meanwhile: what was copied then is not all of it.
    """
    original = await known_thread(ports, tenant_id, source.thread_id)
    last = await _position_of(ports, tenant_id, source)
    there = await _ids_there(ports, create, source)
    async for page in _pages_of(ports, original, last, create):
        for each in page:
            _hold(_append(create, [_copy(create, each)]), each)
    if there is None:
        title = original.title if original.title_message_id is None else None
        inherited = {"title": title, "summary": original.summary, "user_id": original.user_id}
        filled = {name: value for name, value in inherited.items() if getattr(create, name) is None}
        yield create.model_copy(update={**filled, "metadata": original.metadata | create.metadata}), 0
    async for page in _pages_of(ports, original, last, create):
        copies = [_copy(create, each) for each in page]
        for batch in batches([each for each in copies if each.message_id not in (there or ())]):
            yield _append(create, batch), len(batch)


def _append(create: ThreadCreate, messages: list[NewMessage]) -> MessagesAppend:
    return MessagesAppend(tenant_id=create.tenant_id, thread_id=create.thread_id, messages=messages)


def _hold(append: MessagesAppend, message: MessageView) -> None:
    try:
        hold_event(append)
    except ProblemError as error:
        detail = f"message {message.message_id!r} of thread {message.thread_id!r}: {error.problem.detail}"
        raise problem(409, "message-not-copied", "A message can't be copied", detail) from error


def _copy(create: ThreadCreate, message: MessageView) -> NewMessage:
    """It belongs to no turn of the new thread: turns, and what they cost, stay with the original."""
    message_id = derived_id(
        "fork", create.tenant_id, create.thread_id, message.thread_id, message.message_id, at=message.created_at
    )
    kept = {name: getattr(message, name) for name in NewMessage.model_fields.keys() & MessageView.model_fields.keys()}
    return NewMessage.model_validate({**kept, "message_id": message_id, "content": message.parts})


def batches(messages: Sequence[NewMessage]) -> Iterator[list[NewMessage]]:
    """Cuts them, in order, into what one command carries."""
    batch: list[NewMessage] = []
    size = 0
    for message in messages:
        added = len(encode_event(message))
        if batch and (len(batch) == BATCH_MESSAGES or size + added > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(message)
        size += added
    if batch:
        yield batch


async def _pages_of(
    ports: Ports, original: ThreadView, last: int | None, create: ThreadCreate
) -> AsyncIterator[list[MessageView]]:
    """Its messages up to a position, page by page. Whoever still finds the thread at the end has found all of them."""
    try:
        async for page in message_pages(ports, original.tenant_id, original.thread_id, to_position=last):
            yield page
        now = ThreadView.model_validate(await read_thread(ports, original.tenant_id, original.thread_id))
        if now.created_at == original.created_at and now.status != "deleting":
            return
    except ProblemError as error:
        if error.problem.status != 404:
            raise
    detail = (
        f"thread {original.thread_id!r} was deleted while it was copied: "
        f"thread {create.thread_id!r} may have a part of it, delete it"
    )
    raise problem(409, "source-deleted", "Source deleted", detail)


async def _position_of(ports: Ports, tenant_id: str, source: ForkedFrom) -> int | None:
    if source.message_id is None:
        return None
    below = ("messages", source.message_id)
    message = await once_known(lambda: read_thread(ports, tenant_id, source.thread_id, *below))
    return MessageView.model_validate(message).position


async def _ids_there(ports: Ports, create: ThreadCreate, source: ForkedFrom) -> set[str] | None:
    """Of the messages that the new thread has already; None where there is no such thread."""
    thread = await thread_if_any(ports, create.tenant_id, create.thread_id)
    if thread is None:
        return None
    if thread.forked_from != source:
        detail = f"thread {create.thread_id!r} is there and no fork of this: name another one, or none"
        raise problem(409, "thread-exists", "Thread exists", detail)
    pages = message_pages(ports, create.tenant_id, create.thread_id)
    return {each.message_id async for page in pages for each in page}
