"""A store that is built beside the live one, whatever ends it."""

import asyncio
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from services.memory import projection
from services.memory.embeddings import PROBE, Embeddings
from services.memory.fill import EmbeddingFill
from services.memory.projection import CopyBuilds, JournalBuilds, JournalProjection
from services.memory.qdrant_edge import EdgeMemoryStore
from services.memory.qdrant_shard import MemoryShard
from services.memory.store import Changes, MemoryStore, VectorCounts, VectorSpace
from services.runtime.errors import UnavailableError
from services.runtime.failpoints import Failpoints
from services.runtime.records import ProjectedRecord
from tests.contract.test_memory_store import message, messages, positions_of
from tests.support.embedder import ScriptedEmbedder, UsageKept
from tests.unit.memory.journal import added

MEANINGS = VectorSpace("meanings", 4)


class Slow:
    """A function that is called in a thread and goes on when it is told to.

    Put in the place of `name` until `go_on`.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        self._began, self._told = threading.Event(), threading.Event()
        self._monkeypatch = monkeypatch
        call: Callable[..., Any] = getattr(owner, name)

        def wait_and_call(*args: Any, **options: Any) -> Any:
            self._began.set()
            assert self._told.wait(30)
            return call(*args, **options)

        static = isinstance(vars(owner)[name], staticmethod)
        monkeypatch.setattr(owner, name, staticmethod(wait_and_call) if static else wait_and_call)

    async def cancel(self, caller: Coroutine[Any, Any, Any]) -> None:
        """Cancels somebody who has called, who ends when the function has."""
        task = asyncio.create_task(caller)
        assert await asyncio.to_thread(self._began.wait, 30)
        task.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
        assert not task.done()
        self._told.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        self._monkeypatch.undo()


def shards(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.glob("shard*"))


async def build_and_switch(edge: EdgeMemoryStore) -> None:
    build = await edge.begin_build()
    await build.write(0, Changes([message(7)]), 8)
    await edge.switch()
    await edge.clean()
    assert await positions_of(edge, messages()) == [7]


async def test_a_build_that_is_cancelled_while_it_is_made_leaves_nothing(
    edge: EdgeMemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await Slow(monkeypatch, MemoryShard, "create").cancel(edge.begin_build())
    await edge.clean()
    assert shards(tmp_path / "memory") == ["shard-1"]
    await build_and_switch(edge)


async def test_a_build_that_is_cancelled_once_it_is_optimised_leaves_nothing(
    edge: EdgeMemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await edge.begin_build()
    await Slow(monkeypatch, MemoryShard, "load").cancel(edge.optimise_build())
    await edge.clean()
    assert shards(tmp_path / "memory") == ["shard-1"]
    await build_and_switch(edge)


async def test_a_build_is_not_begun_before_the_last_one_is_removed(
    edge: EdgeMemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await edge.begin_build()
    await Slow(monkeypatch, shutil, "rmtree").cancel(edge.clean())
    assert shards(tmp_path / "memory") == ["shard-1"]
    await build_and_switch(edge)


async def test_a_switch_that_is_cancelled_is_finished(
    edge: EdgeMemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the folder says and what the process reads is the same shard."""
    build = await edge.begin_build()
    await build.write(0, Changes([message(7)]), 8)
    await Slow(monkeypatch, os, "fsync").cancel(edge.switch())
    assert await positions_of(edge, messages()) == [7]
    await edge.close()
    assert shards(tmp_path / "memory") == ["shard-2"]
    await edge.open()
    assert await positions_of(edge, messages()) == [7]


async def test_a_build_that_cannot_be_made_is_not_switched_to(
    edge: EdgeMemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await edge.write(0, Changes([message(1)]), 2)

    def half(folder: Path) -> None:
        folder.mkdir()
        raise OSError("it broke")

    monkeypatch.setattr(MemoryShard, "create", staticmethod(half))
    with pytest.raises(UnavailableError, match="it broke"):
        await edge.begin_build()
    assert shards(tmp_path / "memory") == ["shard-1"]
    with pytest.raises(UnavailableError, match="nothing was built"):
        await edge.switch()


def told(positions: Sequence[int], partition: int = 0) -> list[ProjectedRecord]:
    given = {"thread_id": f"t-{partition}", "tenant_id": "acme"}
    events = [added(f"m-{each}", f"car {each} of {partition}", **given) for each in positions]
    return [ProjectedRecord(at, 0, event.thread_id, event) for at, event in zip(positions, events, strict=True)]


@dataclass
class Rebuilding:
    """A store with messages that are given their vectors, by a paid model, while it is built anew."""

    store: MemoryStore
    embedder: ScriptedEmbedder = field(default_factory=ScriptedEmbedder)

    def __post_init__(self) -> None:
        self.embeddings = Embeddings(self.embedder, UsageKept().record)
        self.fill = EmbeddingFill(self.store, self.embeddings, Failpoints())

    async def write(self, positions: Sequence[int], partition: int = 0) -> None:
        await JournalProjection(self.store).apply(partition, told(positions, partition), positions[-1] + 1)

    async def give_vectors(self, count: int) -> None:
        """To the newest that wait."""
        asked = len(self.embedder.asked)
        while len(self.embedder.asked) < asked + count:
            assert await self.fill.fill_batch()

    async def embedded_twice(self) -> list[str]:
        while await self.fill.fill_batch():
            pass
        assert (await self.store.vector_counts(MEANINGS)).waiting == 0
        times = Counter(text for text in self.embedder.asked if text != PROBE)
        return [text for text in times if times[text] > 1]


async def test_what_gets_its_vector_during_a_rebuild_is_not_embedded_again(store: MemoryStore) -> None:
    """Whichever step of the rebuild it comes behind; messages of all partitions have the same positions."""
    several = [*range(700)]
    memory = Rebuilding(store)
    for partition in range(3):
        await memory.write(several, partition)
    memory.embedder.batch = 100
    memory.embedder.instead["car 699 of 0"] = []
    builds = JournalBuilds(store, memory.embeddings)
    build = await builds.begin()
    for partition in range(3):
        await memory.give_vectors(200)
        await build.apply(partition, told(several, partition), 700)
    await memory.give_vectors(900)
    await builds.complete()
    await memory.give_vectors(100)
    await memory.write([700, 701])
    await build.apply(0, told([700, 701]), 702)
    await memory.give_vectors(200)
    await builds.switch()
    await builds.clean()
    assert await memory.embedded_twice() == ["car 699 of 0"]


async def test_what_gets_its_vector_while_the_live_store_is_copied_is_not_embedded_again(
    edge: EdgeMemoryStore,
) -> None:
    memory = Rebuilding(edge)
    await memory.write([*range(200)])
    await memory.give_vectors(40)
    builds = CopyBuilds(edge, memory.embeddings)
    await builds.begin()
    await memory.give_vectors(80)
    await builds.complete()
    await memory.give_vectors(40)
    await builds.switch()
    await builds.clean()
    assert await memory.embedded_twice() == []


async def test_a_build_is_under_way_from_its_beginning_until_it_is_cleaned_up(store: MemoryStore) -> None:
    builds = JournalBuilds(store, Rebuilding(store).embeddings)
    under_way = [builds.building]
    for step in (builds.begin, builds.switch, builds.clean):
        await step()
        under_way.append(builds.building)
    assert under_way == [False, True, True, False]


async def test_vectors_are_taken_along_from_behind_messages_that_wait_still(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projection, "CARRIED_AT_ONCE", 10)
    memory = Rebuilding(store)
    await memory.write([*range(100)])
    builds = JournalBuilds(store, memory.embeddings)
    build = await builds.begin()
    await build.apply(0, told([*range(100)]), 100)
    await memory.give_vectors(50)
    await memory.write([*range(100, 150)])
    await build.apply(0, told([*range(100, 150)]), 150)
    await builds.complete()
    await builds.switch()
    await builds.clean()
    assert await memory.embedded_twice() == []


async def test_the_live_projection_is_not_held_for_very_many_vectors(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projection, "CARRIED_AT_ONCE", 10)
    memory = Rebuilding(store)
    await memory.write([*range(200)])
    builds = JournalBuilds(store, memory.embeddings)
    build = await builds.begin()
    await build.apply(0, told([*range(200)]), 200)
    await memory.give_vectors(200)
    await builds.switch()
    assert (await store.vector_counts(MEANINGS)).stored == 10 * projection.STEPS_WHILE_HELD


async def test_messages_that_are_all_at_one_position_do_not_keep_a_rebuild(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projection, "CARRIED_AT_ONCE", 3)
    memory = Rebuilding(store)
    builds = JournalBuilds(store, memory.embeddings)
    build = await builds.begin()
    for partition in range(9):
        await build.apply(partition, told([7], partition), 8)
    await builds.complete()
    await builds.switch()
    assert (await store.vector_counts(MEANINGS)).waiting == 9


async def test_messages_of_several_partitions_at_one_position_get_their_vectors(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projection, "CARRIED_AT_ONCE", 4)
    memory = Rebuilding(store)
    builds = JournalBuilds(store, memory.embeddings)
    build = await builds.begin()
    for partition in range(3):
        await memory.write([*range(10)], partition)
        await build.apply(partition, told([*range(10)], partition), 10)
    await memory.give_vectors(30)
    await builds.complete()
    await store.switch()
    assert await store.vector_counts(MEANINGS) == VectorCounts(stored=30)
