"""Sync tools, each call in a thread of its own.

Not a thread pool: a function that outlives its time limit cannot be stopped, would keep a place in the pool for ever,
and would hold up the end of the process, which joins a pool's threads. These threads are daemons.
"""

import asyncio
import contextvars
import threading
from collections.abc import Callable
from typing import Any

from services.tools import metrics


class Threads:
    """Runs functions in threads and counts those that nobody waits for any more."""

    def __init__(self) -> None:
        self.abandoned = 0

    async def run(self, function: Callable[[], Any], *, name: str) -> Any:
        """What the function returns or raises. On cancellation the thread goes on alone, counted as abandoned."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()
        context = contextvars.copy_context()

        def settle(result: Any, error: BaseException | None) -> None:
            if done.cancelled():
                self._count(-1)
            elif error is not None:
                done.set_exception(error)
            else:
                done.set_result(result)

        def work() -> None:
            result, error = None, None
            try:
                result = context.run(function)
            except BaseException as raised:  # noqa: BLE001 - sys.exit() in a tool ends the call, not the worker
                error = raised if isinstance(raised, Exception) else RuntimeError(f"{type(raised).__name__}: {raised}")
                if isinstance(error, StopIteration):
                    error = RuntimeError(f"StopIteration: {raised}")
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, result, error)

        threading.Thread(target=work, name=f"tool:{name}", daemon=True).start()
        try:
            return await done
        except asyncio.CancelledError:
            if done.cancelled():
                self._count(1)
            raise

    def _count(self, change: int) -> None:
        self.abandoned += change
        metrics.THREADS_ABANDONED.set(self.abandoned)
