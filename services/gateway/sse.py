"""Server-sent events of a thread. The event id is a position on the log: any gateway resumes from it."""

import asyncio
from collections.abc import AsyncIterator, Callable

from services.gateway.fanout import Listener, LogEvent, Position, SlowListenerError
from services.gateway.kafka import ThreadLog

HEARTBEAT_SECONDS = 15


async def begun(events: AsyncIterator[str]) -> AsyncIterator[str]:
    """The same events, once the first is there: what fails before that is still answered with a status of its own."""
    first = await anext(events)

    async def whole() -> AsyncIterator[str]:
        yield first
        async for event in events:
            yield event

    return whole()


async def thread_events(
    log: ThreadLog, tenant_id: str, thread_id: str, *, since: Position | None, from_start: bool
) -> AsyncIterator[str]:
    """Everything of a thread: the past after `since` (or all of it), then the present until the client leaves."""
    with log.listening(tenant_id, thread_id) as listener:
        async for text in formatted_events(log, listener, since=since, from_start=from_start):
            yield text


async def formatted_events(
    log: ThreadLog,
    listener: Listener,
    *,
    since: Position | None = None,
    from_start: bool = False,
    wanted: Callable[[LogEvent], bool] = lambda event: True,
    last: Callable[[LogEvent], bool] = lambda event: False,
) -> AsyncIterator[str]:
    """The past after `since` (or all of it) up to where the listener began, then what it hears, until `last`."""
    yield ": open\n\n"
    if since is not None or from_start:
        position = since.copy() if since is not None else listener.began.beginning()
        async for event in log.past(listener, since):
            position.passed(event.topic, event.offset)
            if wanted(event):
                yield _format(event, position)
            if last(event):
                return
    position = listener.began.copy()
    while True:
        try:
            async with asyncio.timeout(HEARTBEAT_SECONDS):
                event = await listener.next()
        except TimeoutError:
            yield ": heartbeat\n\n"
            continue
        except SlowListenerError:
            return
        position.passed(event.topic, event.offset)
        if wanted(event):
            yield _format(event, position)
        if last(event):
            return


def _format(event: LogEvent, position: Position) -> str:
    return f"id: {position}\nevent: {event.type}\ndata: {event.data}\n\n"
