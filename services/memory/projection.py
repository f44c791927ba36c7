"""What the journal is written into: the live store, and one that is built beside it."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from schemas.journal import ThreadDeleted
from services.memory.embeddings import Embeddings
from services.memory.projector import (
    being_deleted,
    points_read,
    position_of,
    project,
    removed_together,
    thread_point,
)
from services.memory.qdrant_edge import EdgeMemoryStore
from services.memory.store import (
    Changes,
    Document,
    Find,
    Listed,
    MemoryBuild,
    MemoryStore,
    MessageVector,
    Range,
    VectorSpace,
    WrittenVectors,
    wants_vector,
)
from services.runtime.records import ProjectedRecord

REMOVED_AT_ONCE = 1000
"""Messages of a thread, or their calls, that go in one step: others are served in between."""

PAUSE_SECONDS = 0.01
"""Behind each of these steps, which takes the engine in process some 50 ms."""

CARRIED_AT_ONCE = 256
"""Messages whose vectors are taken over in one step: others are served in between."""

STEPS_WHILE_HELD = 4
"""Most of them while nothing is written into the live store."""


class JournalProjection:
    """Writes the journal into a memory store."""

    def __init__(self, store: MemoryBuild) -> None:
        self._store = store

    async def positions(self) -> Mapping[int, int]:
        return await self._store.positions()

    async def apply(self, partition: int, records: Sequence[ProjectedRecord], next_offset: int) -> None:
        """What is read before a deletion of many is written before it: where the process dies in the middle of one,
        the thread shows that much, and it does not come again to a part of its messages."""
        written = 0
        for number, record in enumerate(records):
            for find in removed_together(record.offset, record.event):
                left = await self._store.count(find)
                if left >= REMOVED_AT_ONCE:
                    if number > written:
                        await self._project(partition, records[written:number], record.offset)
                        written = number
                    await self._remove(partition, record, find, left)
        await self._project(partition, records[written:], next_offset)

    async def _project(self, partition: int, records: Sequence[ProjectedRecord], next_offset: int) -> None:
        events = [(record.offset, record.event) for record in records]
        existing = {each.point_id: each for each in await self._store.get(points_read([event for _, event in events]))}
        changes = project(events, existing)
        await self._store.write(partition, await self._completed(changes), next_offset)
        await self._written(changes)

    async def _completed(self, changes: Changes) -> Changes:
        """With what is known of the documents from elsewhere."""
        return changes

    async def _remove(self, partition: int, record: ProjectedRecord, find: Find, left: int) -> None:
        """Removes many documents in steps, which a thread that is to go shows. What is left then is not many.

        A process that dies meanwhile is at the record still, and goes on with those that are left.
        """
        event = record.event
        goes = isinstance(event, ThreadDeleted) and find.kind == "message"
        thread = await self._store.get([thread_point(event.tenant_id, event.thread_id)]) if goes else []
        some: Sequence[Listed] = []
        while True:
            thread = [being_deleted(each, left) for each in thread]
            changes = Changes(upserts=thread, deletes=[each.point_id for each in some])
            await self._store.write(partition, changes, record.offset)
            await asyncio.sleep(PAUSE_SECONDS)
            if left < REMOVED_AT_ONCE:
                return
            some = await self._store.scroll(find, order_by="position", descending=False, limit=REMOVED_AT_ONCE)
            left -= len(some)

    async def _written(self, changes: Changes) -> None:
        """What follows from a batch that can be read."""


class LiveProjection(JournalProjection):
    """Writes the journal into the live store, and tells those who give messages their vectors."""

    def __init__(self, store: MemoryStore, wake: Callable[[], None]) -> None:
        super().__init__(store)
        self._wake = wake

    async def _written(self, changes: Changes) -> None:
        self._wake()


class BuildProjection(JournalProjection):
    """Writes the journal into a store beside the live one, with the vectors that the live one has: they cost time, and
    from some providers money."""

    def __init__(self, build: MemoryBuild, live: MemoryStore, space: VectorSpace) -> None:
        super().__init__(build)
        self._live = live
        self._space = space

    async def _completed(self, changes: Changes) -> Changes:
        """With the vectors of messages that say the same in the live store."""
        vectors = await self._known([each for each in changes.upserts if wants_vector(each)])
        return replace(changes, vectors=WrittenVectors(self._space, vectors))

    async def carry_over(self) -> None:
        """Gives messages the vectors that the live store has got since they were projected.

        The newest first, as the live one fills them in: so it ends long before the oldest that wait.
        """
        below: int | None = None
        left = await self._stored(self._live) - await self._stored(self._store)
        while some := await self._store.without_vector(self._space, CARRIED_AT_ONCE, within=Range(below=below)):
            carried = await self._carry(some)
            left -= carried
            if len(some) < CARRIED_AT_ONCE or (left <= 0 and not carried):
                return
            last = position_of(some[-1])
            # Each partition may have a message there: it is looked at again, unless the step was all of that position.
            below = last if below == last + 1 else last + 1

    async def _stored(self, store: MemoryBuild) -> int:
        return (await store.vector_counts(self._space)).stored

    async def carry_newest(self) -> None:
        """As `carry_over`, of the newest messages, in a few steps: as long as each has something to carry."""
        for _ in range(STEPS_WHILE_HELD):
            if not await self._carry(await self._store.without_vector(self._space, CARRIED_AT_ONCE)):
                return

    async def _carry(self, messages: Sequence[Document]) -> int:
        """How many of them the live store has a vector of."""
        known = await self._known(messages)
        vectors = [MessageVector(each, known[each.point_id]) for each in messages if each.point_id in known]
        await self._store.put_vectors(self._space, vectors)
        return len(vectors)

    async def _known(self, messages: Sequence[Document]) -> Mapping[str, Sequence[float]]:
        """By point, vectors of the live store's messages that say the same."""
        bodies = {each.point_id: each.body for each in messages}
        stored = await self._live.vectors(self._space, list(bodies))
        return {point: each.vector for point, each in stored.items() if each.body == bodies[point]}


class JournalBuilds:
    """A memory store, and one beside it while the journal is projected anew."""

    def __init__(self, store: MemoryStore, embeddings: Embeddings | None) -> None:
        self._store = store
        self._embeddings = embeddings
        self._build: BuildProjection | None = None

    @property
    def building(self) -> bool:
        """Whether there is a build that takes vectors along."""
        return self._build is not None

    async def begin(self) -> JournalProjection:
        if self._embeddings is None:
            return JournalProjection(await self._store.begin_build())
        space = await self._embeddings.space()
        self._build = BuildProjection(await self._store.begin_build(), self._store, space)
        return self._build

    async def complete(self) -> None:
        """With vectors, and with no index of them: it takes longer than all else, and what the journal says is wanted
        soon. A cluster makes one by itself, upkeep that of the engine in process."""
        if self._build is not None:
            await self._build.carry_over()

    async def switch(self) -> None:
        """With the vectors that have come since `complete`, unless they are very many."""
        if self._build is not None:
            await self._build.carry_newest()
        await self._store.switch()

    async def clean(self) -> None:
        self._build = None
        await self._store.clean()


class CopyBuilds(JournalBuilds):
    """Builds from what the live store of the engine in process holds, and not from the journal's beginning."""

    def __init__(self, store: EdgeMemoryStore, embeddings: Embeddings) -> None:
        super().__init__(store, embeddings)
        self._edge = store
        self._meaning = embeddings

    async def begin(self) -> BuildProjection:
        space = await self._meaning.space()
        self._build = BuildProjection(await self._edge.begin_copy(space), self._edge, space)
        return self._build

    async def complete(self) -> None:
        """With an index of the vectors, and those that have come while it was made."""
        await self._edge.optimise_build()
        await super().complete()
