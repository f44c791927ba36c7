"""Where the next record of a partition is. What comes before it are markers of transactions, which nobody is shown.

One consumer looks for everybody who waits, and what it has found serves them all: thousands may wait at once.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from services.runtime.kafka import AIOKafkaConsumer, KafkaClients, Record, TopicPartition

POLL_MS = 100


@dataclass(frozen=True, slots=True)
class _Found:
    """From `begin` up to `offset` are markers alone; `record`: whether there is a record at it."""

    begin: int
    offset: int
    record: bool


class MarkerReader:
    """Reads one topic, and only while it is asked; tells where it ends."""

    def __init__(self, topic: str, clients: KafkaClients) -> None:
        self._topic = topic
        self._consumer: AIOKafkaConsumer = clients.consumer()
        self._started = False
        self._looking = asyncio.Lock()
        self._found: dict[int, _Found] = {}

    async def start(self) -> None:
        """May be called again, after whatever was started behind it has failed. Raises KafkaError."""
        if not self._started:
            await self._consumer.start()
            self._started = True

    async def stop(self) -> None:
        await self._consumer.stop()

    async def ends(self, partitions: Iterable[int]) -> dict[int, int]:
        """Where committed records of partitions end now. Bound it from outside. Raises KafkaError."""
        asked = [TopicPartition(self._topic, number) for number in partitions]
        ends: dict[TopicPartition, int] = await self._consumer.end_offsets(asked)
        return {partition.partition: end for partition, end in ends.items()}

    async def next_record(self, partition: int, begin: int, end: int) -> int:
        """The offset of the first record from `begin` on; where none is before `end`, an offset from `end` on.

        Waits until the log is stable up to `end`: bound it from outside. Raises KafkaError.
        """
        async with self._looking:
            found = self._found.get(partition)
            if found is None or not (found.begin <= begin <= found.offset and (found.record or end <= found.offset)):
                found = self._found[partition] = await self._look(partition, begin, end)
            return found.offset

    async def _look(self, number: int, begin: int, end: int) -> _Found:
        partition = TopicPartition(self._topic, number)
        consumer = self._consumer
        consumer.assign([partition])
        consumer.seek(partition, begin)
        try:
            while (position := await consumer.position(partition)) < end:
                batches: dict[TopicPartition, list[Record]] = await consumer.getmany(
                    partition, timeout_ms=POLL_MS, max_records=1
                )
                for record in batches.get(partition, []):
                    return _Found(begin, record.offset, record=True)
            return _Found(begin, position, record=False)
        finally:
            consumer.assign([])
