"""One shard of Qdrant's engine in process. Every call holds the GIL, so batches are small and all run on one thread.

A flush holds it too, for 5 to 15 ms, on a busy disk for half a second: so there is none a batch but one now and then.
The stored offsets are those of the last flush: a process that is killed reads what came after it again, which changes
nothing more.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import qdrant_edge as qdrant

from services.memory.qdrant_text import TextVectors, matched
from services.memory.store import (
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
    MessageVector,
    Range,
    VectorCounts,
    VectorSpace,
    unchanged,
    wants_vector,
)
from services.runtime.disk import require_room
from services.runtime.errors import UnavailableError
from services.runtime.tasks import end_task

BATCH = 256
"""Points of one call: 5,000 hold the GIL for 110 ms."""

VECTOR_BATCH = 64
"""Vectors of one call: 256 of 256 dimensions hold the GIL for 30 ms."""

FLUSH_SECONDS, FLUSH_PAUSES = 1.0, 20
"""Between two flushes at least; and so many times what the last one took, so that at most a twentieth of the time, in
which nothing else of the process runs, goes into them."""

TEXT = "text"
OFFSET_KIND = "offset"


class MemoryShard:
    """A shard in a folder that exists.

    Args:
        thread: on which the engine is called; shards of one process share it.
    """

    def __init__(self, folder: Path, thread: ThreadPoolExecutor) -> None:
        self.folder = folder
        self._thread = thread
        self._text = TextVectors()
        self._shard: Any = None
        self._unflushed: dict[int, int] = {}
        self._flushing: asyncio.Task[None] | None = None
        self._trouble: UnavailableError | None = None
        self._spaces: set[str] = set()

    @staticmethod
    def create(folder: Path) -> None:
        """Makes an empty shard with all its indexes. Blocks. A process that dies meanwhile leaves half of one."""
        folder.mkdir()
        config = qdrant.EdgeConfig(
            sparse_vectors={TEXT: qdrant.EdgeSparseVectorParams(modifier=qdrant.Modifier.Idf)}, wal_enabled=True
        )
        created = qdrant.EdgeShard.create(str(folder), config)
        _create_indexes(created)
        created.flush()
        created.close()

    def load(self) -> None:
        """Opens the shard, and makes the indexes that an earlier release did not know. Blocks.

        Raises whatever the engine raises of a folder that it cannot read.
        """
        self._shard = qdrant.EdgeShard.load(str(self.folder))
        _create_indexes(self._shard)

    async def close(self) -> None:
        """Flushes; the folder is no longer in use afterwards, whatever the flush has come to."""
        await self._stop_flushing()
        try:
            await self.flush()
        finally:
            await self.abandon()

    async def abandon(self) -> None:
        """Closes without a flush, behind every call that was made before; one that is closed stays so."""
        await self._stop_flushing()
        shard, self._shard = self._shard, None
        if shard is not None:
            await self._call(shard, lambda shard: shard.close())

    async def _stop_flushing(self) -> None:
        await end_task(self._flushing)
        self._flushing = None

    async def positions(self) -> Mapping[int, int]:
        request = qdrant.ScrollRequest(limit=10_000, filter=_filter({"kind": OFFSET_KIND}), with_payload=True)
        records, _ = self._read(lambda shard: shard.scroll(request))
        return {record.payload["partition"]: record.payload["next_offset"] for record in records}

    async def write(self, partition: int, changes: Changes, next_offset: int) -> None:
        """The data can be read when this returns, and outlives the process; it and then the offset are flushed soon.

        Raises what the last flush raised, until one succeeds, and UnavailableError while the disk is full.
        """
        if self._trouble is not None:
            raise self._trouble
        if self._shard is not None:
            require_room(self.folder)
        for find in changes.delete_all:
            await self._update(qdrant.UpdateOperation.delete_points_by_filter(_condition(find)))
        if changes.deletes:
            await self._update(qdrant.UpdateOperation.delete_points(list(changes.deletes)))
        points = [self._point(partition, document) for document in changes.upserts]
        for start in range(0, len(points), BATCH):
            await self._update(qdrant.UpdateOperation.upsert_points(points[start : start + BATCH]))
        self._unflushed[partition] = next_offset
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._keep_flushing(), name="memory:flush")

    async def _keep_flushing(self) -> None:
        """Flushes, with pauses, until there is nothing left to flush."""
        await asyncio.sleep(FLUSH_SECONDS)
        while self._unflushed:
            began = time.monotonic()
            try:
                await self.flush()
                self._trouble = None
            except UnavailableError as error:
                self._trouble = error
            await asyncio.sleep(max(FLUSH_SECONDS, FLUSH_PAUSES * (time.monotonic() - began)))

    async def flush(self) -> None:
        """Data, flush, then the offsets: an offset that is lost with the process only makes records be read again."""
        offsets = dict(self._unflushed)
        await self._run(lambda shard: shard.flush())
        points = [
            qdrant.Point(
                id=partition,
                vector={},
                payload={"kind": OFFSET_KIND, "partition": partition, "next_offset": next_offset},
            )
            for partition, next_offset in offsets.items()
        ]
        if points:
            await self._update(qdrant.UpdateOperation.upsert_points(points))
        for partition, next_offset in offsets.items():
            if self._unflushed.get(partition) == next_offset:
                del self._unflushed[partition]

    async def get(self, point_ids: Sequence[str]) -> Sequence[Document]:
        return [_document(record) for record in self._retrieve(point_ids, with_payload=True)]

    async def bodies(self, point_ids: Sequence[str]) -> Mapping[str, str]:
        records = self._retrieve(point_ids, with_payload=["body"])
        return {str(record.id): record.payload["body"] for record in records}

    def _retrieve(self, point_ids: Sequence[str], *, with_payload: Any) -> Sequence[Any]:
        if not point_ids:
            return []
        return self._read(lambda shard: shard.retrieve(list(point_ids), with_payload, False))

    async def of_partition(self, partition: int | None, *, after: str | None, limit: int) -> Sequence[Document]:
        wanted: Any = (
            qdrant.IsEmptyCondition(PARTITION)
            if partition is None
            else qdrant.FieldCondition(PARTITION, match=qdrant.MatchValue(partition))
        )
        offsets: Any = qdrant.FieldCondition("kind", match=qdrant.MatchValue(OFFSET_KIND))
        condition = qdrant.Filter(must=[wanted], must_not=[offsets])
        request = qdrant.ScrollRequest(offset=after, limit=limit + 1, filter=condition, with_payload=True)
        records, _ = self._read(lambda shard: shard.scroll(request))
        return [_document(record) for record in records if str(record.id) != after][:limit]

    async def scroll(
        self, find: Find, *, order_by: str, descending: bool, limit: int, within: Range = Range()
    ) -> Sequence[Listed]:
        direction = qdrant.Direction.Desc if descending else qdrant.Direction.Asc
        request = qdrant.ScrollRequest(
            limit=limit,
            filter=_condition(find, {order_by: within}),
            with_payload=["body", order_by],
            order_by=qdrant.OrderBy(order_by, direction),
        )
        records, _ = self._read(lambda shard: shard.scroll(request))
        payloads = [(record.payload, record) for record in records]
        return [Listed(payload["body"], payload[order_by], record) for payload, record in payloads]

    async def count(self, find: Find) -> int:
        return await self._run(lambda shard: shard.count(qdrant.CountRequest(exact=True, filter=_condition(find))))

    async def search(self, find: Find, text: str, limit: int) -> Sequence[Hit]:
        vector = self._text.of_query(find.tenant_id, text)
        if not vector.indices:
            return []
        request = qdrant.QueryRequest(
            limit=limit,
            query=qdrant.Query.Nearest(vector, using=TEXT),
            filter=_condition(find),
            with_payload=False,
            with_vector=[TEXT],
        )
        points = await self._run(lambda shard: shard.query(request))
        return [Hit(str(point.id), point.score, matched(vector, point.vector[TEXT])) for point in points]

    async def search_vector(
        self, find: Find, space: VectorSpace, vector: Sequence[float], limit: int, *, least: float | None = None
    ) -> Sequence[Hit]:
        request = qdrant.QueryRequest(
            limit=limit,
            query=qdrant.Query.Nearest(list(vector), using=space.name),
            filter=_condition(find),
            score_threshold=least,
            with_payload=False,
        )

        def query(shard: Any) -> Sequence[Any]:
            self._prepare(shard, space)
            return shard.query(request)

        return [Hit(str(point.id), point.score) for point in await self._run(query)]

    async def put_vectors(self, space: VectorSpace, vectors: Sequence[MessageVector]) -> None:
        if self._shard is not None:
            require_room(self.folder)
        for start in range(0, len(vectors), VECTOR_BATCH):
            some = vectors[start : start + VECTOR_BATCH]
            await self._run(lambda shard, some=some: self._put_vectors(shard, space, some))

    def _put_vectors(self, shard: Any, space: VectorSpace, vectors: Sequence[MessageVector]) -> None:
        """As one call on the engine's thread, so that no message changes in between. The state follows the vector."""
        self._prepare(shard, space)
        read = shard.retrieve([each.message.point_id for each in vectors], with_payload=["body"], with_vector=False)
        bodies = {str(record.id): record.payload["body"] for record in read}
        stored, refused = unchanged(vectors, bodies)
        if stored:
            points = [qdrant.PointVectors(id=id_, vector={space.name: vector}) for id_, vector in stored.items()]
            shard.update(qdrant.UpdateOperation.update_vectors(points))
            shard.update(qdrant.UpdateOperation.set_payload([*stored], {EMBEDDING: space.stored}))
        if refused:
            shard.update(qdrant.UpdateOperation.set_payload([*refused], {EMBEDDING: space.refused}))

    def _prepare(self, shard: Any, space: VectorSpace) -> None:
        """Makes room for vectors of the space, where there is none yet."""
        if space.name not in self._spaces:
            shard.update(qdrant.UpdateOperation.create_dense_vector(space.name, space.size, qdrant.Distance.Cosine))
            self._spaces.add(space.name)

    async def without_vector(self, space: VectorSpace, limit: int) -> Sequence[Document]:
        waiting: Any = space.waiting(await self._states())
        request = qdrant.ScrollRequest(
            limit=limit,
            filter=qdrant.Filter(must=[qdrant.FieldCondition(EMBEDDING, match=qdrant.MatchAny(waiting))]),
            with_payload=True,
            order_by=qdrant.OrderBy("position", qdrant.Direction.Desc),
        )
        records, _ = self._read(lambda shard: shard.scroll(request))
        return [_document(record) for record in records]

    async def vectors(self, space: VectorSpace, point_ids: Sequence[str]) -> Sequence[MessageVector]:
        if not point_ids:
            return []
        await self._run(lambda shard: self._prepare(shard, space))
        records = await self._run(
            lambda shard: shard.retrieve(list(point_ids), with_payload=True, with_vector=[space.name])
        )
        return [
            MessageVector(_document(record), record.vector[space.name])
            for record in records
            if record.payload.get(EMBEDDING) == space.stored
        ]

    async def vector_counts(self, space: VectorSpace) -> VectorCounts:
        return VectorCounts.of(space, await self._states())

    async def unindexed(self, space: VectorSpace) -> int:
        """Vectors of a space that are in no index: a search compares each of them that its filter leaves."""
        return await self._run(lambda shard: self._unindexed(shard, space))

    def _unindexed(self, shard: Any, space: VectorSpace) -> int:
        """The engine tells of all vectors together, and has those of words in an index at once."""
        self._prepare(shard, space)
        words, meanings = (
            shard.count(qdrant.CountRequest(exact=True, filter=qdrant.Filter(must=[qdrant.HasVectorCondition(name)])))
            for name in (TEXT, space.name)
        )
        return max(0, words + meanings - shard.info().indexed_vectors_count)

    async def copy_from(self, other: "MemoryShard", space: VectorSpace) -> None:
        """Takes what another shard holds, vectors of one space among it, in pieces between which that one is used.

        What is written meanwhile is in the copy or is not; the positions are those of before, so that whoever goes on
        from there writes it once more. Threads come first: one tells how far it is, and that all up to there is stored.
        """
        positions = await other.positions()
        await self._run(lambda shard: self._prepare(shard, space))
        await self._copy(other, _filter({"kind": "thread"}), [TEXT])
        rest = qdrant.FieldCondition("kind", match=qdrant.MatchExcept(["thread", OFFSET_KIND]))
        await self._copy(other, qdrant.Filter(must=[rest]), [TEXT, space.name])
        self._unflushed = dict(positions)
        await self.flush()

    async def _copy(self, other: "MemoryShard", which: Any, vectors: list[str]) -> None:
        after: Any = None
        while True:
            require_room(self.folder)
            request = qdrant.ScrollRequest(
                offset=after, limit=VECTOR_BATCH, filter=which, with_payload=True, with_vector=vectors
            )
            records, after = other._read(lambda shard, request=request: shard.scroll(request))
            points = [qdrant.Point(id=each.id, vector=each.vector, payload=each.payload) for each in records]
            await self._update(qdrant.UpdateOperation.upsert_points(points))
            if after is None:
                return

    async def _states(self) -> dict[str, int]:
        """How many messages are in which state of their vector."""
        facet = await self._run(lambda shard: shard.facet(qdrant.FacetRequest(EMBEDDING, limit=MOST_STATES)))
        return {hit.value: hit.count for hit in facet.hits}

    def _point(self, partition: int, document: Document) -> Any:
        vector: Any = {TEXT: self._text.of_document(document.tenant_id, document.text)} if document.text else {}
        payload = {
            "kind": document.kind,
            "tenant_id": document.tenant_id,
            PARTITION: partition,
            **document.fields,
            "body": document.body,
        }
        if wants_vector(document):
            payload[EMBEDDING] = PENDING
        return qdrant.Point(id=document.point_id, vector=vector, payload=payload)

    async def _update(self, operation: Any) -> None:
        await self._run(lambda shard: shard.update(operation))

    def _read(self, call: Callable[[Any], Any]) -> Any:
        """Calls the engine at once: scrolling and retrieving hold the GIL, so that another thread would gain nothing
        but a tenth of a millisecond more, and a place behind the writes that wait."""
        shard = self._opened()
        with self._calling():
            return call(shard)

    async def _run(self, call: Callable[[Any], Any]) -> Any:
        """Calls the engine on its thread."""
        return await self._call(self._opened(), call)

    async def _call(self, shard: Any, call: Callable[[Any], Any]) -> Any:
        with self._calling():
            return await asyncio.get_running_loop().run_in_executor(self._thread, call, shard)

    def _opened(self) -> Any:
        if self._shard is None:
            raise UnavailableError("memory's store is not open")
        return self._shard

    @contextlib.contextmanager
    def _calling(self) -> Generator[None]:
        """The engine raises plain exceptions, whose text is all that they say."""
        try:
            yield
        except Exception as error:
            raise UnavailableError(f"the store in {self.folder} failed: {error}") from error


def _create_indexes(shard: Any) -> None:
    there = shard.info().payload_schema
    for names, kind in (
        ((*KEYWORD_FIELDS, EMBEDDING), qdrant.PayloadSchemaType.Keyword),
        (INTEGER_FIELDS, qdrant.IntegerIndexParams(lookup=False, range=True)),
        ((PARTITION,), qdrant.IntegerIndexParams(lookup=True, range=False)),
    ):
        for name in names:
            if name not in there:
                shard.update(qdrant.UpdateOperation.create_field_index(name, kind))


def _condition(find: Find, between: Mapping[str, Range] | None = None) -> Any:
    return _filter(find.required(), find.without, {**find.between, **(between or {})}, find.among)


def _filter(
    where: Mapping[str, str | int],
    without: Mapping[str, str | int] | None = None,
    between: Mapping[str, Range] | None = None,
    among: Mapping[str, Sequence[str]] | None = None,
) -> Any:
    must: list[Any] = [qdrant.FieldCondition(key, match=qdrant.MatchValue(value)) for key, value in where.items()]
    for key, bounds in (between or {}).items():
        if bounds != Range():
            must.append(qdrant.FieldCondition(key, range=qdrant.RangeFloat(gt=bounds.above, lt=bounds.below)))
    for key, words in (among or {}).items():
        must.append(qdrant.FieldCondition(key, match=qdrant.MatchAny(list(words))))
    excluded: list[Any] = [
        qdrant.FieldCondition(key, match=qdrant.MatchValue(value)) for key, value in (without or {}).items()
    ]
    return qdrant.Filter(must=must, must_not=excluded or None)


def _document(record: Any) -> Document:
    payload: dict[str, Any] = dict(record.payload)
    body, kind, tenant_id = payload.pop("body"), payload.pop("kind"), payload.pop("tenant_id")
    partition = payload.pop(PARTITION, None)
    payload.pop(EMBEDDING, None)
    return Document(str(record.id), kind, tenant_id, payload, body, partition=partition)
