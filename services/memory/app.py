"""Wiring of memory."""

from pydantic import SecretStr

from schemas.http import ComponentHealth
from schemas.topics import MESSAGES
from services.memory.api import build_api
from services.memory.audit import install_audit
from services.memory.embedder_http import HttpEmbedder
from services.memory.embedder_local import LocalEmbedder
from services.memory.embeddings import Embedder, Embeddings
from services.memory.fill import EmbeddingFill
from services.memory.projection import JournalBuilds, JournalProjection, LiveProjection
from services.memory.qdrant_edge import EdgeMemoryStore
from services.memory.reads import Reads
from services.memory.search import FormerModel, Search
from services.memory.settings import MemorySettings
from services.memory.store import MemoryStore
from services.memory.upkeep import Upkeep
from services.memory.usage_log import UsageProducer
from services.runtime.connections import Connections
from services.runtime.failpoints import Failpoints
from services.runtime.groups import MEMORY_GROUP, instance_of
from services.runtime.kafka import KafkaClients
from services.runtime.projection import Projection
from services.runtime.rebuild import Rebuild
from services.runtime.rebuild_api import install_rebuild
from services.runtime.stream import build_broker
from services.runtime.telemetry import traces_of
from services.runtime.web import WebServer

REBUILD_BATCH = 256
"""Records that are projected between two reads: 10 to 20 ms."""


def build_store(settings: MemorySettings) -> MemoryStore:
    """The cluster that is named, else the engine in process."""
    if settings.qdrant_url is None:
        return EdgeMemoryStore(settings.data_dir / "memory")
    from services.memory.qdrant_server import (  # noqa: PLC0415 - the client takes half of the start of memory
        CollectionLayout,
        ServerMemoryStore,
    )

    key = settings.qdrant_api_key.get_secret_value() if settings.qdrant_api_key else None
    return ServerMemoryStore(
        settings.qdrant_url,
        api_key=key,
        collection=f"{settings.topic_prefix}{settings.qdrant_collection}",
        layout=CollectionLayout(settings.qdrant_shards, settings.qdrant_replicas, settings.qdrant_quantization),
    )


def build_embedder(settings: MemorySettings) -> Embedder | None:
    """The model that is named; None where no vectors are wanted."""
    return _embedder(settings.embedding_model, settings.embedding_base_url, settings.embedding_api_key)


def build_former_embedder(settings: MemorySettings) -> Embedder | None:
    """The model that is named as the former one; None where that is none, or the present one.

    The key of the present one is sent to the endpoint of the present one alone.
    """
    if settings.embedding_former_model in {None, settings.embedding_model}:
        return None
    base_url = settings.embedding_former_base_url or settings.embedding_base_url
    key = settings.embedding_former_api_key
    if key is None and base_url == settings.embedding_base_url:
        key = settings.embedding_api_key
    return _embedder(settings.embedding_former_model, base_url, key)


def _embedder(name: str | None, base_url: str, key: SecretStr | None) -> Embedder | None:
    match name:
        case None | "none":
            return None
        case LocalEmbedder.model:
            return LocalEmbedder()
        case model:
            return HttpEmbedder(base_url, model=model, api_key=key)


class MemoryService:
    """Projects the journal and answers reads.

    Args:
        store: where the journal goes; by default what the settings name.
        embedder: what makes vectors; by default what the settings name.
    """

    name = "memory"

    def __init__(
        self, settings: MemorySettings, *, store: MemoryStore | None = None, embedder: Embedder | None = None
    ) -> None:
        self._store = store or build_store(settings)
        self._broker = build_broker(settings, client_id="turnlog-memory")
        self._traces = traces_of(settings, self.name)
        clients, failpoints = KafkaClients(settings, client_id="turnlog-memory"), Failpoints(settings.failpoints)
        self._usage = UsageProducer(clients)
        embedder = embedder or build_embedder(settings)
        embeddings = Embeddings(embedder, self._usage.record) if embedder else None
        former_embedder = build_former_embedder(settings) if embeddings else None
        former = FormerModel(self._store, Embeddings(former_embedder, self._usage.record)) if former_embedder else None
        self._embeddings = [each for each in (embeddings, former and former.embeddings) if each]
        builds = JournalBuilds(self._store, embeddings)
        self._fill: EmbeddingFill | None = None
        if embeddings:
            self._fill = EmbeddingFill(self._store, embeddings, failpoints, former, lambda: builds.building)
        store_of_records = (
            LiveProjection(self._store, self._fill.wake) if self._fill else JournalProjection(self._store)
        )
        self._projection = Projection(
            self._broker,
            settings=settings,
            topic=MESSAGES,
            group=MEMORY_GROUP,
            store=store_of_records,
            clients=clients,
            failpoints=failpoints,
            traces=self._traces,
            instance_id=instance_of(settings.data_dir) if isinstance(self._store, EdgeMemoryStore) else None,
        )
        self._rebuild = Rebuild(
            self._projection,
            builds,
            settings=settings,
            clients=clients,
            topic=MESSAGES,
            failpoints=failpoints,
            batch=REBUILD_BATCH,
        )
        reads = Reads(self._store, Search(self._store, embeddings, former))
        self.api = build_api(reads, self._projection, self.readiness)
        install_rebuild(self.api, self._rebuild)
        install_audit(self.api, self._store, self._projection)
        self._server = WebServer(self.api, host=settings.http_host, port=settings.memory_port)
        steps = [self._store.open, self._projection.start, self._usage.start, self._broker.start]
        if self._fill:
            steps.append(self._fill.start)
        self._upkeep: Upkeep | None = None
        if embeddings and isinstance(self._store, EdgeMemoryStore):
            self._upkeep = Upkeep(self._store, embeddings, self._rebuild, former)
            steps.append(self._upkeep.start)
        self._connections = Connections(self.name, settings.bootstrap, steps)

    @property
    def port(self) -> int:
        """The port of the HTTP interface, once started."""
        return self._server.port

    async def start(self) -> None:
        """Returns while Qdrant or Kafka is still down; they are tried until they answer. Raises ConfigurationError."""
        await self._server.start()
        await self._connections.start()

    async def stop(self) -> None:
        await self._connections.stop()
        await self._server.stop()
        if self._upkeep:
            await self._upkeep.stop()
        await self._rebuild.stop()
        if self._fill:
            await self._fill.stop()
        await self._broker.stop()
        await self._projection.stop()
        for embeddings in self._embeddings:
            await embeddings.close()
        await self._usage.stop()
        await self._store.close()
        await self._traces.close()

    async def readiness(self) -> dict[str, ComponentHealth]:
        components = {"connections": self._connections.health(), "projection": self._projection.health()}
        return components | ({"embeddings": self._fill.health()} if self._fill else {})
