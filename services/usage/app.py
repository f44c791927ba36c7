"""Wiring of usage."""

from collections.abc import Mapping, Sequence

from schemas.http import ComponentHealth
from schemas.topics import USAGE
from services.runtime.failpoints import Failpoints
from services.runtime.groups import USAGE_GROUP
from services.runtime.kafka import KafkaClients
from services.runtime.projection import ProjectedRecord, Projection
from services.runtime.stream import build_broker
from services.runtime.web import WebServer
from services.usage.api import build_api
from services.usage.clickhouse import ClickHouseUsageStore
from services.usage.settings import UsageSettings
from services.usage.store import Block, UsageStore

BLOCK_SECONDS = 0.5
"""An insert costs 10 ms of CPU however few its rows are: two blocks a second are as fresh as a dashboard needs."""


class UsageProjection:
    """Writes usage into a store, a batch as a block."""

    def __init__(self, store: UsageStore) -> None:
        self._store = store

    async def positions(self) -> Mapping[int, int]:
        return await self._store.positions()

    async def apply(self, partition: int, records: Sequence[ProjectedRecord], next_offset: int) -> None:
        if records:
            events = [(record.offset, record.event) for record in records]
            await self._store.insert(Block(partition, records[0].offset, records[-1].offset, events))


class UsageService:
    """Projects usage and answers what was spent."""

    name = "usage"

    def __init__(self, settings: UsageSettings) -> None:
        url = settings.clickhouse_url.get_secret_value() if settings.clickhouse_url else None
        self._store: UsageStore = ClickHouseUsageStore(url=url, folder=settings.data_dir / "usage")
        self._broker = build_broker(settings, client_id="turnlog-usage")
        self._projection = Projection(
            self._broker,
            settings=settings,
            topic=USAGE,
            group=USAGE_GROUP,
            store=UsageProjection(self._store),
            clients=KafkaClients(settings, client_id="turnlog-usage"),
            failpoints=Failpoints(settings.failpoints),
            max_records=10_000,
            pause_seconds=BLOCK_SECONDS,
        )
        self._server = WebServer(
            build_api(self._store, self.readiness), host=settings.http_host, port=settings.usage_port
        )

    async def start(self) -> None:
        await self._server.start()
        await self._store.open()
        await self._projection.start()
        await self._broker.start()

    async def stop(self) -> None:
        await self._server.stop()
        await self._broker.stop()
        await self._projection.stop()
        await self._store.close()

    async def readiness(self) -> dict[str, ComponentHealth]:
        return {"projection": self._projection.health()}
