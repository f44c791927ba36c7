"""Builds a projection anew from the log, beside the live one, and switches over.

The live projection goes on meanwhile and answers every read. Only for the last few records and the switch itself is it
held, so that the new one is exactly where the old one was. A record that is no event was rejected when the live one met
it, and is left out here. Whatever ends the rebuild before the switch leaves the live projection as it is.
"""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Protocol

import structlog

from schemas.envelope import RecordRejectedError
from schemas.http import RebuildStatus
from schemas.topics import Topic
from services.runtime.errors import TurnlogError, UnavailableError
from services.runtime.failpoints import Failpoints
from services.runtime.kafka import AIOKafkaConsumer, KafkaClients, Record, TopicPartition
from services.runtime.projection import Projection, ProjectionStore
from services.runtime.records import Prepare, ProjectedRecord, decode_record
from services.runtime.settings import RuntimeSettings
from services.runtime.topics import count_partitions

log = structlog.get_logger(__name__)

POLL_MS = 100

HELD_RECORDS = 500
"""So few are left for the moment in which the live projection is held: about a tenth of a second."""

ROUNDS = 10
"""Each is what has arrived during the one before: where that does not get less, the last one is done while held."""

HELD_SECONDS = 10.0
"""Most that the live projection waits for the last records: Kafka may go away in that very moment."""


class Builds(Protocol):
    """Where a projection can be built beside the live one."""

    async def begin(self) -> ProjectionStore:
        """A store, empty or with what the log says up to its positions; what an earlier build has left is gone."""
        ...

    async def complete(self) -> None:
        """Gives what was built so far what else it wants, and the log does not say. That may take long: the live one
        goes on, and more is built afterwards."""
        ...

    async def switch(self) -> None:
        """What was built is the live one from now on, also after a restart. As a whole, whatever is killed."""
        ...

    async def clean(self) -> None:
        """Removes what is not the live one."""
        ...


class RebuildRunningError(TurnlogError):
    """There is one rebuild of a projection at a time."""

    code = "rebuild_running"


class NoRebuildError(TurnlogError):
    """There is nothing to cancel."""

    code = "no_rebuild"


class Rebuild:
    """At most one rebuild of one projection at a time, and how far it is.

    Args:
        batch: most records that are applied at once; they are projected on the event loop, where reads wait for them.
        prepare: the projection's own.
    """

    def __init__(
        self,
        projection: Projection,
        builds: Builds,
        *,
        settings: RuntimeSettings,
        clients: KafkaClients,
        topic: Topic,
        failpoints: Failpoints,
        batch: int,
        prepare: Prepare | None = None,
    ) -> None:
        self._projection = projection
        self._builds = builds
        self._settings = settings
        self._clients = clients
        self._topic = topic
        self._failpoints = failpoints
        self._batch = batch
        self._prepare = prepare
        self._task: asyncio.Task[None] | None = None
        self._unasked: asyncio.Task[None] | None = None
        self._ending = False
        self._status = RebuildStatus(state="none")
        self._begins: dict[TopicPartition, int] = {}
        self._reached: dict[TopicPartition, int] = {}

    async def start(self) -> RebuildStatus:
        """Begins, and returns at once, or when what nobody has asked for is out of the way.

        Raises RebuildRunningError, or UnavailableError before the projection runs.
        """
        if self._unasked is not None:
            self._unasked = None
            await self.stop()
        self._begin(self._builds)
        return self.status()

    async def run_unasked(self, builds: Builds) -> RebuildStatus:
        """A rebuild with builds of its own, to its end, which gives way as soon as somebody asks for one.

        Raises RebuildRunningError when it has given way, or one runs already; UnavailableError as `start`.
        """
        task = self._unasked = self._begin(builds)
        await asyncio.wait({task})
        if self._unasked is not task:
            raise RebuildRunningError("it has given way to a rebuild that was asked for")
        self._unasked = None
        return self.status()

    def _begin(self, builds: Builds) -> asyncio.Task[None]:
        if self._task is not None and not self._task.done():
            raise RebuildRunningError(
                f"it is being rebuilt since {self._status.started_at:%H:%M:%S} UTC "
                f"({self.status().done} of {self.status().total} records): wait for its end, or cancel it"
            )
        if not self._projection.started:
            raise UnavailableError("the projection has not started yet: see /readyz for what it waits for")
        self._begins, self._reached = {}, {}
        self._status = RebuildStatus(state="running", started_at=datetime.now(UTC))
        self._task = asyncio.create_task(self._run(builds), name=f"rebuild:{self._topic.name}")
        return self._task

    def status(self) -> RebuildStatus:
        """Counts are kept when it has ended."""
        if self._status.state == "running":
            done = sum(self._reached[each] - self._begins[each] for each in self._begins)
            total = sum(max(0, self._target(each) - self._begins[each]) for each in self._begins)
            self._status = self._status.model_copy(update={"done": done, "total": total})
        return self._status

    async def cancel(self) -> RebuildStatus:
        """Returns when it has ended and what was built is gone; a switch, or a failure, comes to its own end instead.

        Raises NoRebuildError.
        """
        if self._task is None or self._task.done():
            raise NoRebuildError("nothing is being rebuilt")
        await self.stop()
        return self.status()

    async def stop(self) -> None:
        """Cancels what runs, if anything does."""
        if self._task is not None and not self._task.done():
            if not self._ending:
                self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self, builds: Builds) -> None:
        try:
            await self._build_and_switch(builds)
        except asyncio.CancelledError:
            self._end("cancelled", "cancelled before the switch: the live one is as it was")
        except Exception as error:  # noqa: BLE001 - whatever it is, the live projection goes on and the status says so
            self._end("failed", f"{type(error).__name__}: {error}"[:500])
        else:
            self._end("done", "")
        finally:
            self._ending = False

    async def _build_and_switch(self, builds: Builds) -> None:
        consumer = self._clients.consumer()
        try:
            await consumer.start()
            name = self._settings.topic(self._topic.name)
            count = await count_partitions(self._clients, self._settings, self._topic)
            partitions = [TopicPartition(name, number) for number in range(count)]
            consumer.assign(partitions)
            await consumer.seek_to_beginning(*partitions)
            self._reached = {each: await consumer.position(each) for each in partitions}
            build = await builds.begin()
            for number, position in (await build.positions()).items():
                partition = TopicPartition(name, number)
                self._reached[partition] = position
                consumer.seek(partition, position)
            self._begins = dict(self._reached)
            await self._catch_up(consumer, build)
            await builds.complete()
            for _ in range(ROUNDS):
                await self._catch_up(consumer, build)
                if sum(max(0, self._target(each) - self._reached[each]) for each in partitions) <= HELD_RECORDS:
                    break
            async with self._projection.held():
                try:
                    async with asyncio.timeout(HELD_SECONDS):
                        await self._catch_up(consumer, build)
                except TimeoutError as error:
                    raise UnavailableError(
                        f"the last records took more than {HELD_SECONDS:g} s: Kafka is away, or the log grows faster "
                        "than it is read"
                    ) from error
                for each in partitions:
                    await build.apply(each.partition, [], self._reached[each])
                self._ending = True
                self._failpoints.hit("rebuild.before_switch")
                await builds.switch()
                self._failpoints.hit("rebuild.after_switch")
        finally:
            self._ending = True
            await consumer.stop()
            await self._clean(builds)

    def _target(self, partition: TopicPartition) -> int:
        return self._projection.position(partition.partition)

    async def _catch_up(self, consumer: AIOKafkaConsumer, build: ProjectionStore) -> None:
        """Applies what the live projection has by now."""
        goals = {each: self._target(each) for each in self._reached}
        while behind := [each for each, goal in goals.items() if self._reached[each] < goal]:
            await self._step(consumer, build, behind)

    async def _step(self, consumer: AIOKafkaConsumer, build: ProjectionStore, behind: Sequence[TopicPartition]) -> None:
        """Applies what comes next, never anything that the live projection does not have yet."""
        batches: dict[TopicPartition, list[Record]] = await consumer.getmany(
            *behind, timeout_ms=POLL_MS, max_records=self._batch
        )
        for partition, records in batches.items():
            target = self._target(partition)
            known = [record for record in records if record.offset < target]
            if len(known) < len(records):
                consumer.seek(partition, target)
            if known:
                events = await asyncio.to_thread(self._decoded, known)
                await build.apply(partition.partition, events, known[-1].offset + 1)
                self._failpoints.hit("rebuild.after_batch")
        for partition in behind:
            self._reached[partition] = await consumer.position(partition)

    def _decoded(self, records: Sequence[Record]) -> list[ProjectedRecord]:
        events: list[ProjectedRecord] = []
        for record in records:
            try:
                events.append(decode_record(self._topic, record, self._prepare))
            except RecordRejectedError:
                continue  # it is on dead-letters since the live projection has met it
        return events

    async def _clean(self, builds: Builds) -> None:
        """What cannot be removed now, because the engine is down, is removed at the next start."""
        try:
            await builds.clean()
        except (TurnlogError, OSError) as error:
            log.warning("rebuild_leaves_remains", topic=self._topic.name, reason=str(error))

    def _end(self, state: str, detail: str) -> None:
        ended = {"state": state, "detail": detail, "ended_at": datetime.now(UTC)}
        self._status = self.status().model_copy(update=ended)
        log.info("rebuild_ended", topic=self._topic.name, state=state, records=self._status.done, reason=detail)
