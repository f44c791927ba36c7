"""Reads of a thread, as of everything that this gateway has shown of it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from schemas.http import MessageListQuery, MessageView, Page, ThreadView
from services.gateway.answers import streaming
from services.gateway.ports import Ports
from services.gateway.upstream import path_of
from services.runtime.errors import UnavailableError
from services.runtime.web import ProblemError

Known = TypeVar("Known")

PAGE = 1000
"""Messages of a page: the most that memory gives."""

KNOWN_TRIES, KNOWN_SECONDS = 20, 0.1
"""Memory is a moment behind the log: who acts on what an answer has just named, here or at another gateway, is not told
that there is no such thing before it had this time to come into being."""


async def once_known(read: Callable[[], Awaitable[Known]]) -> Known:
    """What memory knows. Raises ProblemError: 404 when it does not come to know of it in 2 s; UnavailableError."""
    for _ in range(KNOWN_TRIES):
        try:
            return await read()
        except ProblemError as error:
            if error.problem.status != 404:
                raise
        await asyncio.sleep(KNOWN_SECONDS)
    return await read()


async def known_thread(ports: Ports, tenant_id: str, thread_id: str) -> ThreadView:
    """A thread that is to be changed; see `once_known`."""
    return ThreadView.model_validate(await once_known(lambda: read_thread(ports, tenant_id, thread_id)))


async def read_thread(ports: Ports, tenant_id: str, thread_id: str, *below: str, **parameters: object) -> Any:
    """The JSON of memory's answer about a thread, or about what is below it. Raises ProblemError, UnavailableError."""
    partition, offset = ports.log.journal_position(thread_id)
    return await ports.memory.get(
        path_of("threads", thread_id, *below),
        tenant_id=tenant_id,
        partition=partition,
        min_offset=offset,
        **parameters,
    )


async def thread_if_any(ports: Ports, tenant_id: str, thread_id: str) -> ThreadView | None:
    """None where there is none. Raises ProblemError and UnavailableError where nobody can tell."""
    try:
        return ThreadView.model_validate(await read_thread(ports, tenant_id, thread_id))
    except ProblemError as error:
        if error.problem.status != 404:
            raise
        return None


async def answers_in_progress(
    ports: Ports, tenant_id: str, thread_id: str, asked: MessageListQuery
) -> Page[MessageView]:
    """Messages that were appended as `pending` or `streaming`, and answers that open turns have yet to give, those that
    are `streaming` with what has come of them.

    Where the deltas are not to be had in time, they are all `pending`.
    """
    read = await read_thread(ports, tenant_id, thread_id, "messages", **asked.model_dump(mode="json"))
    page = Page[MessageView].model_validate(read)
    items: list[MessageView] = []
    for message in page.items:
        if message.turn_id is None:
            items.append(message)
            continue
        try:
            written = await ports.log.written(tenant_id, thread_id, message.turn_id, message.created_at)
        except UnavailableError:
            written = {}
        items.append(streaming(message, written.get(message.step)))
    return Page(items=[each for each in items if each.status == asked.status], next_cursor=page.next_cursor)


async def message_pages(
    ports: Ports, tenant_id: str, thread_id: str, *, to_position: int | None = None
) -> AsyncIterator[list[MessageView]]:
    """The messages of a thread in order, up to and with a position; no page is empty.

    Raises ProblemError where there is no such thread.
    """
    cursor: str | None = None
    while True:
        answer = await read_thread(
            ports,
            tenant_id,
            thread_id,
            "messages",
            to_position=to_position,
            cursor=cursor,
            limit=PAGE,
        )
        page = Page[MessageView].model_validate(answer)
        if page.items:
            yield page.items
        cursor = page.next_cursor
        if cursor is None:
            return
