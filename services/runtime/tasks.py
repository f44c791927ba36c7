"""Tasks that run in the background."""

import asyncio
from typing import Any


async def end_task(task: asyncio.Task[Any] | None) -> None:
    """Cancels a task, and returns when it has ended, however it does. One that was never begun has ended."""
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
