"""A topic as an audit reads it: committed records, one partition after the other, up to an offset that is fixed."""

import time
from collections.abc import AsyncGenerator, Sequence
from types import TracebackType
from typing import Self

from schemas.envelope import RecordRejectedError
from schemas.topics import Topic
from services.runtime.errors import TurnlogError, UnavailableError
from services.runtime.kafka import KafkaClients, KafkaConnectionError, Record, TopicPartition
from services.runtime.records import Prepare, ProjectedRecord, decode_record
from services.runtime.settings import RuntimeSettings
from services.runtime.topics import count_partitions

BATCH = 2000
POLL_MS = 200

SILENCE_SECONDS = 30.0
"""Kafka has gone away when a partition that has records gives none for so long."""


class AuditedTopic:
    """Reads a topic by assignment: it joins no group and commits nothing.

    Raises UnavailableError when Kafka does not answer.
    """

    def __init__(self, settings: RuntimeSettings, topic: Topic, prepare: Prepare | None = None) -> None:
        self._settings = settings
        self._topic = topic
        self._name = settings.topic(topic.name)
        self._prepare = prepare
        self._clients = KafkaClients(settings, client_id="turnlog-audit")
        self._consumer = self._clients.consumer()
        self.partitions = 0
        self.events = 0
        self.rejected = 0

    async def __aenter__(self) -> Self:
        try:
            await self._consumer.start()
            self.partitions = await count_partitions(self._clients, self._settings, self._topic)
        except KafkaConnectionError as error:
            await self._consumer.stop()
            raise UnavailableError(
                f"no Kafka answers at {self._settings.bootstrap}: start `turnlog up` or set TURNLOG_KAFKA_BOOTSTRAP"
            ) from error
        except TurnlogError:
            await self._consumer.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._consumer.stop()

    def position(self, partition: int, offset: int) -> str:
        """How a record is named."""
        return f"{self._name}[{partition}]@{offset}"

    async def ends(self) -> list[int]:
        """Of every partition: the offset behind everything that is committed now."""
        partitions = [self._partition(number) for number in range(self.partitions)]
        ends = await self._consumer.end_offsets(partitions)
        return [ends[each] for each in partitions]

    async def begin(self, partition: int) -> int:
        begins = await self._consumer.beginning_offsets([self._partition(partition)])
        return begins[self._partition(partition)]

    async def events_of(
        self, partition: int, first: int, end: int, *, counted: bool = False
    ) -> AsyncGenerator[list[ProjectedRecord]]:
        """The events from these offsets in batches; `first` is included, `end` is not."""
        async for records in self._records(partition, first, end):
            events = self._decoded(records)
            if counted:
                self.events += len(events)
                self.rejected += len(records) - len(events)
            yield events

    async def event_at(self, partition: int, offset: int) -> ProjectedRecord | None:
        """None where there is no event."""
        async for events in self.events_of(partition, offset, offset + 1):
            return events[0] if events else None
        return None

    async def _records(self, partition: int, first: int, end: int) -> AsyncGenerator[list[Record]]:
        tp = self._partition(partition)
        first = max(first, await self.begin(partition))
        if first >= end:
            return
        self._consumer.assign([tp])
        self._consumer.seek(tp, first)
        heard = time.monotonic()
        while (reached := await self._consumer.position(tp)) < end:
            batches: dict[TopicPartition, list[Record]] = await self._consumer.getmany(
                tp, timeout_ms=POLL_MS, max_records=BATCH
            )
            records = batches.get(tp, [])
            if known := [record for record in records if record.offset < end]:
                yield known
            if len(known) < len(records):
                return
            if await self._consumer.position(tp) > reached:
                heard = time.monotonic()
            elif time.monotonic() - heard > SILENCE_SECONDS:
                raise UnavailableError(f"Kafka gives no record of {self.position(partition, reached)}, end is {end}")

    def _decoded(self, records: Sequence[Record]) -> list[ProjectedRecord]:
        events: list[ProjectedRecord] = []
        for record in records:
            try:
                events.append(decode_record(self._topic, record, self._prepare))
            except RecordRejectedError:
                continue
        return events

    def _partition(self, number: int) -> TopicPartition:
        return TopicPartition(self._name, number)
