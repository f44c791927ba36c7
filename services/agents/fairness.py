"""A limit on concurrent calls that tenants share fairly: whoever waits is served round-robin by tenant."""

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator


class FairLimiter:
    """At most `limit` slots are out. A tenant with a thousand waiting calls delays another tenant by one."""

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @contextlib.asynccontextmanager
    async def slot(self, tenant_id: str) -> AsyncGenerator[None]:
        await self._acquire(tenant_id)
        try:
            yield
        finally:
            self._release()

    async def _acquire(self, tenant_id: str) -> None:
        if self._free > 0 and not self._waiting:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant_id, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release()
            raise

    def _release(self) -> None:
        while self._waiting:
            tenant_id, queue = next(iter(self._waiting.items()))
            turn = queue.popleft()
            if queue:
                self._waiting.move_to_end(tenant_id)
            else:
                del self._waiting[tenant_id]
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
