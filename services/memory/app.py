"""Wiring of memory."""

from collections.abc import Mapping, Sequence

from schemas.http import ComponentHealth
from schemas.topics import MESSAGES
from services.memory.api import build_api
from services.memory.projector import points_read, project
from services.memory.qdrant_edge import EdgeMemoryStore
from services.memory.qdrant_server import ServerMemoryStore
from services.memory.reads import Reads
from services.memory.settings import MemorySettings
from services.memory.store import MemoryStore
from services.runtime.failpoints import Failpoints
from services.runtime.groups import MEMORY_GROUP
from services.runtime.kafka import KafkaClients
from services.runtime.projection import ProjectedRecord, Projection
from services.runtime.stream import build_broker
from services.runtime.web import WebServer


class JournalProjection:
    """Writes the journal into a memory store."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def positions(self) -> Mapping[int, int]:
        return await self._store.positions()

    async def apply(self, partition: int, records: Sequence[ProjectedRecord], next_offset: int) -> None:
        events = [(record.offset, record.event) for record in records]
        existing = {each.point_id: each for each in await self._store.get(points_read([event for _, event in events]))}
        await self._store.write(partition, project(events, existing), next_offset)


def build_store(settings: MemorySettings) -> MemoryStore:
    """The cluster that is named, else the engine in process."""
    if settings.qdrant_url is None:
        return EdgeMemoryStore(settings.data_dir / "memory")
    key = settings.qdrant_api_key.get_secret_value() if settings.qdrant_api_key else None
    return ServerMemoryStore(
        settings.qdrant_url, api_key=key, collection=f"{settings.topic_prefix}{settings.qdrant_collection}"
    )


class MemoryService:
    """Projects the journal and answers reads."""

    name = "memory"

    def __init__(self, settings: MemorySettings) -> None:
        self._store = build_store(settings)
        self._broker = build_broker(settings, client_id="turnlog-memory")
        self._projection = Projection(
            self._broker,
            settings=settings,
            topic=MESSAGES,
            group=MEMORY_GROUP,
            store=JournalProjection(self._store),
            clients=KafkaClients(settings, client_id="turnlog-memory"),
            failpoints=Failpoints(settings.failpoints),
        )
        api = build_api(Reads(self._store), self._projection, self.readiness)
        self._server = WebServer(api, host=settings.http_host, port=settings.memory_port)

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
