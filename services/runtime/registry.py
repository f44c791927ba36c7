"""Reads a compacted topic of definitions (`agents`, `tools`, `prices`, ...) and follows it; applies new ones."""

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

import structlog

from schemas.base import Spec
from schemas.envelope import RecordRejectedError, decode_event, header_map
from schemas.ids import new_id
from schemas.topics import MAX_RECORD_BYTES, Topic
from services.runtime.errors import UnavailableError
from services.runtime.kafka import AIOKafkaConsumer, AIOKafkaProducer, KafkaClients, Record, TopicPartition
from services.runtime.settings import RuntimeSettings
from services.runtime.topics import require_topic

log = structlog.get_logger(__name__)

S = TypeVar("S", bound=Spec)

CATCH_UP_SECONDS = 5


class Registry(Generic[S]):
    """Every definition that a topic holds, kept up to date while running.

    A name has the version that was applied last; a tenant's own definition goes before one for every tenant. Applying
    an older version again makes it the current one.
    """

    def __init__(self, clients: KafkaClients, settings: RuntimeSettings, topic: Topic) -> None:
        self._clients = clients
        self._settings = settings
        self._topic = topic
        self._partition = TopicPartition(settings.topic(topic.name), 0)
        self._consumer: AIOKafkaConsumer = clients.consumer()
        self._task: asyncio.Task[None] | None = None
        self._records: dict[bytes, S] = {}
        self._current: dict[tuple[str | None, str], S] = {}
        self._versions: dict[tuple[str | None, str, str], S] = {}
        self._position = 0
        self._moved = asyncio.Condition()

    async def start(self) -> None:
        """Returns when everything that was on the topic has been read. Raises UnavailableError while it is missing."""
        await require_topic(self._clients, self._settings, self._topic)
        await self._consumer.start()
        self._consumer.assign([self._partition])
        await self._consumer.seek_to_beginning(self._partition)
        self._task = asyncio.create_task(self._follow(), name=f"registry:{self._topic.name}")
        await self.catch_up(timeout_seconds=60)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._consumer.stop()

    @property
    def position(self) -> int:
        """How far the topic was read: while it stands still, so do the definitions."""
        return self._position

    async def catch_up(self, *, timeout_seconds: float = CATCH_UP_SECONDS) -> None:
        """Waits until what is on the topic now has been read. Raises UnavailableError after the time-out."""
        try:
            async with asyncio.timeout(timeout_seconds):
                ends: dict[TopicPartition, int] = await self._consumer.end_offsets([self._partition])
                end = ends[self._partition]
                async with self._moved:
                    await self._moved.wait_for(lambda: self._position >= end)
        except TimeoutError as error:
            raise UnavailableError(
                f"{self._partition.topic} was not read to its end within {timeout_seconds} s"
            ) from error

    def get(self, name: str, *, tenant_id: str, version: str | None = None) -> S | None:
        """The definition a tenant sees under a name; of a version that is gone, the current one."""
        for owner in (tenant_id, None):
            if version is not None and (spec := self._versions.get((owner, name, version))):
                return spec
        return self._current.get((tenant_id, name)) or self._current.get((None, name))

    def all(self, tenant_id: str) -> list[S]:
        """The definitions that a tenant sees, by name."""
        names = sorted({name for owner, name in self._current if owner in (tenant_id, None)})
        return [spec for name in names if (spec := self.get(name, tenant_id=tenant_id))]

    def history(self) -> Sequence[S]:
        """Every version of every definition, in the order in which they were applied last."""
        return tuple(self._records.values())

    def current(self) -> Sequence[S]:
        """The current definition of every name, of every tenant."""
        return tuple(self._current.values())

    async def moved(self) -> None:
        """Returns when the topic has been looked at again, within about a second."""
        async with self._moved:
            await self._moved.wait()

    async def _follow(self) -> None:
        while True:
            batches: dict[TopicPartition, list[Record]] = await self._consumer.getmany(timeout_ms=1000)
            for records in batches.values():
                for record in records:
                    self._take(record)
            position = await self._consumer.position(self._partition)
            async with self._moved:
                self._position = position
                self._moved.notify_all()

    def _take(self, record: Record) -> None:
        key = record.key or b""
        if record.value is None:
            self._remove(key)
            return
        try:
            event = decode_event(self._topic, record.value, header_map(record.headers), max_bytes=MAX_RECORD_BYTES)
        except RecordRejectedError as error:
            log.debug("definition_ignored", topic=record.topic, offset=record.offset, reason=str(error))
            return
        self._put(key, event)

    def _remove(self, key: bytes) -> None:
        """A tombstone was read."""
        gone = self._records.pop(key, None)
        if gone is not None:
            self._versions.pop((gone.tenant_id, gone.name, gone.version), None)
            if self._current.get((gone.tenant_id, gone.name)) is gone:
                del self._current[gone.tenant_id, gone.name]

    def _put(self, key: bytes, event: Any) -> None:
        """An event of the topic was read."""
        spec: S = event
        self._records.pop(key, None)
        self._records[key] = spec
        self._current[spec.tenant_id, spec.name] = spec
        self._versions[spec.tenant_id, spec.name, spec.version] = spec


def spec_key(spec: Spec) -> str:
    """The record key of a definition. It carries the version, so that compaction keeps every version of a name."""
    owner = f"{spec.tenant_id}/" if spec.tenant_id else ""
    return f"{owner}{spec.name}@{spec.version}"


async def apply_spec(
    producer: AIOKafkaProducer, clients: KafkaClients, settings: RuntimeSettings, topic: Topic, spec: Spec
) -> None:
    """Writes a definition; it is the current one of its name when this returns."""
    at = datetime.now(UTC)
    record = clients.record(topic.name, spec, key=spec_key(spec), event_id=new_id(at), at=at)
    await producer.send_and_wait(**record, partition=0)
