"""A Qdrant cluster through `AsyncQdrantClient`. The same documents and the same sparse vectors as in process.

The configured name is an alias of the collection that is live, `<name>-build-<n>`. Memory is rebuilt into the next one,
and the alias is moved in one step; a collection of the pattern that it does not name is removed at the next start.
"""

import asyncio
import contextlib
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from json import JSONDecodeError
from typing import Any

from qdrant_client import AsyncQdrantClient, models
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse

from services.memory.qdrant_text import TextVectors, matched
from services.memory.settings import Quantization
from services.memory.store import (
    CHANGED_AT_ONCE,
    EMBEDDING,
    INTEGER_FIELDS,
    KEYWORD_FIELDS,
    MOST_STATES,
    PARTITION,
    PENDING,
    Changes,
    Document,
    Find,
    Hit,
    Listed,
    Marker,
    MessageVector,
    Range,
    StoredVector,
    VectorCounts,
    VectorSpace,
    WrittenVectors,
    unchanged,
    wants_vector,
)
from services.runtime.errors import ConfigurationError, UnavailableError

NEEDED = (1, 18)
"""The version of Qdrant from which on vectors of another model can be added to a collection (qdrant/qdrant#8605)."""

BATCH = 256
TEXT = "text"
OFFSET_KIND = "offset"


@dataclass(frozen=True, slots=True)
class CollectionLayout:
    """How a cluster holds a collection, from when it is made on. `shards` None: as many as the cluster takes."""

    shards: int | None = None
    replicas: int = 1
    quantization: Quantization = "none"

    def quantization_config(self) -> models.ScalarQuantization | models.BinaryQuantization | None:
        """What is searched stays in memory, the vectors that the best are compared by again need not."""
        match self.quantization:
            case "none":
                return None
            case "scalar":
                scalar = models.ScalarQuantizationConfig(type=models.ScalarType.INT8, always_ram=True)
                return models.ScalarQuantization(scalar=scalar)
            case "binary":
                return models.BinaryQuantization(binary=models.BinaryQuantizationConfig(always_ram=True))


class MemoryCollection:
    """One collection, by its name or an alias of it. Its tenants are kept together by a tenant index."""

    def __init__(self, client: AsyncQdrantClient, url: str, name: str, layout: CollectionLayout) -> None:
        self._client = client
        self._url = url
        self._collection = name
        self._layout = layout
        self._text = TextVectors()
        self._writing = asyncio.Lock()

    async def create(self) -> None:
        """Creates the collection and its indexes where they are missing, also when an earlier start was cut short."""
        if not await self._client.collection_exists(self._collection):
            await self._client.create_collection(
                self._collection,
                vectors_config={},
                sparse_vectors_config={TEXT: models.SparseVectorParams(modifier=models.Modifier.IDF)},
                shard_number=self._layout.shards,
                replication_factor=self._layout.replicas,
                quantization_config=self._layout.quantization_config(),
            )
        for name in (*KEYWORD_FIELDS, EMBEDDING):
            schema = models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=name == "tenant_id")
            await self._client.create_payload_index(self._collection, name, schema, wait=True)
        for name in (*INTEGER_FIELDS, PARTITION):
            await self._client.create_payload_index(self._collection, name, models.PayloadSchemaType.INTEGER, wait=True)

    async def positions(self) -> Mapping[int, int]:
        condition = models.FieldCondition(key="kind", match=models.MatchValue(value=OFFSET_KIND))
        with self._calling():
            records, _ = await self._client.scroll(
                self._collection, scroll_filter=models.Filter(must=[condition]), limit=10_000
            )
        payloads = [record.payload or {} for record in records]
        return {payload["partition"]: payload["next_offset"] for payload in payloads}

    async def write(self, partition: int, changes: Changes, next_offset: int) -> None:
        """The cluster has acknowledged the data, then the offset, when this returns."""
        payload = {"kind": OFFSET_KIND, "partition": partition, "next_offset": next_offset}
        offset = models.PointStruct(id=partition, vector={}, payload=payload)
        points = [self._point(partition, document, changes.vectors) for document in changes.upserts]
        deletes = models.PointIdsList(points=list(changes.deletes))
        async with self._writing:
            if changes.vectors is not None and changes.vectors.by_point:
                with self._calling():
                    await self._prepare(changes.vectors.space)
            await self._write(points, deletes, changes.delete_all, offset)

    async def _write(
        self,
        points: Sequence[models.PointStruct],
        deletes: models.PointIdsList,
        delete_all: Sequence[Find],
        offset: models.PointStruct,
    ) -> None:
        with self._calling():
            for find in delete_all:
                await self._client.delete(self._collection, models.FilterSelector(filter=_condition(find)), wait=True)
            if deletes.points:
                await self._client.delete(self._collection, deletes, wait=True)
            for start in range(0, len(points), BATCH):
                await self._client.upsert(self._collection, points[start : start + BATCH], wait=True)
            await self._client.upsert(self._collection, [offset], wait=True)

    async def get(self, point_ids: Sequence[str]) -> Sequence[Document]:
        if not point_ids:
            return []
        with self._calling():
            return [_document(record) for record in await self._client.retrieve(self._collection, list(point_ids))]

    async def bodies(self, point_ids: Sequence[str]) -> Mapping[str, str]:
        if not point_ids:
            return {}
        with self._calling():
            records = await self._client.retrieve(self._collection, list(point_ids), with_payload=["body"])
        return {str(record.id): (record.payload or {})["body"] for record in records}

    async def of_partition(self, partition: int | None, *, after: str | None, limit: int) -> Sequence[Document]:
        missing = models.IsEmptyCondition(is_empty=models.PayloadField(key=PARTITION))
        condition = models.Filter(
            must=[missing if partition is None else _equals(PARTITION, partition)],
            must_not=[_equals("kind", OFFSET_KIND)],
        )
        with self._calling():
            records, _ = await self._client.scroll(
                self._collection, scroll_filter=condition, limit=limit + 1, offset=after
            )
        return [_document(record) for record in records if str(record.id) != after][:limit]

    async def scroll(
        self, find: Find, *, order_by: str, descending: bool, limit: int, within: Range = Range()
    ) -> Sequence[Listed]:
        with self._calling():
            records, _ = await self._client.scroll(
                self._collection,
                scroll_filter=_condition(find, {order_by: within}),
                with_payload=["body", order_by],
                order_by=_order(order_by, descending),
                limit=limit,
            )
        payloads = [(record.payload or {}, record) for record in records]
        return [Listed(payload["body"], payload[order_by], record) for payload, record in payloads]

    async def count(self, find: Find) -> int:
        with self._calling():
            return (await self._client.count(self._collection, count_filter=_condition(find), exact=True)).count

    async def search(self, find: Find, text: str, limit: int) -> Sequence[Hit]:
        vector = self._text.of_query(find, text)
        if not vector.indices:
            return []
        with self._calling():
            answer = await self._client.query_points(
                self._collection,
                query=models.SparseVector(indices=vector.indices, values=vector.values),
                using=TEXT,
                query_filter=_condition(find),
                with_payload=False,
                with_vectors=[TEXT],
                limit=limit,
            )
        wanted, hits = frozenset(vector.indices), list[Hit]()
        for point in answer.points:
            stored: Any = point.vector
            hits.append(Hit(str(point.id), point.score, matched(wanted, stored[TEXT])))
        return hits

    def marker(self, query: str) -> Marker:
        return self._text.marker(query)

    async def search_vector(
        self, find: Find, space: VectorSpace, vector: Sequence[float], limit: int, *, least: float | None = None
    ) -> Sequence[Hit]:
        with self._calling():
            if not await self._has(space):
                return []
            answer = await self._client.query_points(
                self._collection,
                query=list(vector),
                using=space.name,
                query_filter=_condition(find),
                score_threshold=least,
                with_payload=False,
                limit=limit,
            )
        return [Hit(str(point.id), point.score) for point in answer.points]

    async def put_vectors(self, space: VectorSpace, vectors: Sequence[MessageVector]) -> None:
        """No message changes in between; one process writes at a time. The state follows the vector."""
        for start in range(0, len(vectors), CHANGED_AT_ONCE):
            async with self._writing:
                with self._calling():
                    await self._put_vectors(space, vectors[start : start + CHANGED_AT_ONCE])

    async def _put_vectors(self, space: VectorSpace, vectors: Sequence[MessageVector]) -> None:
        await self._prepare(space)
        read = await self._client.retrieve(
            self._collection, [each.message.point_id for each in vectors], with_payload=["body"]
        )
        bodies = {str(record.id): (record.payload or {}).get("body") for record in read}
        stored, refused = unchanged(vectors, bodies)
        if stored:
            points = [models.PointVectors(id=id_, vector={space.name: vector}) for id_, vector in stored.items()]
            await self._client.update_vectors(self._collection, points, wait=True)
            await self._client.set_payload(self._collection, {EMBEDDING: space.stored}, [*stored], wait=True)
        if refused:
            await self._client.set_payload(self._collection, {EMBEDDING: space.refused}, [*refused], wait=True)

    async def _prepare(self, space: VectorSpace) -> None:
        """Makes room for vectors of the space, where there is none yet; the collection behind an alias may be new."""
        if not await self._has(space):
            config = models.DenseVectorConfig(size=space.size, distance=models.Distance.COSINE)
            await self._client.create_vector_name(
                self._collection, space.name, models.DenseVectorNameConfig(dense=config), wait=True
            )

    async def _has(self, space: VectorSpace) -> bool:
        """Whether vectors of the space can be asked for. Those who only read make no room for them."""
        vectors = (await self._client.get_collection(self._collection)).config.params.vectors
        return isinstance(vectors, dict) and space.name in vectors

    async def without_vector(self, space: VectorSpace, limit: int, *, within: Range = Range()) -> Sequence[Document]:
        with self._calling():
            waiting = space.waiting(await self._states())
            condition = models.FieldCondition(key=EMBEDDING, match=models.MatchAny(any=waiting))
            records, _ = await self._client.scroll(
                self._collection,
                scroll_filter=models.Filter(must=[condition, *_between({"position": within})]),
                order_by=_order("position", descending=True),
                limit=limit,
            )
        return [_document(record) for record in records]

    async def vectors(self, space: VectorSpace, point_ids: Sequence[str]) -> Mapping[str, StoredVector]:
        if not point_ids:
            return {}
        with self._calling():
            if not await self._has(space):
                return {}
            records = await self._client.retrieve(
                self._collection, list(point_ids), with_payload=["body", EMBEDDING], with_vectors=[space.name]
            )
        found: dict[str, StoredVector] = {}
        for record in records:
            vector: Any = record.vector[space.name] if isinstance(record.vector, dict) and record.vector else None
            payload = record.payload or {}
            if vector is not None and payload.get(EMBEDDING) == space.stored:
                found[str(record.id)] = StoredVector(payload["body"], vector)
        return found

    async def vector_counts(self, space: VectorSpace) -> VectorCounts:
        with self._calling():
            return VectorCounts.of(await self._states(), PENDING, space.stored, space.refused)

    async def _states(self) -> dict[str, int]:
        """How many messages are in which state of their vector."""
        answer = await self._client.facet(self._collection, EMBEDDING, limit=MOST_STATES)
        return {str(hit.value): hit.count for hit in answer.hits}

    @contextlib.contextmanager
    def _calling(self) -> Generator[None]:
        """Says of whatever the client raises that Qdrant is not available, and which.

        An answer that is no JSON, as a proxy gives, is a ValueError to it; one without a result fails its assertion.
        """
        try:
            yield
        except (ApiException, QdrantException, ValueError, AssertionError) as error:
            raise UnavailableError(f"Qdrant at {self._url} does not do as asked: {_said(error)}") from error

    def _point(self, partition: int, document: Document, vectors: WrittenVectors | None) -> models.PointStruct:
        vector: dict[str, Any] = {}
        if document.text:
            sparse = self._text.of_document(document)
            vector[TEXT] = models.SparseVector(indices=sparse.indices, values=sparse.values)
        payload = {
            "kind": document.kind,
            "tenant_id": document.tenant_id,
            PARTITION: partition,
            **document.fields,
            "body": document.body,
        }
        if wants_vector(document):
            payload[EMBEDDING] = PENDING
            if vectors is not None and (known := vectors.by_point.get(document.point_id)) is not None:
                vector[vectors.space.name] = list(known)
                payload[EMBEDDING] = vectors.space.stored
        return models.PointStruct(id=document.point_id, vector=vector, payload=payload)


class ServerMemoryStore(MemoryCollection):
    """The collection behind an alias, and while memory is rebuilt one beside it."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        collection: str,
        layout: CollectionLayout = CollectionLayout(),
        client: AsyncQdrantClient | None = None,
    ) -> None:
        """Connects with the first call. Raises ConfigurationError when the URL is none."""
        try:
            client = client or AsyncQdrantClient(url=url, api_key=api_key, check_compatibility=False)
        except ValueError as error:
            raise ConfigurationError(f"TURNLOG_QDRANT_URL: {error}") from error
        super().__init__(client, url, collection, layout)
        self._build: str | None = None

    async def open(self) -> None:
        with self._calling():
            try:
                await self._require_version()
                live = await self._live()
                if live is None:
                    await self._refuse_a_collection_of_the_name()
                    await self._remove_all_but(None)
                    live = self._numbered(1)
                    await self._of(live).create()
                    await self._point_at(live)
                else:
                    await self._remove_all_but(live)
                    await self._of(live).create()
            except UnexpectedResponse as error:
                if error.status_code in (401, 403):
                    raise ConfigurationError(
                        f"Qdrant at {self._url} refuses the key: set TURNLOG_QDRANT_API_KEY"
                    ) from error
                raise

    async def _require_version(self) -> None:
        """A version that is no number is taken for a new one."""
        version = (await self._client.info()).version
        found = re.match(r"(\d+)\.(\d+)", version)
        if found and (int(found[1]), int(found[2])) < NEEDED:
            raise ConfigurationError(
                f"Qdrant at {self._url} is {version}, and memory needs {NEEDED[0]}.{NEEDED[1]} or later: upgrade it"
            )

    async def _refuse_a_collection_of_the_name(self) -> None:
        if await self._client.collection_exists(self._collection):
            raise ConfigurationError(
                f"Qdrant at {self._url} has a collection {self._collection}, where memory needs an alias: "
                "remove it, and memory is rebuilt from Kafka, or set TURNLOG_QDRANT_COLLECTION"
            )

    async def close(self) -> None:
        await self._client.close()

    async def begin_build(self) -> MemoryCollection:
        with self._calling():
            live = await self._live()
            await self._remove_all_but(live)
            number = int(live.rpartition("-")[2]) + 1 if live else 1
            self._build = self._numbered(number)
            build = self._of(self._build)
            await build.create()
        return build

    async def switch(self) -> None:
        if self._build is None:
            raise UnavailableError("nothing was built that could be switched to")
        with self._calling():
            await self._point_at(self._build)
        self._build = None

    async def clean(self) -> None:
        self._build = None
        with self._calling():
            await self._remove_all_but(await self._live())

    def _of(self, name: str) -> MemoryCollection:
        return MemoryCollection(self._client, self._url, name, self._layout)

    def _numbered(self, number: int) -> str:
        return f"{self._collection}-build-{number}"

    async def _live(self) -> str | None:
        """The collection that the alias names."""
        aliases = (await self._client.get_aliases()).aliases
        return next((each.collection_name for each in aliases if each.alias_name == self._collection), None)

    async def _point_at(self, name: str) -> None:
        """One request, which Qdrant applies as a whole."""
        alias = self._collection
        delete = models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias))
        create = models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name=name, alias_name=alias))
        operations = [create] if await self._live() is None else [delete, create]
        await self._client.update_collection_aliases(change_aliases_operations=operations)

    async def _remove_all_but(self, live: str | None) -> None:
        pattern = re.compile(re.escape(self._collection) + r"-build-\d+")
        for each in (await self._client.get_collections()).collections:
            if each.name != live and pattern.fullmatch(each.name):
                await self._client.delete_collection(each.name)


def _said(error: Exception) -> str:
    """What an error of the client says, in one line; one that says nothing is told by its name."""
    cause = error.source if isinstance(error, ResponseHandlingException) else error
    said = f"its answer is no JSON: {cause.doc}" if isinstance(cause, JSONDecodeError) else str(cause)
    return " ".join(said.split())[:300] or type(cause).__name__


def _condition(find: Find, between: Mapping[str, Range] | None = None) -> models.Filter:
    must: list[Any] = [_equals(key, value) for key, value in find.required().items()]
    must += _between({**find.between, **(between or {})})
    for key, words in find.among.items():
        must.append(models.FieldCondition(key=key, match=models.MatchAny(any=list(words))))
    return models.Filter(must=must, must_not=[_equals(key, value) for key, value in find.without.items()] or None)


def _between(fields: Mapping[str, Range]) -> list[models.FieldCondition]:
    return [
        models.FieldCondition(key=key, range=models.Range(gt=bounds.above, lt=bounds.below))
        for key, bounds in fields.items()
        if bounds != Range()
    ]


def _order(key: str, descending: bool) -> models.OrderBy:
    return models.OrderBy(key=key, direction=models.Direction.DESC if descending else models.Direction.ASC)


def _equals(key: str, value: str | int) -> models.FieldCondition:
    return models.FieldCondition(key=key, match=models.MatchValue(value=value))


def _document(record: Any) -> Document:
    payload: dict[str, Any] = dict(record.payload or {})
    body, kind, tenant_id = payload.pop("body"), payload.pop("kind"), payload.pop("tenant_id")
    partition = payload.pop(PARTITION, None)
    payload.pop(EMBEDDING, None)
    return Document(str(record.id), kind, tenant_id, payload, body, partition=partition)
