"""Membership: which partitions this worker owns, and the records that it hands to their owners.

Membership is by subscribing to `prompts` alone; `tool-results` and `turns` of a partition are read by assignment, so
the three can't come apart. aiokafka's assignors are eager: every rebalance revokes everything, so an owner is closed
only when the new assignment shows it gone.
"""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Coroutine
from typing import Any, Generic, TypeVar

import structlog

from schemas.http import ComponentHealth
from schemas.topics import PROMPTS, TOOL_RESULTS
from services.runtime import metrics
from services.runtime.errors import UnavailableError
from services.runtime.failpoints import Failpoints
from services.runtime.kafka import (
    AIOKafkaConsumer,
    ConsumerRebalanceListener,
    KafkaClients,
    KafkaError,
    ProducerFenced,
    Record,
    TopicPartition,
)
from services.runtime.owner.actor import Actor
from services.runtime.owner.clock import Clock
from services.runtime.owner.partition import PartitionOwner
from services.runtime.owner.takeover import take_partition
from services.runtime.settings import RuntimeSettings

log = structlog.get_logger(__name__)

S = TypeVar("S")

POLL_MS = 200
"""Longest wait of a poll: bounds how late a pause, a resume or a new partition is noticed."""

HIGH_WATER = 2_000
"""Records consumed and not decided at which a partition is paused; reading goes on below LOW_WATER."""

LOW_WATER = 500

HEARTBEAT_MS = 1_000
"""A worker learns of a rebalance by its next heartbeat: what a takeover waits for beyond the session time-out."""

RETAKE_SECONDS = 1.0
"""Between two tries to take a partition whose broker does not answer."""


class OwnerWorker(ConsumerRebalanceListener, Generic[S]):
    """Owns its share of the partitions, one `PartitionOwner` each.

    Args:
        max_open: actors with work left, over all partitions, at which nothing new is taken in.
        session_timeout_ms: how long the group waits for a worker that is silent before it gives its work away.
        instance_id: static membership; a worker that comes back under it within the session time-out keeps its
            partitions without a rebalance for the others.
    """

    def __init__(
        self,
        *,
        actor: Actor[S],
        group_id: str,
        clients: KafkaClients,
        settings: RuntimeSettings,
        failpoints: Failpoints,
        max_open: int,
        session_timeout_ms: int,
        instance_id: str | None = None,
    ) -> None:
        self._actor = actor
        self._group_id = group_id
        self._clients = clients
        self._settings = settings
        self._failpoints = failpoints
        self._max_open = max_open
        self._session_seconds = session_timeout_ms / 1000
        self._membership: dict[str, Any] = {
            "session_timeout_ms": session_timeout_ms,
            "heartbeat_interval_ms": min(HEARTBEAT_MS, session_timeout_ms // 3),
            "group_instance_id": instance_id,
        }
        self._consumer: AIOKafkaConsumer | None = None
        self._results: AIOKafkaConsumer = clients.consumer()
        self._owners: dict[int, PartitionOwner[S]] = {}
        self._holding: dict[int, asyncio.Task[None]] = {}
        self._assigned: set[int] | None = None
        self._results_changed = asyncio.Event()
        self._rejoin = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._failure: str | None = None

    async def start(self) -> None:
        """Joins the group. Partitions are taken as the group assigns them."""
        await self._results.start()
        self._tasks = [
            asyncio.create_task(self._keep(self._read_prompts), name="owner:prompts"),
            asyncio.create_task(self._keep(self._read_results), name="owner:results"),
        ]

    async def stop(self, grace_seconds: float) -> None:
        """Stops intake, lets calls in flight end and be committed for up to the grace time, leaves the group."""
        owners = list(self._owners.values())
        for owner in owners:
            owner.stop_intake()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_seconds):
                await asyncio.gather(*(owner.drain() for owner in owners))
        await self._cancel(self._tasks)
        await self._release_all()
        if self._consumer is not None:
            await self._consumer.stop()
        await self._results.stop()

    def health(self) -> ComponentHealth:
        """Ready when the group has spoken and every assigned partition is taken and takes in."""
        if self._failure is not None:
            return ComponentHealth(ready=False, detail=self._failure)
        if self._assigned is None:
            return ComponentHealth(ready=False, detail="waiting for the group to assign partitions")
        missing = sorted(self._assigned - self._owners.keys())
        if missing:
            return ComponentHealth(ready=False, detail=f"taking partitions {missing}")
        waiting = [owner.unavailable for owner in self._owners.values() if owner.unavailable]
        if waiting:
            return ComponentHealth(ready=False, detail=waiting[0])
        return ComponentHealth(ready=True, detail=f"partitions {sorted(self._owners)}")

    def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Nothing: an eager rebalance revokes all, most of it only to give it back."""

    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Keeps what stays, lets go of what is gone, begins to take what is new."""
        consumer = self._consumer
        assert consumer is not None
        partitions = {each.partition for each in assigned}
        for each in assigned:
            owner = self._owners.get(each.partition)
            if owner is None:
                consumer.pause(each)
            else:
                consumer.seek(each, owner.next_offsets[PROMPTS.name])
        self._assigned = partitions
        self._rejoin.clear()
        log.info("partitions_assigned", partitions=sorted(partitions))
        for partition in self._holding.keys() - partitions:
            self._holding[partition].cancel()
        for partition in partitions - self._holding.keys():
            self._hold(partition)

    def _hold(self, partition: int) -> None:
        task = asyncio.create_task(self._hold_partition(partition), name=f"owner:{partition}")
        self._holding[partition] = task
        task.add_done_callback(lambda done: self._let_go(partition, done))

    def _let_go(self, partition: int, done: asyncio.Task[None]) -> None:
        """After a partition's task has ended: takes it again when a rebalance gave it back in the meantime."""
        if self._holding.get(partition) is done:
            del self._holding[partition]
        if done.cancelled() and self._tasks and self._assigned is not None and partition in self._assigned:
            self._hold(partition)

    async def _hold_partition(self, partition: int) -> None:
        """Takes the partition and runs its owner; takes it again after a failure, after a fence when it may."""
        while True:
            try:
                await self._own(partition)
            except ProducerFenced:
                log.info("partition_fenced", partition=partition)
                await self._await_rebalance()
            except (KafkaError, OSError, TimeoutError, UnavailableError) as error:
                log.warning("partition_lost", partition=partition, error=repr(error))
                self._failure = f"partition {partition}: {error!r}"
                await asyncio.sleep(RETAKE_SECONDS)
            except Exception as error:  # a fault of ours; without an owner all of the partition's threads would stop
                log.exception("partition_failed", partition=partition)
                self._failure = f"partition {partition}: {error!r}"
                await asyncio.sleep(RETAKE_SECONDS)

    async def _own(self, partition: int) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        taken = await take_partition(
            partition,
            group_id=self._group_id,
            clients=self._clients,
            settings=self._settings,
            failpoints=self._failpoints,
        )
        await self._actor.taken(partition, taken.recent, taken.journal_end)
        owner = PartitionOwner(
            taken,
            actor=self._actor,
            group_id=self._group_id,
            clients=self._clients,
            settings=self._settings,
            failpoints=self._failpoints,
            clock=Clock(),
        )
        self._owners[partition] = owner
        metrics.PARTITIONS_OWNED.set(len(self._owners))
        metrics.RECOVERY_SECONDS.observe(loop.time() - began)
        log.info("partition_taken", partition=partition, open=owner.open_count, seconds=round(loop.time() - began, 3))
        self._failure = None
        try:
            self._results_changed.set()
            self._resume(partition, owner)
            await owner.run()
        finally:
            del self._owners[partition]
            self._results_changed.set()
            metrics.PARTITIONS_OWNED.set(len(self._owners))

    def _resume(self, partition: int, owner: PartitionOwner[S]) -> None:
        tp = TopicPartition(self._settings.topic(PROMPTS.name), partition)
        consumer = self._consumer
        if consumer is not None and tp in consumer.assignment():
            consumer.seek(tp, owner.next_offsets[PROMPTS.name])
            consumer.resume(tp)

    async def _await_rebalance(self) -> None:
        """A fenced worker was taken for dead. If no rebalance tells it so in time, it joins the group anew."""
        await asyncio.sleep(self._session_seconds)
        self._rejoin.set()
        await asyncio.sleep(self._session_seconds)

    async def _read_prompts(self) -> None:
        """One membership of the group, until it is suspect."""
        self._rejoin.clear()
        consumer = self._clients.consumer(group_id=self._group_id, **self._membership)
        self._consumer = consumer
        consumer.subscribe([self._settings.topic(PROMPTS.name)], listener=self)
        await consumer.start()
        try:
            while not self._rejoin.is_set():
                batches: dict[TopicPartition, list[Record]] = await consumer.getmany(timeout_ms=POLL_MS)
                for tp, records in batches.items():
                    owner = self._owners.get(tp.partition)
                    if owner is not None:
                        owner.feed(PROMPTS.name, records)
                self._press_back(consumer)
        finally:
            await self._release_all()
            self._assigned = None
            self._consumer = None
            await consumer.stop()

    def _press_back(self, consumer: AIOKafkaConsumer) -> None:
        """Pauses partitions that are too far ahead of their owner, and all of them at the cap of open actors."""
        open_count = sum(owner.open_count + owner.backlog for owner in self._owners.values())
        metrics.TURNS_IN_FLIGHT.set(sum(owner.open_count for owner in self._owners.values()))
        paused = {tp.partition for tp in consumer.paused()}
        topic = self._settings.topic(PROMPTS.name)
        assigned = {tp.partition for tp in consumer.assignment()}
        for partition, owner in self._owners.items():
            if partition not in assigned:
                continue
            tp = TopicPartition(topic, partition)
            if partition in paused:
                if owner.backlog < LOW_WATER and open_count < self._max_open:
                    consumer.resume(tp)
            elif owner.backlog > HIGH_WATER or open_count >= self._max_open:
                consumer.pause(tp)

    async def _read_results(self) -> None:
        """Reads `tool-results` of the owned partitions, each from where its owner is."""
        consumer = self._results
        topic = self._settings.topic(TOOL_RESULTS.name)
        while True:
            if self._results_changed.is_set():
                self._results_changed.clear()
                owned = dict(self._owners)
                consumer.assign([TopicPartition(topic, partition) for partition in owned])
                for partition, owner in owned.items():
                    consumer.seek(TopicPartition(topic, partition), owner.next_offsets[TOOL_RESULTS.name])
            if not consumer.assignment():
                await self._results_changed.wait()
                continue
            batches: dict[TopicPartition, list[Record]] = await consumer.getmany(timeout_ms=POLL_MS)
            for tp, records in batches.items():
                owner = self._owners.get(tp.partition)
                if owner is not None:
                    owner.feed(TOOL_RESULTS.name, records)

    async def _keep(self, read: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Reads for ever: again when it ends, and after a pause when the broker fails."""
        while True:
            try:
                await read()
                self._failure = None
            except (KafkaError, OSError) as error:
                self._failure = f"Kafka: {error!r}"
                log.warning("reading_failed", reader=read.__name__, error=repr(error))
                await asyncio.sleep(RETAKE_SECONDS)

    async def _release_all(self) -> None:
        holding = list(self._holding.values())
        self._assigned = set() if self._assigned is not None else None
        await self._cancel(holding)

    @staticmethod
    async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
