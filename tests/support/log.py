"""A plain Kafka client, as another system has it: nothing of the platform's own code but the names of the topics."""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

Event = dict[str, Any]


class Log:
    """Publishes and reads, `read_committed`. Topics go by their names in the design; the prefix is added here."""

    def __init__(self, bootstrap: str, *, prefix: str) -> None:
        self.bootstrap = bootstrap
        self.prefix = prefix
        self._producer = AIOKafkaProducer(
            bootstrap_servers=bootstrap, enable_idempotence=True, max_request_size=16 * 1024**2
        )
        self._consumers: dict[str, AIOKafkaConsumer] = {}
        self._read: dict[str, list[Event]] = defaultdict(list)

    async def __aenter__(self) -> Self:
        await self._producer.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for consumer in self._consumers.values():
            await consumer.stop()
        await self._producer.stop()

    async def publish(
        self,
        topic: str,
        value: bytes | Mapping[str, Any],
        *,
        key: str | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> Any:
        """Writes one record, by default keyed by its thread; returns where it landed."""
        if not isinstance(value, bytes):
            key = key or value.get("thread_id")
            value = json.dumps(value).encode()
        return await self._producer.send_and_wait(
            self.prefix + topic, value, key=None if key is None else key.encode(), headers=list(headers)
        )

    async def events(self, topic: str) -> list[Event]:
        """Everything that is committed on a topic by now, a partition after the other, each with its `position`."""
        consumer = await self._consumer(topic)
        partitions = list(consumer.assignment())
        ends = await consumer.end_offsets(partitions)
        while any([await consumer.position(each) < ends[each] for each in partitions]):
            await self._poll(topic, consumer, 100)
        return sorted(self._read[topic], key=lambda event: (event["position"][0], event["position"][1]))

    async def wait_for(
        self, topic: str, wanted: Callable[[Event], bool], *, count: int = 1, seconds: float = 60
    ) -> list[Event]:
        """The first `count` committed events that are wanted. Fails after `seconds`."""
        consumer = await self._consumer(topic)
        deadline = time.monotonic() + seconds
        while True:
            found = [event for event in self._read[topic] if wanted(event)]
            if len(found) >= count:
                return found
            assert time.monotonic() < deadline, f"{len(found)} of {count} events on {topic} after {seconds:g} s"
            await self._poll(topic, consumer, 200)

    async def _consumer(self, topic: str) -> AIOKafkaConsumer:
        if topic not in self._consumers:
            consumer = AIOKafkaConsumer(
                bootstrap_servers=self.bootstrap,
                isolation_level="read_committed",
                enable_auto_commit=False,
                max_partition_fetch_bytes=16 * 1024**2,
            )
            await consumer.start()
            name = self.prefix + topic
            partitions = [TopicPartition(name, each) for each in await self._producer.partitions_for(name)]
            consumer.assign(partitions)
            await consumer.seek_to_beginning(*partitions)
            self._consumers[topic] = consumer
        return self._consumers[topic]

    async def _poll(self, topic: str, consumer: AIOKafkaConsumer, timeout_ms: int) -> None:
        for partition, records in (await consumer.getmany(timeout_ms=timeout_ms)).items():
            for record in records:
                value = {} if record.value is None else json.loads(record.value)
                headers = {name: content.decode() for name, content in record.headers}
                position = (partition.partition, record.offset)
                key = None if record.key is None else record.key.decode(errors="replace")
                self._read[topic].append({**value, "position": position, "headers": headers, "record_key": key})
