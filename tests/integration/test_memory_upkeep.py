"""Memory has its vectors in an index by itself, while it is written and read."""

import asyncio
import random
from collections.abc import Sequence

import pytest

from services.memory import upkeep
from services.memory.embeddings import Embedded
from services.memory.qdrant_edge import EdgeMemoryStore
from services.memory.store import VectorSpace
from tests.integration.test_memory_service import Journal, journal, running
from tests.support.embedder import ScriptedEmbedder
from tests.support.waiting import eventually
from tests.unit.memory.journal import added

__all__ = ["journal"]

pytestmark = [pytest.mark.broker, pytest.mark.timeout(300)]

SPACE = VectorSpace("meanings", 2560)
"""So large that the engine has an index for a thousand of them."""

COUNT = 1100


class LargeEmbedder(ScriptedEmbedder):
    batch = 64

    async def embed(self, texts: Sequence[str]) -> Embedded:
        return Embedded([self._vector(text) for text in texts], None)

    def _vector(self, text: str) -> list[float]:
        chance = random.Random(text)
        return [chance.random() for _ in range(SPACE.size)]


async def test_a_rebuild_waits_for_no_index_and_gets_one(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "CHECK_SECONDS", 0.2)
    store = EdgeMemoryStore(journal.settings.data_dir / "memory")
    async with running(journal.settings, store=store, embedder=LargeEmbedder()) as memory:
        for number in range(COUNT):
            await journal.tell(added(f"m-{number}", f"text {number}", thread_id=f"t-{number % 4}"))

        async def all_stored() -> bool:
            return (await store.vector_counts(SPACE)).stored == COUNT

        await eventually(all_stored, "every message to have its vector", seconds=100)
        await memory.rebuild()

        async def rebuilt() -> bool:
            return (await memory.get("/rebuild"))["state"] == "done"

        await eventually(rebuilt, "the rebuild to end", seconds=100)
        assert await all_stored()
        assert await store.unindexed(SPACE) == COUNT
        monkeypatch.setattr(upkeep, "MOST_UNINDEXED", 1000)

        async def all_indexed() -> bool:
            return await store.unindexed(SPACE) == 0

        await eventually(all_indexed, "the vectors to be in an index", seconds=100)
        assert len(await memory.messages("t-0")) == COUNT / 4


async def test_a_rebuild_that_is_asked_for_goes_before_upkeep(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "MOST_UNINDEXED", 1000)
    monkeypatch.setattr(upkeep, "CHECK_SECONDS", 0.2)
    copied, optimise = asyncio.Event(), EdgeMemoryStore.optimise_build

    async def endless_at_first(store: EdgeMemoryStore) -> None:
        if not copied.is_set():
            copied.set()
            await asyncio.Event().wait()
        await optimise(store)

    monkeypatch.setattr(EdgeMemoryStore, "optimise_build", endless_at_first)
    store = EdgeMemoryStore(journal.settings.data_dir / "memory")
    async with running(journal.settings, store=store, embedder=LargeEmbedder()) as memory:
        for number in range(COUNT):
            await journal.tell(added(f"m-{number}", f"text {number}", thread_id=f"t-{number % 4}"))
        async with asyncio.timeout(100):
            await copied.wait()
        await memory.rebuild()

        async def indexed_after_it() -> bool:
            rebuilt = await memory.get("/rebuild")
            assert rebuilt["state"] != "failed", rebuilt
            return rebuilt["state"] == "done" and await store.unindexed(SPACE) == 0

        await eventually(indexed_after_it, "the vectors to be in an index", seconds=200)
        assert len(await memory.messages("t-0")) == COUNT / 4
    folder = journal.settings.data_dir / "memory"
    assert [each.name for each in folder.iterdir() if each.is_dir()] == ["shard-3"]


async def test_vectors_come_into_an_index_while_memory_is_written_and_read(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "MOST_UNINDEXED", 1000)
    monkeypatch.setattr(upkeep, "CHECK_SECONDS", 0.2)
    store = EdgeMemoryStore(journal.settings.data_dir / "memory")
    async with running(journal.settings, store=store, embedder=LargeEmbedder()) as memory:
        for number in range(COUNT):
            await journal.tell(added(f"m-{number}", f"text {number}", thread_id=f"t-{number % 4}"))
        written = COUNT

        async def one_more_and_all_indexed() -> bool:
            nonlocal written
            await journal.tell(added(f"m-{written}", f"text {written}", thread_id=f"t-{written % 4}"))
            written += 1
            rebuilt = await memory.get("/rebuild")
            assert rebuilt["state"] != "failed", rebuilt
            return rebuilt["state"] == "done"

        await eventually(one_more_and_all_indexed, "the vectors to be in an index", seconds=200)
        assert await store.unindexed(SPACE) < COUNT / 2
        for thread in range(4):
            position = await journal.position(f"t-{thread}")
            assert await memory.messages(f"t-{thread}", **position) == [
                f"m-{number}" for number in range(thread, written, 4)
            ]
    folder = journal.settings.data_dir / "memory"
    assert [each.name for each in folder.iterdir() if each.is_dir()] == ["shard-2"]
