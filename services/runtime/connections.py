"""What a service needs from outside before it works: started in order, and tried again until it is there."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import structlog

from schemas.http import ComponentHealth
from services.runtime.errors import TurnlogError, UnavailableError
from services.runtime.kafka import KafkaError
from services.runtime.tasks import end_task

log = structlog.get_logger(__name__)

RETRY_SECONDS = 1.0

REPEAT_SECONDS = 60.0
"""Between two lines in the log about a trouble that lasts."""


class Repeated:
    """Keeps a trouble that is met again and again from filling the log."""

    def __init__(self) -> None:
        self._told: str | None = None
        self._told_at = 0.0

    def is_news(self, trouble: str) -> bool:
        """Whether it is another trouble than the last one, or was not told of for REPEAT_SECONDS."""
        now = time.monotonic()
        if trouble == self._told and now - self._told_at < REPEAT_SECONDS:
            return False
        self._told, self._told_at = trouble, now
        return True


class Connections:
    """Steps of a start, each begun when the one before has succeeded.

    Args:
        service: of its name are the task and the line in the log.
        bootstrap: where Kafka should be, as is said when it does not answer.
    """

    def __init__(self, service: str, bootstrap: str, steps: Sequence[Callable[[], Awaitable[None]]]) -> None:
        self._service = service
        self._bootstrap = bootstrap
        self._left = deque(steps)
        self._retrying: asyncio.Task[None] | None = None
        self._trouble = "not connected yet"

    async def start(self) -> None:
        """Returns also while somebody does not answer, who is then asked again. Raises ConfigurationError."""
        try:
            await self._go_on()
        except UnavailableError as error:
            self._trouble = str(error)
            self._retrying = asyncio.create_task(self._keep_trying(), name=f"{self._service}:connect")

    async def stop(self) -> None:
        """Ends the trying; what was started is the caller's to stop."""
        await end_task(self._retrying)

    def health(self) -> ComponentHealth:
        """Ready once every step has succeeded; until then the detail says who does not answer."""
        return ComponentHealth(ready=not self._left, detail=self._trouble)

    async def _go_on(self) -> None:
        while self._left:
            try:
                await self._left[0]()
            except KafkaError as error:
                raise UnavailableError(f"no Kafka answers at {self._bootstrap}: {error}") from error
            self._left.popleft()
        self._trouble = ""

    async def _keep_trying(self) -> None:
        repeated = Repeated()
        while self._left:
            if repeated.is_news(self._trouble):
                log.warning(f"{self._service}_waits", reason=self._trouble)
            await asyncio.sleep(RETRY_SECONDS)
            try:
                await self._go_on()
            except TurnlogError as error:
                self._trouble = str(error)
