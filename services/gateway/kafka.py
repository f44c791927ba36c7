"""The log as the gateway needs it: produce to `prompts`, tail what threads emit, read a stretch of the past."""

import asyncio
import contextlib
import heapq
from collections.abc import AsyncIterator, Generator
from datetime import UTC, datetime

import structlog
from opentelemetry.trace import SpanKind
from pydantic import BaseModel

from schemas.base import ThreadEvent
from schemas.envelope import header_map
from schemas.http import ComponentHealth
from schemas.ids import new_id
from schemas.topics import COMPLETIONS, DELTAS, MESSAGES, PROMPTS, TOOL_CALLS, TOOL_RESULTS, USAGE, Topic
from services.gateway.accepting import hold_to_readers
from services.gateway.answers import written_of
from services.gateway.fanout import Fanout, Listener, LogEvent, Position, Wanted
from services.runtime.errors import UnavailableError
from services.runtime.kafka import (
    AIOKafkaConsumer,
    AIOKafkaProducer,
    KafkaClients,
    KafkaError,
    OffsetAndTimestamp,
    Record,
    TopicPartition,
    partition_of,
)
from services.runtime.settings import RuntimeSettings
from services.runtime.telemetry import Traces, current_traceparent

log = structlog.get_logger(__name__)

TAILED: tuple[Topic, ...] = (PROMPTS, MESSAGES, DELTAS, TOOL_CALLS, TOOL_RESULTS, COMPLETIONS, USAGE)
PRODUCE_SECONDS = 10
RETRY_SECONDS = 1.0

WRITTEN_SECONDS = 5.0
"""Reading what the model has written so far: some hundred thousand deltas of other threads may be in between."""

LULL_SECONDS = 0.25
"""How late the tail may be while nobody listens: it takes what has come at once, instead of waking the broker for every
record."""


class ThreadLog:
    """Reads and writes threads on Kafka. One tail serves every client of the process."""

    def __init__(self, clients: KafkaClients, settings: RuntimeSettings, *, traces: Traces) -> None:
        self._clients = clients
        self._traces = traces
        self._settings = settings
        self._topics = {settings.topic(topic.name): topic for topic in TAILED}
        self._producer: AIOKafkaProducer = clients.producer()
        self._partitions = 0
        self._fanout = Fanout()
        self._task: asyncio.Task[None] | None = None
        self._trouble: str | None = "starting"

    async def start(self, partitions: int) -> None:
        self._partitions = partitions
        await self._producer.start()
        tailing = asyncio.Event()
        self._task = asyncio.create_task(self._tail(tailing), name="gateway:tail")
        await tailing.wait()

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._producer.stop()

    def health(self) -> ComponentHealth:
        return ComponentHealth(ready=self._trouble is None, detail=self._trouble or "")

    @property
    def prompts_topic(self) -> str:
        """As Kafka knows it."""
        return self._settings.topic(PROMPTS.name)

    def partition(self, thread_id: str) -> int:
        return partition_of(thread_id, self._partitions)

    def journal_position(self, thread_id: str) -> tuple[int, int]:
        """Partition of a thread, and the offset of `messages` that a read must reflect to show what was seen here."""
        partition = self.partition(thread_id)
        return partition, self._fanout.position(partition).next(MESSAGES.name) or 0

    def saw_end_of(self, tenant_id: str, turn_id: str) -> bool:
        """Whether the tail has read the terminal event of a turn lately."""
        return self._fanout.ended_lately(tenant_id, turn_id)

    async def submit(self, event: ThreadEvent) -> tuple[int, int]:
        """Writes an event to `prompts`: partition and offset.

        Raises UnavailableError; then it may be sent again. Raises ProblemError where no worker would take it.
        """
        at, key = datetime.now(UTC), event.thread_id
        attributes = {
            "messaging.system": "kafka",
            "messaging.operation.name": "send",
            "messaging.operation.type": "send",
            "messaging.destination.name": self.prompts_topic,
            "messaging.destination.partition.id": str(self.partition(key)),
            "gen_ai.conversation.id": key,
            "turnlog.tenant_id": event.tenant_id,
        }
        with self._traces.span(f"send {PROMPTS.name}", kind=SpanKind.PRODUCER, attributes=attributes):
            record = self._clients.record(
                PROMPTS.name, event, key=key, event_id=new_id(at), at=at, traceparent=current_traceparent()
            )
            hold_to_readers(PROMPTS, record["value"], header_map(record["headers"]))
            try:
                async with asyncio.timeout(PRODUCE_SECONDS):
                    written = await self._producer.send_and_wait(**record, partition=self.partition(key))
            except (KafkaError, TimeoutError) as error:
                raise UnavailableError(f"Kafka does not take the record: {error!r}") from error
        return written.partition, written.offset

    async def send(self, topic: Topic, event: BaseModel, key: str) -> None:
        """Writes a definition to a registry topic. Raises as `submit`."""
        at = datetime.now(UTC)
        record = self._clients.record(topic.name, event, key=key, event_id=new_id(at), at=at)
        hold_to_readers(topic, record["value"], header_map(record["headers"]))
        try:
            async with asyncio.timeout(PRODUCE_SECONDS):
                await self._producer.send_and_wait(**record, partition=0)
        except (KafkaError, TimeoutError) as error:
            raise UnavailableError(f"Kafka does not take the record: {error!r}") from error

    @contextlib.contextmanager
    def listening(self, tenant_id: str, thread_id: str, *, awaited: Wanted | None = None) -> Generator[Listener]:
        """A listener on the thread, from now on, or from up to LULL_SECONDS ago; see `Fanout.listen`."""
        listener = self._fanout.listen(tenant_id, thread_id, self.partition(thread_id), awaited=awaited)
        try:
            yield listener
        finally:
            self._fanout.leave(listener)

    async def past(self, listener: Listener, since: Position | None) -> AsyncIterator[LogEvent]:
        """What the thread emitted between a position and the beginning of the listener.

        Topics are merged by time and each keeps its own order, so that a position after any event leaves none out.

        Without a position: everything that the log still has.
        """
        consumer = self._clients.consumer()
        await consumer.start()
        try:
            stretches: list[list[LogEvent]] = []
            for name, topic in self._topics.items():
                partition = TopicPartition(name, listener.partition)
                begin = since.next(topic.name) if since is not None else 0
                end = listener.began.next(topic.name) or 0
                if begin is not None and begin < end:
                    stretches.append(await self._stretch(consumer, partition, begin, end, listener.key))
        finally:
            await consumer.stop()
        for event in heapq.merge(*stretches, key=lambda each: each.timestamp_ms):
            yield event

    async def written(self, tenant_id: str, thread_id: str, turn_id: str, since: datetime) -> dict[int, str]:
        """By step, what the model has written of the answers of a turn, from what `deltas` still has since then.

        Of several attempts the last one counts, and none that was given up. Raises UnavailableError when they are not
        to be had in time.
        """
        partition = TopicPartition(self._settings.topic(DELTAS.name), self.partition(thread_id))
        consumer = self._clients.consumer()
        try:
            async with asyncio.timeout(WRITTEN_SECONDS):
                await consumer.start()
                asked = {partition: int(since.timestamp() * 1000)}
                begins: dict[TopicPartition, OffsetAndTimestamp | None] = await consumer.offsets_for_times(asked)
                ends: dict[TopicPartition, int] = await consumer.end_offsets([partition])
                if (begin := begins[partition]) is None:
                    return {}
                deltas = await self._stretch(consumer, partition, begin.offset, ends[partition], (tenant_id, thread_id))
        except (KafkaError, TimeoutError) as error:
            raise UnavailableError(f"deltas of turn {turn_id} are not to be had: {error!r}") from error
        finally:
            await consumer.stop()
        return written_of(each for each in deltas if each.body.get("turn_id") == turn_id)

    async def _stretch(
        self, consumer: AIOKafkaConsumer, partition: TopicPartition, begin: int, end: int, key: tuple[str, str]
    ) -> list[LogEvent]:
        consumer.assign([partition])
        beginnings: dict[TopicPartition, int] = await consumer.beginning_offsets([partition])
        consumer.seek(partition, max(begin, beginnings[partition]))
        events: list[LogEvent] = []
        while await consumer.position(partition) < end:
            batches: dict[TopicPartition, list[Record]] = await consumer.getmany(timeout_ms=100)
            for batch in batches.values():
                for record in batch:
                    event = self._event(record)
                    if event is not None and record.offset < end and (event.tenant_id, event.thread_id) == key:
                        events.append(event)
        return events

    async def _tail(self, tailing: asyncio.Event) -> None:
        """Reads the end of every topic for ever; after a failure from where it was."""
        partitions = [TopicPartition(name, number) for name in self._topics for number in range(self._partitions)]
        positions: dict[TopicPartition, int] = {}
        while True:
            consumer = self._clients.consumer(fetch_max_wait_ms=50)
            try:
                await consumer.start()
                consumer.assign(partitions)
                if not positions:
                    positions = await consumer.end_offsets(partitions)
                    for partition, offset in positions.items():
                        topic = self._topics[partition.topic].name
                        self._fanout.position(partition.partition).passed(topic, offset - 1)
                for partition, offset in positions.items():
                    consumer.seek(partition, offset)
                self._trouble = None
                tailing.set()
                while True:
                    batches: dict[TopicPartition, list[Record]] = await consumer.getmany(timeout_ms=1000)
                    for partition, records in batches.items():
                        for record in records:
                            self._publish(record)
                        positions[partition] = records[-1].offset + 1
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(LULL_SECONDS):
                            await self._fanout.somebody.wait()
            except (KafkaError, OSError) as error:
                self._trouble = f"Kafka: {error!r}"
                log.warning("tail_waits", reason=repr(error))
                await asyncio.sleep(RETRY_SECONDS)
            finally:
                await consumer.stop()

    def _publish(self, record: Record) -> None:
        topic = self._topics[record.topic]
        if topic is not COMPLETIONS and not self._fanout.hears(record.partition):
            self._fanout.position(record.partition).passed(topic.name, record.offset)
        elif (event := self._event(record)) is not None:
            self._fanout.publish(record.partition, event)

    def _event(self, record: Record) -> LogEvent | None:
        return LogEvent.read(
            self._topics[record.topic],
            value=record.value or b"",
            headers=header_map(record.headers),
            offset=record.offset,
            timestamp_ms=record.timestamp,
        )
