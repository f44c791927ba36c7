"""Tasks that run in the background, and calls that run in a thread."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


async def end_task(task: asyncio.Task[Any] | None) -> None:
    """Cancels a task, and returns when it has ended, however it does. One that was never begun has ended."""
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def run_to_end(call: Callable[[], T]) -> T:
    """What a call returns or raises, made in a thread, which nothing can stop.

    Who is cancelled meanwhile, however often, learns of it when the thread is done: whatever that has made can be
    removed then.
    """
    running = asyncio.create_task(asyncio.to_thread(call))
    cancelled: asyncio.CancelledError | None = None
    while not running.done():
        try:
            await asyncio.wait({running})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        running.exception()  # nobody else asks for it
        raise cancelled
    return running.result()
