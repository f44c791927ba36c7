"""How far usage was read when a bill is made."""

import asyncio

from schemas.topics import USAGE
from services.runtime.errors import UnavailableError
from services.runtime.kafka import KafkaClients, KafkaError
from services.runtime.projection import Projection
from services.runtime.settings import RuntimeSettings
from services.runtime.topics import count_partitions

ENDS_SECONDS = 10
WAIT_SECONDS = 30


class UsageProgress:
    """The topic `usage`, and the projection that reads it."""

    def __init__(self, projection: Projection, clients: KafkaClients, settings: RuntimeSettings) -> None:
        self._projection = projection
        self._clients = clients
        self._settings = settings
        self._partitions: int | None = None

    async def positions(self) -> list[int]:
        """The next offset of each partition that is not in the table yet. Raises UnavailableError."""
        self._check_started()
        return [self._projection.position(partition) for partition in range(await self._count())]

    async def read_all(self) -> list[int]:
        """Waits until what is on the log now is in the table; tells up to where that is. Raises UnavailableError."""
        self._check_started()
        partitions = range(await self._count())
        try:
            async with asyncio.timeout(ENDS_SECONDS):
                ends = await self._projection.ends(partitions)
        except (TimeoutError, KafkaError) as error:
            raise UnavailableError(f"the end of {USAGE.name} is not known: {error!r}") from error
        for partition in partitions:
            await self._projection.wait_for(partition, ends[partition], WAIT_SECONDS)
        return [ends[partition] for partition in partitions]

    def _check_started(self) -> None:
        if not self._projection.started:
            raise UnavailableError("usage is not read yet: its store is not connected")

    async def _count(self) -> int:
        if self._partitions is None:
            self._partitions = await count_partitions(self._clients, self._settings, USAGE)
        return self._partitions
