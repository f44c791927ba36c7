"""Reads of a thread, as of everything that this gateway has shown of it."""

from collections.abc import AsyncIterator
from typing import Any

from schemas.http import MessageView, Page
from services.gateway.ports import Ports

PAGE = 1000
"""Messages of a page: the most that memory gives."""


async def read_thread(ports: Ports, tenant_id: str, thread_id: str, path: str = "", **parameters: object) -> Any:
    """The JSON of memory's answer to `threads/{thread_id}{path}`. Raises ProblemError, UnavailableError."""
    partition, offset = ports.log.journal_position(thread_id)
    return await ports.memory.get(
        f"threads/{thread_id}{path}", tenant_id=tenant_id, partition=partition, min_offset=offset, **parameters
    )


async def message_pages(
    ports: Ports,
    tenant_id: str,
    thread_id: str,
    *,
    from_position: int | None = None,
    to_position: int | None = None,
) -> AsyncIterator[list[MessageView]]:
    """The messages of a thread in order, those at these positions, both inclusive; no page is empty.

    Raises ProblemError where there is no such thread.
    """
    cursor: str | None = None
    while True:
        answer = await read_thread(
            ports,
            tenant_id,
            thread_id,
            "/messages",
            from_position=from_position,
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
