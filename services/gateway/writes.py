"""Changes of a thread: written to the log, and where a client waits until every read shows them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Literal

from schemas.http import BEHIND
from schemas.ids import record_id
from schemas.prompts import MessagesAppend, MessagesDelete, ThreadCreate, ThreadDelete, ThreadUpdate
from schemas.topics import MESSAGES
from services.gateway.fanout import Listener, LogEvent
from services.gateway.ports import Ports
from services.gateway.upstream import path_of
from services.runtime.errors import UnavailableError
from services.runtime.web import ProblemError

DELETING_SECONDS = 0.2
"""Between two looks at a thread that is being deleted."""

ThreadChange = ThreadCreate | ThreadUpdate | ThreadDelete | MessagesAppend | MessagesDelete


async def write(ports: Ports, change: ThreadChange, seconds: float | None) -> Literal[200, 202]:
    """The status to answer with: 200 when memory shows the change, 202 when it is on the log and no more is known.

    An agents worker carries the change out; without `seconds` nobody waits for it. A change that was not shown in time
    is carried out all the same. Raises UnavailableError when the log does not take it.
    """
    if not seconds:
        await ports.log.submit(change)
        return 202
    last = _last_message_id(change)

    def may_be_last(event: LogEvent) -> bool:
        """Until the log has answered, a change that names no message may have written any event."""
        return event.topic == MESSAGES.name and last in (None, event.event_id)

    with ports.log.listening(change.tenant_id, change.thread_id, awaited=may_be_last) as listener:
        partition, offset = await ports.log.submit(change)
        last = last or record_id(ports.log.prompts_topic, partition, offset)
        try:
            async with asyncio.timeout(seconds):
                return await _shown(ports, change, partition, await _written(listener, last) + 1)
        except TimeoutError:
            return 202


async def carry_out(
    ports: Ports, changes: AsyncIterator[tuple[ThreadChange, int]], seconds: float | None
) -> tuple[Literal[200, 202], int]:
    """Writes changes of one thread in order, and waits for the last one, which memory shows after all the others.

    The status as `write` gives it, 200 where nothing was to be done, and the sum of what the changes count.
    """
    status: Literal[200, 202] = 200
    total, held = 0, None
    async for change, count in changes:
        if held is not None:
            await write(ports, held, None)
        held, total = change, total + count
    if held is not None:
        status = await write(ports, held, seconds)
    return status, total


def _last_message_id(change: ThreadChange) -> str | None:
    """The worker names an event of the journal after the record that asked for it, and a message after itself."""
    return change.messages[-1].message_id if isinstance(change, MessagesAppend) else None


async def _written(listener: Listener, event_id: str) -> int:
    while True:
        event = await listener.next()
        if event.event_id == event_id:
            return event.offset


async def _shown(ports: Ports, change: ThreadChange, partition: int, min_offset: int) -> Literal[200, 202]:
    while True:
        try:
            thread = await ports.memory.get(
                path_of("threads", change.thread_id),
                tenant_id=change.tenant_id,
                partition=partition,
                min_offset=min_offset,
            )
        except ProblemError as error:
            if error.problem.status == 404:
                return 200  # a thread that was deleted: its absence is what there is to show
            if error.problem.type != BEHIND:
                return 202
        except UnavailableError:
            return 202
        else:
            if thread["status"] != "deleting":
                return 200
            await asyncio.sleep(DELETING_SECONDS)
