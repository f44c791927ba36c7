"""A projection: a topic written into a store that remembers by itself how far it is.

The store keeps the next offset of each partition beside the data, data first. Whatever is killed at whatever moment,
a restart reads from there: a record may be applied twice, never left out, and applying is idempotent by offset.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

import structlog
from faststream import AckPolicy
from faststream.kafka import KafkaBroker
from faststream.kafka.annotations import KafkaMessage
from opentelemetry.trace import SpanKind
from prometheus_client import Gauge

from schemas.envelope import RecordRejectedError
from schemas.http import ComponentHealth
from schemas.topics import MAX_RECORD_BYTES, Topic
from services.runtime.dead_letters import send_rejected
from services.runtime.errors import BehindError, ConfigurationError, UnavailableError
from services.runtime.failpoints import Failpoints
from services.runtime.kafka import (
    AIOKafkaProducer,
    ConsumerRebalanceListener,
    KafkaClients,
    KafkaError,
    Record,
    TopicPartition,
)
from services.runtime.markers import MarkerReader
from services.runtime.records import Prepare, ProjectedRecord, decode_record
from services.runtime.settings import RuntimeSettings
from services.runtime.stream import parse_bare, undecoded
from services.runtime.tasks import end_task
from services.runtime.telemetry import Traces
from services.runtime.topics import require_topic

log = structlog.get_logger(__name__)

POLL_MS = 20
"""FastStream sleeps this long after an empty poll: it bounds the delay of a projection that was idle."""

RETRY_SECONDS = 0.5

MOST_REST_SECONDS = 2.0

DECODED_AT_ONCE = 1000
"""Records between two moments in which the process may do something else."""

RECORD_BYTES = 500
"""About as many a record has: of a partition so much is fetched at once that a batch can be full."""

MARKER_SECONDS = 0.25
"""A projection that is still behind after this looks whether it waits for a record at all."""

LOG_CHECK_SECONDS = 5.0
"""Kafka's client waits for ever for a topic that does not exist."""

LAG_SECONDS = 5.0
"""Between two measurements of the lag. They go on while nothing can be applied: that is when it grows."""

LAG = Gauge("turnlog_projection_lag_records", "Records that a projection is behind", ["topic", "partition"])


class ProjectionStore(Protocol):
    """Where a projection lives."""

    async def positions(self) -> Mapping[int, int]:
        """The next offset of each partition, as the store remembers it."""
        ...

    async def apply(self, partition: int, records: Sequence[ProjectedRecord], next_offset: int) -> None:
        """Writes the records, then `next_offset`. Idempotent by offset; raises while the store is down."""
        ...


class Projection(ConsumerRebalanceListener):
    """Feeds a store from a topic. A record that is no event goes to `dead-letters` and the partition goes on.

    Args:
        max_records: largest batch.
        prepare: every event, before it is applied.
        rest: so many times as long as a batch took it waits for more, up to MOST_REST_SECONDS, for a store to which a
            small batch costs as much as a large one. Not while it is behind: after a tenth of a full batch.
        instance_id: static membership of the group, of a store that one process at a time has open.
    """

    def __init__(
        self,
        broker: KafkaBroker,
        *,
        settings: RuntimeSettings,
        topic: Topic,
        group: str,
        store: ProjectionStore,
        clients: KafkaClients,
        failpoints: Failpoints,
        traces: Traces,
        max_records: int = 1000,
        rest: int = 0,
        prepare: Prepare | None = None,
        instance_id: str | None = None,
    ) -> None:
        self._topic = topic
        self._settings = settings
        self._name = settings.topic(topic.name)
        self._source = group
        self._group_id = f"{settings.topic_prefix}{group}"
        self._store = store
        self._clients = clients
        self._failpoints = failpoints
        self._traces = traces
        self._rest = rest
        self._max_records = max_records
        self._prepare = prepare
        self._producer: AIOKafkaProducer = clients.producer()
        self._markers = MarkerReader(self._name, clients)
        self._positions: dict[int, int] = {}
        self._in_hand: set[int] = set()
        self._measuring: asyncio.Task[None] | None = None
        self._moved = asyncio.Condition()
        self._applying = asyncio.Lock()
        self._started = asyncio.Event()
        self._trouble: str | None = "not started"
        self._subscriber = broker.subscriber(
            self._name,
            group_id=self._group_id,
            group_instance_id=instance_id,
            batch=True,
            batch_timeout_ms=POLL_MS,
            max_records=max_records,
            max_partition_fetch_bytes=max(MAX_RECORD_BYTES, max_records * RECORD_BYTES),
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            ack_policy=AckPolicy.MANUAL,
            listener=self,
            parser=parse_bare,
            decoder=undecoded,
            no_reply=True,
        )
        self._subscriber(self._handle)

    async def start(self) -> None:
        """Reads where the store is. Call before the broker starts; again, when it has failed.

        Raises ConfigurationError when the store is further than the log: it was fed from another one. Raises
        UnavailableError while the topic is missing.
        """
        self._positions = dict(await self._store.positions())
        await self._markers.start()
        await require_topic(self._clients, self._settings, self._topic)
        if self._positions:
            await self._check_log()
        await self._producer.start()
        self._started.set()
        self._trouble = None
        self._measuring = asyncio.create_task(self._keep_measuring(), name=f"{self._topic.name}:lag")

    async def _check_log(self) -> None:
        """Offsets of another log would make new records look like known ones, which are left out without a word."""
        try:
            async with asyncio.timeout(LOG_CHECK_SECONDS):
                ends = await self.ends(self._positions)
        except TimeoutError as error:
            raise UnavailableError(f"{self._name} does not answer for partitions {sorted(self._positions)}") from error
        for partition, end in ends.items():
            if self._positions[partition] > end:
                raise ConfigurationError(
                    f"{self._name}[{partition}] ends at {end} and the store is at {self._positions[partition]}: "
                    "it was fed from another Kafka. Set TURNLOG_KAFKA_BOOTSTRAP to that one, or remove the store's "
                    "data so that it is rebuilt from this one"
                )

    async def stop(self) -> None:
        await end_task(self._measuring)
        await self._markers.stop()
        await self._producer.stop()

    def health(self) -> ComponentHealth:
        return ComponentHealth(ready=self._trouble is None, detail=self._trouble or "")

    @property
    def started(self) -> bool:
        """Whether its positions are known; before that they are all 0."""
        return self._started.is_set()

    async def until_started(self) -> None:
        """Returns when its positions are known. Bound it from outside."""
        await self._started.wait()

    def position(self, partition: int) -> int:
        """The next offset of a partition that the store does not reflect yet."""
        return self._positions.get(partition, 0)

    async def ends(self, partitions: Iterable[int]) -> dict[int, int]:
        """Where committed records of partitions end now. Bound it from outside. Raises KafkaError."""
        return await self._markers.ends(partitions)

    @contextlib.asynccontextmanager
    async def held(self) -> AsyncGenerator[None]:
        """Nothing is written into the store while the block lasts, and no position moves."""
        async with self._applying:
            yield

    async def wait_for(self, partition: int, min_offset: int, timeout_seconds: float) -> None:
        """Returns when the store reflects everything before `min_offset`. Raises BehindError after the time-out."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while not await self._moves_to(partition, min_offset, MARKER_SECONDS):
                    await self._pass_markers(partition, min_offset)
        except (TimeoutError, KafkaError) as error:
            raise BehindError(
                f"{self._topic.name}[{partition}] is at {self.position(partition)}, asked for {min_offset}"
            ) from error

    async def _moves_to(self, partition: int, min_offset: int, seconds: float) -> bool:
        """Whether the partition is there, or gets there in time."""
        if self.position(partition) >= min_offset:
            return True
        try:
            async with asyncio.timeout(seconds), self._moved:
                return await self._moved.wait_for(lambda: self.position(partition) >= min_offset)
        except TimeoutError:
            return False

    async def _pass_markers(self, partition: int, min_offset: int) -> None:
        """Moves on when nothing but transaction markers is before `min_offset`: no record will tell of those."""
        begin = self.position(partition)
        if not self.started or await self._markers.next_record(partition, begin, min_offset) < min_offset:
            return
        async with self._applying:
            await self._move(partition, max(self.position(partition), min_offset))

    def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Nothing: what was applied is in the store."""

    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Goes on where the store is, whatever the group has committed."""
        consumer = self._subscriber.consumer
        assert consumer is not None
        for partition in assigned:
            consumer.seek(partition, self._positions.get(partition.partition, 0))

    async def _handle(self, _: Any, message: KafkaMessage) -> None:
        raw: Record | tuple[Record, ...] = message.raw_message
        records = raw if isinstance(raw, tuple) else (raw,)
        by_partition: dict[int, list[Record]] = {}
        for record in records:
            by_partition.setdefault(record.partition, []).append(record)
        self._in_hand = {*by_partition}
        began = asyncio.get_running_loop().time()
        for partition, batch in by_partition.items():
            await self._apply(partition, batch)
            self._in_hand.discard(partition)
        took = asyncio.get_running_loop().time() - began
        behind = len(records) >= self._max_records / 10
        await asyncio.sleep(0 if behind else min(MOST_REST_SECONDS, self._rest * took))

    async def _apply(self, partition: int, batch: Sequence[Record]) -> None:
        """Applies a batch, as often as it takes. An offset is passed only when its record is stored or rejected."""
        fresh = [record for record in batch if record.offset >= self.position(partition)]
        if not fresh:
            return
        next_offset = fresh[-1].offset + 1
        attributes = {
            "messaging.system": "kafka",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": self._name,
            "messaging.destination.partition.id": str(partition),
            "messaging.consumer.group.name": self._group_id,
            "messaging.batch.message_count": len(fresh),
        }
        events: list[ProjectedRecord] | None = None
        while True:
            try:
                if events is None:
                    events = await self._decode(fresh)
                self._failpoints.hit("projection.before_store")
                links = (each.traceparent for each in events)
                name = f"process {self._topic.name}"
                async with self._applying:
                    with self._traces.span(name, kind=SpanKind.CONSUMER, attributes=attributes, links=links):
                        await self._store.apply(partition, events, next_offset)
                    self._failpoints.hit("projection.after_store")
                    await self._move(partition, next_offset)
                break
            except Exception as error:  # noqa: BLE001 - whatever the store's trouble is, the log waits for it
                trouble = f"{type(error).__name__}: {error}"[:500]
                if trouble != self._trouble:
                    log.warning("projection_waits", topic=self._topic.name, partition=partition, reason=trouble)
                self._trouble = trouble
                await asyncio.sleep(RETRY_SECONDS)
        self._trouble = None

    async def _move(self, partition: int, next_offset: int) -> None:
        async with self._moved:
            self._positions[partition] = next_offset
            self._moved.notify_all()

    async def _keep_measuring(self) -> None:
        while True:
            await asyncio.sleep(LAG_SECONDS)
            with contextlib.suppress(KafkaError, TimeoutError):
                async with asyncio.timeout(LAG_SECONDS):
                    await self.measure()

    async def measure(self) -> None:
        """Sets the lag of each partition that is read here. Raises KafkaError where its end is not to be had."""
        consumer = self._subscriber.consumer
        if consumer is None or not consumer.assignment():
            return
        ends: dict[TopicPartition, int] = await consumer.end_offsets([*consumer.assignment()])
        for tp, end in ends.items():
            done = self.position(tp.partition)
            if tp.partition not in self._in_hand:
                # The consumer has passed the markers of transactions too, which no record tells of.
                done = max(done, await consumer.position(tp))
            LAG.labels(self._topic.name, str(tp.partition)).set(max(0, end - done))

    async def _decode(self, records: Sequence[Record]) -> list[ProjectedRecord]:
        """The records that are events. Returns when the others are on `dead-letters`."""
        events: list[ProjectedRecord] = []
        rejected: list[Awaitable[Any]] = []
        for number, record in enumerate(records, 1):
            if number % DECODED_AT_ONCE == 0:
                await asyncio.sleep(0)
            try:
                events.append(decode_record(self._topic, record, self._prepare))
            except RecordRejectedError as error:
                sent = send_rejected(self._producer, self._clients, source=self._source, record=record, error=error)
                rejected.append(await sent)
        await asyncio.gather(*rejected)
        return events
