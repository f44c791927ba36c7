"""How far a projection is behind is measured also while its store is down: that is when it grows."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

from faststream.kafka import KafkaBroker

from schemas.topics import MESSAGES
from services.runtime.errors import UnavailableError
from services.runtime.failpoints import Failpoints
from services.runtime.kafka import KafkaClients, TopicPartition
from services.runtime.projection import LAG, Projection
from services.runtime.settings import RuntimeSettings
from services.runtime.telemetry import Traces
from tests.support.waiting import until

THIRD = TopicPartition(MESSAGES.name, 3)


class Log:
    """One partition, and its consumer as FastStream has it."""

    end = read = 0

    def __init__(self) -> None:
        self.consumer = self
        self.handle: Any = None

    def subscriber(self, *names: str, **options: object) -> "Log":
        return self

    def __call__(self, handle: Callable[..., Any]) -> None:
        self.handle = handle

    def assignment(self) -> set[TopicPartition]:
        return {THIRD}

    async def end_offsets(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        return dict.fromkeys(partitions, self.end)

    async def position(self, partition: TopicPartition) -> int:
        return self.read


class Store:
    """Down until it is told to be up."""

    up = False
    tried = 0

    async def positions(self) -> Mapping[int, int]:
        return {}

    async def apply(self, partition: int, records: Sequence[Any], next_offset: int) -> None:
        self.tried += 1
        if not self.up:
            raise UnavailableError("down")


async def test_the_lag_grows_while_the_store_is_down_and_markers_are_none_of_it() -> None:
    settings, log, store = RuntimeSettings(), Log(), Store()
    projection = Projection(
        cast("KafkaBroker", log),
        settings=settings,
        topic=MESSAGES,
        group="memory",
        store=store,
        clients=KafkaClients(settings, client_id="test"),
        failpoints=Failpoints(),
        traces=Traces(),
    )

    async def lag() -> float:
        await projection.measure()
        return LAG.labels(MESSAGES.name, "3")._value.get()

    value = b'{"type":"thread.deleted","thread_id":"t-1","deleted_at":"2026-01-01T00:00:00Z"}'
    records = tuple(
        SimpleNamespace(offset=offset, partition=3, value=value, headers=(), key=None, timestamp=0, topic=MESSAGES.name)
        for offset in range(3)
    )
    log.end = log.read = 3
    handling = asyncio.create_task(log.handle(None, SimpleNamespace(raw_message=records)))
    await until(lambda: store.tried > 0, "an attempt to write")
    assert await lag() == 3
    log.end = 10
    assert await lag() == 10
    store.up = True
    await handling
    assert await lag() == 7
    log.read = 10
    assert await lag() == 0
    await projection.stop()
