"""One shard of Qdrant's engine in process.

Every call holds the GIL, so batches are small, with a pause for others behind each. Calls are made where they are
wanted: a thread of their own would hold up the process as long, and moves each message from one core's caches to
another's.

A flush holds it too, for 5 to 15 ms, on a busy disk for half a second: so there is none a batch but one now and then.
The stored offsets are those of the last flush: a process that is killed reads what came after it again, which changes
nothing more.
"""

import asyncio
import contextlib
import functools
import hashlib
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import qdrant_edge as qdrant

from services.memory.qdrant_text import TextVectors, matched
from services.memory.qdrant_words import BODY, WORDS, document_of, payload_of, words_of
from services.memory.store import (
    CHANGED_AT_ONCE,
    EMBEDDING,
    INTEGER_FIELDS,
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
    StoredVector,
    VectorCounts,
    VectorSpace,
    WrittenVectors,
    unchanged,
    wants_vector,
)
from services.runtime.disk import require_room
from services.runtime.errors import UnavailableError
from services.runtime.tasks import end_task

T = TypeVar("T")

BATCH = 64
"""Points of one call: with vectors of 256 dimensions they hold the GIL for 6 ms, and more of them cost no less each."""

PAUSE = 4
"""Turns of the event loop that others have behind each call: a request needs some."""

COMPARED_KILOBYTES = 30_000
"""Of the vectors that a filter leaves, 30,000 of 256 dimensions: so many are compared one by one, in 4 ms, and all of
the nearest are found."""

MOST_SELECTIVE = 0.4
"""Share of the vectors that a filter leaves: up to it the index is walked across what the filter excludes (ACORN). Else
two thirds of the nearest ten are found where a fifth is left."""

LINKS, EF_CONSTRUCT = 16, 200
"""Of the index (HNSW). With 100 candidates, Qdrant's default, it takes half the time, and nine of the nearest ten are
found instead of nearly all: `python -m tests.bench vector-index`."""

FLUSH_SECONDS, FLUSH_PAUSES = 1.0, 20
"""Between two flushes at least; and so many times what the last one took, so that at most a twentieth of the time, in
which nothing else of the process runs, goes into them."""

FLOAT_BYTES = 4
"""Of each number of a vector."""

TEXT = "text"
OFFSET_KIND = "offset"


class MemoryShard:
    """A shard in a folder that exists."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._text = TextVectors()
        self._shard: Any = None
        self._unflushed: dict[int, int] = {}
        self._flushing: asyncio.Task[None] | None = None
        self._trouble: UnavailableError | None = None
        self._spaces: set[str] = set()

    @staticmethod
    def create(folder: Path) -> None:
        """Makes an empty shard with all its indexes. Blocks. A process that dies meanwhile leaves half of one.

        Raises UnavailableError while the disk is full.
        """
        require_room(folder.parent)
        folder.mkdir()
        config = qdrant.EdgeConfig(
            sparse_vectors={TEXT: qdrant.EdgeSparseVectorParams(modifier=qdrant.Modifier.Idf)},
            hnsw_config=qdrant.HnswIndexConfig(LINKS, EF_CONSTRUCT, COMPARED_KILOBYTES),
            wal_enabled=True,
        )
        created = qdrant.EdgeShard.create(str(folder), config)
        _create_indexes(created)
        created.flush()
        created.close()

    def load(self) -> bool:
        """Opens the shard, unless an earlier release has stored its documents in another way: then it is False. Blocks.

        Raises whatever the engine raises of a folder that it cannot read.
        """
        shard = qdrant.EdgeShard.load(str(self.folder))
        if WORDS not in shard.info().payload_schema:
            shard.close()
            return False
        _create_indexes(shard)
        self._shard = shard
        return True

    async def close(self) -> None:
        """Flushes; the folder is no longer in use afterwards, whatever the flush has come to."""
        await self._stop_flushing()
        try:
            await self.flush()
        finally:
            await self.abandon()

    async def abandon(self) -> None:
        """Closes without a flush; one that is closed stays so."""
        await self._stop_flushing()
        shard, self._shard = self._shard, None
        if shard is not None:
            with self._calling():
                shard.close()

    async def _stop_flushing(self) -> None:
        await end_task(self._flushing)
        self._flushing = None

    async def positions(self) -> Mapping[int, int]:
        request = qdrant.ScrollRequest(
            limit=10_000, filter=qdrant.Filter(must=[_has(("kind", OFFSET_KIND))]), with_payload=True
        )
        records, _ = self._call(lambda shard: shard.scroll(request))
        return {record.payload[PARTITION]: record.payload["next_offset"] for record in records}

    async def write(self, partition: int, changes: Changes, next_offset: int) -> None:
        """The data can be read when this returns, and outlives the process; it and then the offset are flushed soon.

        Raises what the last flush raised, until one succeeds, and UnavailableError while the disk is full.
        """
        if self._trouble is not None:
            raise self._trouble
        if self._shard is not None:
            require_room(self.folder)
        for find in changes.delete_all:
            self._update(qdrant.UpdateOperation.delete_points_by_filter(_condition(find)))
        if changes.deletes:
            self._update(qdrant.UpdateOperation.delete_points(list(changes.deletes)))
        vectors = changes.vectors
        if vectors is not None and vectors.by_point:
            self._call(lambda shard: self._prepare(shard, vectors.space))
        for some in _batches(changes.upserts):
            points = [self._point(partition, document, vectors) for document in some]
            self._update(qdrant.UpdateOperation.upsert_points(points))
            await _pause()
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
        self._call(lambda shard: shard.flush())
        points = [
            qdrant.Point(
                id=partition,
                vector={},
                payload={WORDS: words_of([("kind", OFFSET_KIND)]), PARTITION: partition, "next_offset": next_offset},
            )
            for partition, next_offset in offsets.items()
        ]
        if points:
            self._update(qdrant.UpdateOperation.upsert_points(points))
        for partition, next_offset in offsets.items():
            if self._unflushed.get(partition) == next_offset:
                del self._unflushed[partition]

    async def get(self, point_ids: Sequence[str]) -> Sequence[Document]:
        return [_document(record) for record in self._retrieve(point_ids, with_payload=True)]

    async def bodies(self, point_ids: Sequence[str]) -> Mapping[str, str]:
        records = self._retrieve(point_ids, with_payload=[BODY])
        return {str(record.id): record.payload[BODY] for record in records}

    def _retrieve(self, point_ids: Sequence[str], *, with_payload: Any) -> Sequence[Any]:
        if not point_ids:
            return []
        return self._call(lambda shard: shard.retrieve(list(point_ids), with_payload, False))

    async def of_partition(self, partition: int | None, *, after: str | None, limit: int) -> Sequence[Document]:
        if partition is None:
            return []  # the words of every document name its partition
        condition = qdrant.Filter(must=[_has((PARTITION, partition))])
        request = qdrant.ScrollRequest(offset=after, limit=limit + 1, filter=condition, with_payload=True)
        records, _ = self._call(lambda shard: shard.scroll(request))
        return [_document(record) for record in records if str(record.id) != after][:limit]

    async def scroll(
        self, find: Find, *, order_by: str, descending: bool, limit: int, within: Range = Range()
    ) -> Sequence[Listed]:
        request = qdrant.ScrollRequest(
            limit=limit,
            filter=_condition(find, {order_by: within}),
            with_payload=[BODY],
            order_by=qdrant.OrderBy(order_by, _direction(descending)),
        )
        records, _ = self._call(lambda shard: shard.scroll(request))
        return [Listed(record.payload[BODY], record.order_value, record) for record in records]

    async def count(self, find: Find) -> int:
        return self._call(lambda shard: shard.count(qdrant.CountRequest(exact=True, filter=_condition(find))))

    async def search(self, find: Find, text: str, limit: int) -> Sequence[Hit]:
        vector = self._text.of_query(find, text)
        if not vector.indices:
            return []
        request = qdrant.QueryRequest(
            limit=limit,
            query=qdrant.Query.Nearest(vector, using=TEXT),
            filter=_condition(find),
            with_payload=False,
            with_vector=[TEXT],
        )
        points = self._call(lambda shard: shard.query(request))
        wanted = frozenset(vector.indices)
        return [Hit(point.id.int, point.score, matched(wanted, point.vector[TEXT])) for point in points]

    async def search_vector(
        self, find: Find, space: VectorSpace, vector: Sequence[float], limit: int, *, least: float | None = None
    ) -> Sequence[Hit]:
        request = qdrant.QueryRequest(
            limit=limit,
            query=qdrant.Query.Nearest(list(vector), using=space.name),
            filter=_condition(find),
            score_threshold=least,
            with_payload=False,
            params=qdrant.SearchParams(acorn=qdrant.AcornSearchParams(enable=True, max_selectivity=MOST_SELECTIVE)),
        )

        def query(shard: Any) -> Sequence[Any]:
            return shard.query(request) if self._has(shard, space) else []

        return [Hit(point.id.int, point.score) for point in self._call(query)]

    async def put_vectors(self, space: VectorSpace, vectors: Sequence[MessageVector]) -> None:
        if self._shard is not None:
            require_room(self.folder)
        for some in _batches(vectors, CHANGED_AT_ONCE):
            self._call(lambda shard, some=some: self._put_vectors(shard, space, some))
            await _pause()

    def _put_vectors(self, shard: Any, space: VectorSpace, vectors: Sequence[MessageVector]) -> None:
        """Nothing is awaited, so that no message changes in between. The state follows the vector."""
        self._prepare(shard, space)
        read = shard.retrieve([each.message.point_id for each in vectors], with_payload=[BODY], with_vector=False)
        bodies = {str(record.id): record.payload[BODY] for record in read}
        stored, refused = unchanged(vectors, bodies)
        if stored:
            points = [qdrant.PointVectors(id=id_, vector={space.name: vector}) for id_, vector in stored.items()]
            shard.update(qdrant.UpdateOperation.update_vectors(points))
            shard.update(qdrant.UpdateOperation.set_payload([*stored], {EMBEDDING: _state(space.stored)}))
        if refused:
            shard.update(qdrant.UpdateOperation.set_payload([*refused], {EMBEDDING: _state(space.refused)}))

    def _prepare(self, shard: Any, space: VectorSpace) -> None:
        """Makes room for vectors of the space, where there is none yet: for one of every document, at once."""
        if not self._has(shard, space):
            require_room(self.folder, shard.info().points_count * space.size * FLOAT_BYTES)
            shard.update(qdrant.UpdateOperation.create_dense_vector(space.name, space.size, qdrant.Distance.Cosine))
            self._spaces.add(space.name)

    def _has(self, shard: Any, space: VectorSpace) -> bool:
        """Whether vectors of the space can be asked for. Those who only read make no room, which the disk may lack."""
        if space.name not in self._spaces:
            there = qdrant.Filter(must=[qdrant.HasVectorCondition(space.name)])
            some, _ = shard.scroll(qdrant.ScrollRequest(limit=1, filter=there, with_payload=False))
            if some:
                self._spaces.add(space.name)
        return space.name in self._spaces

    async def without_vector(self, space: VectorSpace, limit: int, *, within: Range = Range()) -> Sequence[Document]:
        waiting = [each for each in self._states() if each not in (_state(space.stored), _state(space.refused))]
        must = [
            qdrant.FieldCondition(EMBEDDING, match=qdrant.MatchAny(waiting)),
            *_between({"position": within}),
        ]
        request = qdrant.ScrollRequest(
            limit=limit,
            filter=qdrant.Filter(must=must),
            with_payload=True,
            order_by=qdrant.OrderBy("position", qdrant.Direction.Desc),
        )
        records, _ = self._call(lambda shard: shard.scroll(request))
        return [_document(record) for record in records]

    async def vectors(self, space: VectorSpace, point_ids: Sequence[str]) -> Mapping[str, StoredVector]:
        if not point_ids or not self._call(lambda shard: self._has(shard, space)):
            return {}
        found: dict[str, StoredVector] = {}
        for some in _batches(point_ids):
            records = self._call(
                lambda shard, some=some: shard.retrieve(
                    list(some), with_payload=[BODY, EMBEDDING], with_vector=[space.name]
                )
            )
            for record in records:
                payload = record.payload
                if payload.get(EMBEDDING) == _state(space.stored):
                    found[str(record.id)] = StoredVector(payload[BODY], record.vector[space.name])
            await _pause()
        return found

    async def vector_counts(self, space: VectorSpace) -> VectorCounts:
        return VectorCounts.of(self._states(), *map(_state, (PENDING, space.stored, space.refused)))

    async def unindexed(self, space: VectorSpace) -> int:
        """Vectors of a space that are in no index: a search compares each of them that its filter leaves."""
        return self._call(lambda shard: self._unindexed(shard, space))

    def _unindexed(self, shard: Any, space: VectorSpace) -> int:
        """The engine tells of all vectors together, and has those of words in an index at once."""
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
        self._call(lambda shard: self._prepare(shard, space))
        threads, offsets = _has(("kind", "thread")), _has(("kind", OFFSET_KIND))
        await self._copy(other, qdrant.Filter(must=[threads]), [TEXT])
        await self._copy(other, qdrant.Filter(must_not=[threads, offsets]), [TEXT, space.name])
        self._unflushed = dict(positions)
        await self.flush()

    async def _copy(self, other: "MemoryShard", which: Any, vectors: list[str]) -> None:
        after: Any = None
        while True:
            require_room(self.folder)
            request = qdrant.ScrollRequest(
                offset=after, limit=BATCH, filter=which, with_payload=True, with_vector=vectors
            )
            records, after = other._call(lambda shard, request=request: shard.scroll(request))
            points = [qdrant.Point(id=each.id, vector=each.vector, payload=each.payload) for each in records]
            self._update(qdrant.UpdateOperation.upsert_points(points))
            await _pause()
            if after is None:
                return

    def _states(self) -> dict[int, int]:
        """How many messages are in which state of their vector, by its number."""
        facet = self._call(lambda shard: shard.facet(qdrant.FacetRequest(EMBEDDING, limit=MOST_STATES)))
        return {hit.value: hit.count for hit in facet.hits}

    def _point(self, partition: int, document: Document, vectors: WrittenVectors | None) -> Any:
        vector: Any = {TEXT: self._text.of_document(document)} if document.text else {}
        payload = payload_of(partition, document)
        if wants_vector(document):
            payload[EMBEDDING] = _state(PENDING)
            if vectors is not None and (known := vectors.by_point.get(document.point_id)) is not None:
                vector[vectors.space.name] = list(known)
                payload[EMBEDDING] = _state(vectors.space.stored)
        return qdrant.Point(id=document.point_id, vector=vector, payload=payload)

    def _update(self, operation: Any) -> None:
        self._call(lambda shard: shard.update(operation))

    def _call(self, call: Callable[[Any], Any]) -> Any:
        shard = self._opened()
        with self._calling():
            return call(shard)

    def _opened(self) -> Any:
        if self._shard is None:
            raise UnavailableError("memory's store is not open")
        return self._shard

    @contextlib.contextmanager
    def _calling(self) -> Generator[None]:
        """The engine raises plain exceptions, whose text is all that they say."""
        try:
            yield
        except UnavailableError:
            raise
        except Exception as error:
            raise UnavailableError(f"the store in {self.folder} failed: {error}") from error


def _batches(several: Sequence[T], size: int = BATCH) -> Iterator[Sequence[T]]:
    for start in range(0, len(several), size):
        yield several[start : start + size]


async def _pause() -> None:
    for _ in range(PAUSE):
        await asyncio.sleep(0)


def _create_indexes(shard: Any) -> None:
    """Numbers get no links in an index of vectors, which takes twice as long to make with them."""
    there = shard.info().payload_schema
    words = qdrant.TextIndexParams(
        tokenizer=qdrant.TokenizerType.Whitespace, lowercase=False, ascii_folding=False, phrase_matching=False
    )
    for names, kind in (
        ((WORDS,), words),
        (INTEGER_FIELDS, qdrant.IntegerIndexParams(lookup=False, range=True, enable_hnsw=False)),
        ((EMBEDDING,), qdrant.IntegerIndexParams(lookup=True, range=False, enable_hnsw=False)),
    ):
        for name in names:
            if name not in there:
                shard.update(qdrant.UpdateOperation.create_field_index(name, kind))


@functools.lru_cache
def _state(text: str) -> int:
    """The number under which a state of a vector is stored: the binding takes one over in a quarter of the time."""
    return 0 if text == PENDING else int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


def _has(*fields: tuple[str, str | int]) -> Any:
    """Documents that have all of these."""
    return qdrant.FieldCondition(WORDS, match=qdrant.MatchText(words_of(fields)))


def _condition(find: Find, between: Mapping[str, Range] | None = None) -> Any:
    single = [(key, values[0]) for key, values in find.among.items() if len(values) == 1]
    must: list[Any] = [_has(*find.required().items(), *single), *_between({**find.between, **(between or {})})]
    for key, values in find.among.items():
        if len(values) != 1:
            any_of = words_of([(key, value) for value in values])
            must.append(qdrant.FieldCondition(WORDS, match=qdrant.MatchTextAny(any_of)))
    excluded = [_has(each) for each in find.without.items()]
    return qdrant.Filter(must=must, must_not=excluded or None)


def _between(fields: Mapping[str, Range]) -> list[Any]:
    return [
        qdrant.FieldCondition(key, range=qdrant.RangeFloat(gt=bounds.above, lt=bounds.below))
        for key, bounds in fields.items()
        if bounds != Range()
    ]


def _direction(descending: bool) -> Any:
    return qdrant.Direction.Desc if descending else qdrant.Direction.Asc


def _document(record: Any) -> Document:
    return document_of(str(record.id), record.payload)
