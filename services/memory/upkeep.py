"""Keeps search by meaning fast in the engine in process, which makes an index of vectors only when it is told to."""

import asyncio

import structlog

from services.memory.embeddings import Embeddings
from services.memory.projection import CopyBuilds
from services.memory.qdrant_edge import EdgeMemoryStore
from services.memory.search import FormerModel
from services.runtime.errors import TurnlogError
from services.runtime.rebuild import Rebuild
from services.runtime.tasks import end_task

log = structlog.get_logger(__name__)

CHECK_SECONDS = 60.0

MOST_UNINDEXED = 50_000
"""Vectors that a search may have to compare one by one."""

RETRY_SECONDS = 3600.0
"""After a copy that failed, which mostly wants room on a disk, or that has brought no vector into an index."""


class Upkeep:
    """Has the live store copied, indexed and replaced once as many vectors are in no index as are in one.

    So each vector is copied a few times in its life. The store goes on meanwhile, as in any rebuild.
    """

    def __init__(
        self, store: EdgeMemoryStore, embeddings: Embeddings, rebuild: Rebuild, former: FormerModel | None = None
    ) -> None:
        self._store = store
        self._embeddings = embeddings
        self._rebuild = rebuild
        self._former = former
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="memory:upkeep")

    async def stop(self) -> None:
        await end_task(self._task)
        self._task = None

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                done = await self.optimise_when_due()
            except TurnlogError as error:
                log.warning("optimising_waits", reason=str(error))
                continue
            if not done:
                await asyncio.sleep(RETRY_SECONDS)

    async def optimise_when_due(self) -> bool:
        """False when it was due and has changed nothing: the engine makes no index of vectors of very few numbers.

        Raises UnavailableError, or RebuildRunningError.

        It is not due while many vectors are still to come: those that are made during a copy are made again after it.
        Nor while meaning is searched by a former model, whose vectors a copy leaves behind.
        """
        if self._former is not None and await self._former.needed():
            return True
        space = await self._embeddings.space()
        counts = await self._store.vector_counts(space)
        if counts.stored < MOST_UNINDEXED or counts.waiting > counts.stored / 10:
            return True
        unindexed = await self._store.unindexed(space)
        if unindexed < max(MOST_UNINDEXED, counts.stored / 2):
            return True
        log.info("optimising", vectors=counts.stored, unindexed=unindexed)
        ended = await self._rebuild.run_unasked(CopyBuilds(self._store, self._embeddings))
        return ended.state == "done" and await self._store.unindexed(space) < unindexed
