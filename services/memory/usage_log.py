"""What memory spends, on its way to `usage`."""

import asyncio
from collections.abc import Awaitable, Sequence
from datetime import UTC, datetime
from typing import Any

from schemas.topics import USAGE
from schemas.usage import UsageRecorded
from services.runtime.errors import UnavailableError
from services.runtime.kafka import AIOKafkaProducer, KafkaClients, KafkaError


class UsageProducer:
    """Writes to `usage`."""

    def __init__(self, clients: KafkaClients) -> None:
        self._clients = clients
        self._producer: AIOKafkaProducer | None = None

    async def start(self) -> None:
        """Raises KafkaError while Kafka is away."""
        producer = self._clients.producer()
        try:
            await producer.start()
        except KafkaError:
            await producer.stop()
            raise
        self._producer = producer

    async def stop(self) -> None:
        if self._producer is not None:
            await self._producer.stop()

    async def record(self, events: Sequence[UsageRecorded]) -> None:
        """Returns when all are acknowledged. Raises UnavailableError; some may be on the log then."""
        if self._producer is None:
            raise UnavailableError("usage cannot be written before Kafka answers")
        at = datetime.now(UTC)
        records = [
            self._clients.record(
                USAGE.name, event, key=event.thread_id or event.tenant_id, event_id=event.usage_id, at=at
            )
            for event in events
        ]
        try:
            sent: list[Awaitable[Any]] = [await self._producer.send(**record) for record in records]
            await asyncio.gather(*sent)
        except KafkaError as error:
            raise UnavailableError(f"usage cannot be written: {error!r}") from error
