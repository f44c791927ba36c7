"""One call for all who ask for the same at once."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from services.runtime.tasks import end_task

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class SingleFlight(Generic[K, T]):
    """Calls that are under way, by what they are for. One goes on when nobody waits for it any more, until `close`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: dict[K, asyncio.Task[T]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, key: K) -> bool:
        return key in self._tasks

    async def call(self, key: K, make: Callable[[], Coroutine[Any, Any, T]], *, seconds: float | None = None) -> T:
        """What the call for `key` returns or raises, which is made unless it is under way.

        Raises TimeoutError after `seconds` of waiting for it.
        """
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.create_task(make(), name=self._name)
            task.add_done_callback(lambda ended: self._end(key, ended))
        done, _ = await asyncio.wait([task], timeout=seconds)
        if not done:
            raise TimeoutError
        return task.result()

    def _end(self, key: K, task: asyncio.Task[T]) -> None:
        del self._tasks[key]
        if not task.cancelled():
            task.exception()  # known to who waits; asyncio would complain where nobody does

    async def close(self) -> None:
        for task in [*self._tasks.values()]:
            await end_task(task)
