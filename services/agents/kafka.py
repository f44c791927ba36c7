"""Deltas to Kafka, outside transactions: fast, and lost without harm, since the committed step says the same."""

import asyncio
import contextlib
from datetime import UTC, datetime

import structlog

from schemas.ids import derived_id
from schemas.topics import DELTAS
from services.agents.deltas import DeltaEvent
from services.runtime.kafka import AIOKafkaProducer, KafkaClients, KafkaError, send_unasked
from services.runtime.tasks import end_task

log = structlog.get_logger(__name__)


class DeltaPublisher:
    """Sends deltas in order, in the background."""

    def __init__(self, clients: KafkaClients) -> None:
        self._clients = clients
        self._producer: AIOKafkaProducer = clients.producer()
        self._queue: asyncio.Queue[DeltaEvent] = asyncio.Queue(maxsize=10_000)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self._producer.start()
        self._task = asyncio.create_task(self._run(), name="deltas")

    async def stop(self) -> None:
        await end_task(self._task)
        await self._producer.stop()

    def send(self, event: DeltaEvent) -> None:
        """Never blocks; drops the delta when the broker has not kept up with 10,000 of them."""
        with contextlib.suppress(asyncio.QueueFull):
            self._queue.put_nowait(event)

    async def _run(self) -> None:
        while True:
            event = await self._queue.get()
            at = datetime.now(UTC)
            event_id = derived_id(event.turn_id, event.step, event.attempt, event.sequence, at=at)
            try:
                record = self._clients.record(DELTAS.name, event, key=event.thread_id, event_id=event_id, at=at)
                await send_unasked(self._producer, **record)
            except KafkaError as error:
                log.warning("delta_dropped", error=repr(error))
