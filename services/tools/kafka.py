"""Calls from Kafka by FastStream, answers to Kafka.

At least once: a call's offset is committed after its answer was acknowledged, and only with every offset before it.
FastStream's own workers commit the position of whichever call ends first; here one subscriber takes records in order,
as many as there are, a tracker a partition knows which have ended, and slow calls hold up nobody.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from typing import Any, cast

import structlog
from faststream import AckPolicy
from faststream.kafka import KafkaBroker
from faststream.kafka.annotations import KafkaMessage

from schemas.http import ComponentHealth
from services.runtime.kafka import (
    AIOKafkaConsumer,
    ConsumerRebalanceListener,
    KafkaError,
    Record,
    StickyPartitionAssignor,
    TopicPartition,
)
from services.runtime.stream import parse_bare, undecoded
from services.runtime.tasks import end_task
from services.tools import metrics
from services.tools.tracker import OffsetTracker

log = structlog.get_logger(__name__)

POLL_MS = 10
"""FastStream sleeps this long after an empty poll: it bounds the delay of a call that comes after a pause."""

COMMIT_RETRY_SECONDS = 0.5

LAST_COMMIT_SECONDS = 5.0
"""For the commit before leaving; without it other workers run the calls again, which is safe."""

MAX_SPREAD = 5_000
"""Offsets between the oldest running call of a partition and its newest: what a crash reads again at worst."""

PROBE_SECONDS = 1.5

Handler = Callable[[Record], Awaitable[None]]


class CallConsumer(ConsumerRebalanceListener):
    """Feeds records of the queues to a handler, many at once, and commits those that are answered."""

    def __init__(
        self,
        broker: KafkaBroker,
        *,
        topics: Collection[str],
        group_id: str,
        handle: Handler,
        concurrency: int,
        session_timeout_ms: int,
    ) -> None:
        self._handle = handle
        self._concurrency = concurrency
        self._most_waiting = max(16, concurrency)
        self._trackers: dict[TopicPartition, OffsetTracker] = {}
        self._committed: dict[TopicPartition, int] = {}
        self._waiting: deque[tuple[OffsetTracker, Record]] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._full = False
        self._stopping = False
        self._joined = False
        self._advanced = asyncio.Event()
        self._committer: asyncio.Task[None] | None = None
        self._subscriber = broker.subscriber(
            *topics,
            group_id=group_id,
            batch=True,
            batch_timeout_ms=POLL_MS,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            partition_assignment_strategy=(StickyPartitionAssignor,),
            session_timeout_ms=session_timeout_ms,
            heartbeat_interval_ms=max(300, session_timeout_ms // 4),
            fetch_max_wait_ms=100,
            ack_policy=AckPolicy.MANUAL,
            listener=self,
            parser=parse_bare,
            decoder=undecoded,
            no_reply=True,
        )
        self._subscriber(self._take)

    def start(self) -> None:
        """Call before the broker starts."""
        self._committer = asyncio.create_task(self._commit_as_it_advances(), name="tools:commit")

    async def stop(self, grace_seconds: float) -> None:
        """Takes nothing more, lets running calls end for the grace time, commits. Call before the broker stops.

        Calls that do not end are cancelled and left uncommitted: another worker runs them again, with the same id.
        """
        self._stopping = True
        self._waiting.clear()
        self._regulate()
        if self._running:
            await asyncio.wait(self._running, timeout=grace_seconds)
        cut_off = list(self._running)
        for task in cut_off:
            task.cancel()
        await asyncio.gather(*cut_off, return_exceptions=True)
        if cut_off:
            log.warning("calls_cut_off", calls=len(cut_off), grace_seconds=grace_seconds)
        await end_task(self._committer)
        try:
            async with asyncio.timeout(LAST_COMMIT_SECONDS):
                await self._commit()
        except (KafkaError, TimeoutError) as error:
            log.warning("last_commit_failed", reason=repr(error))

    async def health(self) -> ComponentHealth:
        """Ready when the group has given this worker its share, which may be nothing, and Kafka answers."""
        consumer = self._consumer
        if consumer is None or not self._joined:
            return ComponentHealth(ready=False, detail="waiting for the group to assign partitions")
        assigned = sorted(consumer.assignment())
        if assigned:
            try:
                async with asyncio.timeout(PROBE_SECONDS):
                    await consumer.end_offsets(assigned[:1])
            except (KafkaError, TimeoutError) as error:
                return ComponentHealth(ready=False, detail=f"Kafka does not answer: {error!r}")
        return ComponentHealth(ready=True, detail=f"{len(assigned)} partitions, {len(self._running)} calls running")

    async def on_partitions_revoked(  # pyright: ignore[reportIncompatibleMethodOverride] - aiokafka awaits it
        self, revoked: Collection[TopicPartition]
    ) -> None:
        """Commits what is answered, so that whoever gets a partition repeats little."""
        try:
            async with asyncio.timeout(LAST_COMMIT_SECONDS):
                await self._commit()
        except (KafkaError, TimeoutError) as error:
            log.info("commit_refused", reason=repr(error))

    async def on_partitions_assigned(  # pyright: ignore[reportIncompatibleMethodOverride] - aiokafka awaits it
        self, assigned: Collection[TopicPartition]
    ) -> None:
        """An eager rebalance revokes all and gives most of it back: those partitions keep their tracker, and what is
        read again of them is recognised. Calls of partitions that are gone end, but are not committed here."""
        await self._pass_over_what_others_did([each for each in assigned if each in self._trackers])
        self._trackers = {each: self._trackers.get(each) or OffsetTracker() for each in assigned}
        self._committed = {each: offset for each, offset in self._committed.items() if each in self._trackers}
        kept = set(map(id, self._trackers.values()))
        self._waiting = deque(each for each in self._waiting if id(each[0]) in kept)
        self._joined = True
        self._regulate()

    async def _pass_over_what_others_did(self, kept: Collection[TopicPartition]) -> None:
        """A partition that seems kept may have been away: this worker slept, another one went on with it."""
        consumer = self._consumer
        if consumer is None:
            return
        for partition in kept:
            try:
                async with asyncio.timeout(LAST_COMMIT_SECONDS):
                    committed = cast("int | None", await consumer.committed(partition))
            except (KafkaError, TimeoutError) as error:
                # Without the answer the partition is taken as new: calls may run twice, none is left out.
                log.info("committed_unknown", topic=partition.topic, partition=partition.partition, reason=repr(error))
                del self._trackers[partition]
                continue
            if committed is not None and committed > self._committed.get(partition, -1):
                self._trackers[partition].pass_over(committed)
                self._committed[partition] = committed

    @property
    def _consumer(self) -> AIOKafkaConsumer | None:
        return self._subscriber.consumer

    async def _take(self, _: Any, message: KafkaMessage) -> None:
        """Returns at once: a handler that waited here would stop the consumer from being polled."""
        for record in cast("tuple[Record, ...]", message.raw_message):
            tracker = self._trackers.get(TopicPartition(record.topic, record.partition))
            if not self._stopping and tracker is not None and tracker.begin(record.offset):
                self._waiting.append((tracker, record))
        self._fill()

    def _fill(self) -> None:
        while self._waiting and len(self._running) < self._concurrency and not self._stopping:
            tracker, record = self._waiting.popleft()
            task = asyncio.create_task(self._run(tracker, record), name=f"call:{record.topic}:{record.offset}")
            self._running.add(task)
            task.add_done_callback(self._ended)
        self._regulate()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Not answered, so not committed: the partition waits and the next owner runs the call again.
            log.error("call_unanswered", call=task.get_name(), reason=repr(error))
        self._fill()

    async def _run(self, tracker: OffsetTracker, record: Record) -> None:
        await self._handle(record)
        tracker.finish(record.offset)
        self._advanced.set()

    def _regulate(self) -> None:
        """Pauses what must not be read now. The consumer is still polled, so that it stays in the group."""
        metrics.CALLS_RUNNING.set(len(self._running))
        metrics.CALLS_WAITING.set(len(self._waiting))
        consumer = self._consumer
        if consumer is None:
            return
        if len(self._waiting) >= self._most_waiting:
            self._full = True
        elif len(self._waiting) <= self._most_waiting // 2:
            self._full = False
        held = self._stopping or self._full
        paused = consumer.paused()
        for partition in consumer.assignment():
            tracker = self._trackers.get(partition)
            hold = held or (tracker is not None and tracker.spread >= MAX_SPREAD)
            if hold and partition not in paused:
                consumer.pause(partition)
            elif not hold and partition in paused:
                consumer.resume(partition)

    async def _commit_as_it_advances(self) -> None:
        """One commit at a time, each of all that has ended by then."""
        while True:
            await self._advanced.wait()
            self._advanced.clear()
            try:
                await self._commit()
            except KafkaError as error:
                # A rebalance is under way, or Kafka is away: the next commit says the same and more.
                log.info("commit_refused", reason=repr(error))
                await asyncio.sleep(COMMIT_RETRY_SECONDS)
                self._advanced.set()

    async def _commit(self) -> None:
        consumer = self._consumer
        if consumer is None:
            return
        assigned = consumer.assignment()
        offsets = {
            partition: position
            for partition, tracker in self._trackers.items()
            if partition in assigned
            and (position := tracker.position) is not None
            and position > self._committed.get(partition, -1)
        }
        if offsets:
            await consumer.commit(offsets)
            self._committed |= offsets
            self._regulate()
