"""What a service needs from outside before it works: started in order, and tried again until it is there."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import structlog

from schemas.http import ComponentHealth
from services.runtime.errors import TurnlogError, UnavailableError
from services.runtime.kafka import KafkaError
from services.runtime.tasks import end_task

log = structlog.get_logger(__name__)

RETRY_SECONDS = 1.0


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
        while self._left:
            log.warning(f"{self._service}_waits", reason=self._trouble)
            await asyncio.sleep(RETRY_SECONDS)
            try:
                await self._go_on()
            except TurnlogError as error:
                self._trouble = str(error)
