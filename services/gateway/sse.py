"""Server-sent events of a thread. The event id is a position on the log: any gateway resumes from it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from services.gateway.fanout import LogEvent, Position, SlowListenerError
from services.gateway.kafka import ThreadLog

HEARTBEAT_SECONDS = 15


async def thread_events(
    log: ThreadLog,
    tenant_id: str,
    thread_id: str,
    *,
    since: Position | None = None,
    from_start: bool = False,
    wanted: Callable[[LogEvent], bool] = lambda event: True,
    last: Callable[[LogEvent], bool] = lambda event: False,
    listening: Callable[[], Awaitable[object]] | None = None,
) -> AsyncIterator[str]:
    """Formatted events: the past after `since` (or all of it), then the present until `last`.

    `listening` is awaited once nothing can be missed any more: a prompt is sent there, so that its stream is whole.
    """
    with log.listening(tenant_id, thread_id) as listener:
        yield ": open\n\n"
        if since is not None or from_start:
            position = since.copy() if since is not None else listener.began.beginning()
            async for event in log.past(listener, since):
                position.passed(event.topic, event.offset)
                if wanted(event):
                    yield _format(event, position)
        position = listener.began.copy()
        if listening is not None:
            await listening()
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
