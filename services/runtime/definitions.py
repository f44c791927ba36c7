"""Sends definitions that nobody can use to `dead-letters`.

Every process that needs a registry reads all of it, so none of those readers may be the one that rejects: this one is a
group, in which each record has one reader.
"""

import asyncio
from collections.abc import Iterator, Sequence

import structlog

from schemas.envelope import RecordRejectedError
from schemas.topics import AGENTS, BUDGETS, PLANS, PRICES, TOOLS
from services.runtime.dead_letters import send_rejected
from services.runtime.groups import DEFINITIONS_GROUP
from services.runtime.kafka import AIOKafkaConsumer, AIOKafkaProducer, KafkaClients, KafkaError, Record, TopicPartition
from services.runtime.records import decode_record
from services.runtime.settings import RuntimeSettings
from services.runtime.tasks import end_task

log = structlog.get_logger(__name__)

SOURCE = "definitions"

RETRY_SECONDS = 1.0


class DefinitionsCheck:
    """Reads `agents`, `tools`, `prices`, `budgets` and `plans` beside the registries.

    Kafka may be away at any time: it goes on when it is back.
    """

    def __init__(self, clients: KafkaClients, settings: RuntimeSettings) -> None:
        self._clients = clients
        self._topics = {settings.topic(topic.name): topic for topic in (AGENTS, TOOLS, PRICES, BUDGETS, PLANS)}
        self._group_id = f"{settings.topic_prefix}{DEFINITIONS_GROUP}"
        self._producer: AIOKafkaProducer = clients.producer()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self._producer.start()
        self._task = asyncio.create_task(self._keep_reading(), name="definitions")

    async def stop(self) -> None:
        await end_task(self._task)
        await self._producer.stop()

    async def _keep_reading(self) -> None:
        while True:
            consumer = self._clients.consumer(group_id=self._group_id)
            consumer.subscribe(list(self._topics))
            try:
                await consumer.start()
                await self._read(consumer)
            except (KafkaError, OSError) as error:
                log.warning("reading_failed", reader=SOURCE, error=repr(error))
                await asyncio.sleep(RETRY_SECONDS)
            finally:
                await consumer.stop()

    async def _read(self, consumer: AIOKafkaConsumer) -> None:
        """Rejects, then commits: a record that is read again has a dead letter of the same id."""
        while True:
            batches: dict[TopicPartition, list[Record]] = await consumer.getmany(timeout_ms=1000)
            for records in batches.values():
                await asyncio.gather(
                    *[
                        await send_rejected(self._producer, self._clients, source=SOURCE, record=record, error=error)
                        for record, error in self._malformed(records)
                    ]
                )
            if batches:
                await consumer.commit({tp: records[-1].offset + 1 for tp, records in batches.items()})

    def _malformed(self, records: Sequence[Record]) -> Iterator[tuple[Record, RecordRejectedError]]:
        for record in records:
            if record.value is None:
                continue
            try:
                decode_record(self._topics[record.topic], record)
            except RecordRejectedError as error:
                yield record, error
