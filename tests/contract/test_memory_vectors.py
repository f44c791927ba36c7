"""What memory's store promises about the vectors of messages, on both engines."""

import asyncio
import random
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from services.memory.qdrant_edge import EdgeMemoryStore
from services.memory.store import (
    Changes,
    Document,
    Find,
    MemoryStore,
    MessageVector,
    VectorCounts,
    VectorSpace,
    WrittenVectors,
    point_id,
)
from services.runtime.errors import UnavailableError
from tests.contract.test_memory_store import ROOT, found_by, message, messages, positions_of, texts_found
from tests.support.waiting import eventually

SPACE = VectorSpace("model/of tests", 3)
OTHER = VectorSpace("model/of tests", 2)

CHILD = """
import asyncio, sys
from pathlib import Path
from services.memory.qdrant_edge import EdgeMemoryStore
from services.memory.store import Changes, MessageVector
from tests.contract.test_memory_store import message
from tests.contract.test_memory_vectors import NORTH, SPACE

async def main():
    store = EdgeMemoryStore(Path(sys.argv[1]))
    await store.open()
    for start in range(0, 1_000_000, 10):
        some = [message(each, "text") for each in range(start, start + 10)]
        await store.write(0, Changes(some), start + 10)
        await store.put_vectors(SPACE, [MessageVector(each, NORTH) for each in some])
        print(start + 10, flush=True)

asyncio.run(main())
"""

NORTH, EAST, BETWEEN = (0.0, 1.0, 0.0), (1.0, 0.0, 0.0), (1.0, 1.0, 0.0)


async def waiting(store: MemoryStore, space: VectorSpace = SPACE, limit: int = 1000) -> list[int | str]:
    return [each.fields["position"] for each in await store.without_vector(space, limit)]


async def near(
    store: MemoryStore, vector: Sequence[float], find: Find | None = None, space: VectorSpace = SPACE
) -> list[int | str]:
    hits = await store.search_vector(find or messages(), space, vector, 10)
    return [document.fields["position"] for document, _ in await found_by(store, hits)]


async def put(store: MemoryStore, space: VectorSpace, *pairs: tuple[Document, Sequence[float] | None]) -> None:
    await store.put_vectors(space, [MessageVector(document, vector) for document, vector in pairs])


async def at(store: MemoryStore, positions: Mapping[int, int]) -> bool:
    return await store.positions() == positions


async def test_messages_that_say_something_wait_for_a_vector_the_newest_first(store: MemoryStore) -> None:
    thread = Document(point_id("thread", "acme", "t"), "thread", "acme", {"updated": 1}, "{}", "a title")
    await store.write(0, Changes([message(1, "one"), message(2), message(3, " \n"), message(4, "four"), thread]), 5)
    await store.write(1, Changes([message(9, "nine", tenant_id="other")]), 10)
    assert await waiting(store) == [9, 4, 1]
    assert await waiting(store, limit=2) == [9, 4]
    assert await store.vector_counts(SPACE) == VectorCounts(waiting=3)


async def test_a_vector_makes_its_message_findable_and_ends_the_waiting(store: MemoryStore) -> None:
    documents = [message(each, f"number {each}") for each in range(3)]
    await store.write(0, Changes(documents), 3)
    assert await near(store, NORTH) == []
    await put(store, SPACE, (documents[0], NORTH), (documents[1], EAST))
    assert await near(store, NORTH) == [0, 1]
    assert await near(store, (1.0, 0.1, 0.0)) == [1, 0]
    assert await waiting(store) == [2]
    assert await store.vector_counts(SPACE) == VectorCounts(waiting=1, stored=2)


async def test_what_is_not_near_enough_is_not_found(store: MemoryStore) -> None:
    documents = [message(each, "text") for each in range(3)]
    await store.write(0, Changes(documents), 3)
    await put(store, SPACE, *zip(documents, (NORTH, BETWEEN, EAST), strict=True))
    hits = await store.search_vector(messages(), SPACE, NORTH, 10, least=0.5)
    assert [document.fields["position"] for document, _ in await found_by(store, hits)] == [0, 1]
    assert [hit.score for hit in hits] == pytest.approx([1.0, 0.5**0.5])


async def test_a_vector_is_stored_beside_the_document_and_changes_nothing_of_it(store: MemoryStore) -> None:
    written = message(1, "text", user_id="u-1")
    await store.write(3, Changes([written]), 2)
    before = await store.get([written.point_id])
    await put(store, SPACE, (written, NORTH))
    assert await store.get([written.point_id]) == before
    assert await store.of_partition(3, after=None, limit=9) == before
    assert [document for document, _ in await found_by(store, await store.search(messages(), "text", 1))] == before[:1]


async def test_a_text_that_has_changed_meanwhile_does_not_get_the_vector_of_the_old_one(store: MemoryStore) -> None:
    read = message(1, "old")
    await store.write(0, Changes([read, message(2, "gone")]), 3)
    new = Document(read.point_id, "message", "acme", {"thread_id": "t-1", "position": 5}, '{"new": true}', "new")
    await store.write(0, Changes([new], deletes=[message(2).point_id]), 6)
    await put(store, SPACE, (read, NORTH), (message(2, "gone"), EAST), (message(77, "never"), EAST))
    assert await near(store, NORTH) == []
    assert await waiting(store) == [5]


async def test_writing_a_message_again_takes_its_vector(store: MemoryStore) -> None:
    written = message(1, "text")
    await store.write(0, Changes([written]), 2)
    await put(store, SPACE, (written, NORTH))
    await store.write(0, Changes([written]), 2)
    assert await near(store, NORTH) == []
    assert await waiting(store) == [1]
    assert await store.vectors(SPACE, [written.point_id]) == {}


async def test_a_message_without_a_vector_to_be_had_does_not_wait(store: MemoryStore) -> None:
    refused, fine = message(1, "too long"), message(2, "fine")
    await store.write(0, Changes([refused, fine]), 3)
    await put(store, SPACE, (refused, None), (fine, NORTH))
    assert await waiting(store) == []
    assert await store.vector_counts(SPACE) == VectorCounts(stored=1, refused=1)
    assert await near(store, NORTH) == [2]


async def test_another_model_has_vectors_of_its_own_beside_the_old_ones(store: MemoryStore) -> None:
    first, second = message(1, "one"), message(2, "two")
    await store.write(0, Changes([first, second]), 3)
    await put(store, SPACE, (first, NORTH), (second, None))
    assert await waiting(store, OTHER) == [2, 1]
    await put(store, OTHER, (first, (1.0, 0.0)))
    assert await waiting(store, OTHER) == [2]
    assert await store.vector_counts(OTHER) == VectorCounts(waiting=1, stored=1, elsewhere=1)
    await store.write(0, Changes([message(3, "three")]), 4)
    assert await store.vector_counts(OTHER) == VectorCounts(waiting=2, stored=1, elsewhere=1)
    assert await near(store, (1.0, 0.0), space=OTHER) == [1]
    assert await near(store, NORTH) == [1]


async def test_vectors_are_read_of_those_that_have_one(store: MemoryStore) -> None:
    first, second = message(1, "one"), message(2, "two")
    await store.write(0, Changes([first, second]), 3)
    await put(store, SPACE, (first, NORTH))
    found = await store.vectors(SPACE, [first.point_id, second.point_id, message(3).point_id])
    assert set(found) == {first.point_id}
    assert found[first.point_id].body == first.body
    assert list(found[first.point_id].vector) == pytest.approx(NORTH)
    assert await store.vectors(SPACE, []) == {}
    assert await store.vectors(OTHER, [first.point_id]) == {}


async def test_a_message_may_be_written_with_its_vector(store: MemoryStore) -> None:
    documents = [message(each, f"number {each}") for each in range(200)]
    known = {each.point_id: NORTH for each in documents[:150]} | {message(999).point_id: EAST}
    await store.write(0, Changes([*documents, message(200)], vectors=WrittenVectors(SPACE, known)), 201)
    assert await store.vector_counts(SPACE) == VectorCounts(waiting=50, stored=150)
    assert sorted(await waiting(store)) == list(range(150, 200))
    assert len(await store.search_vector(messages(), SPACE, NORTH, 500, least=0.9)) == 150
    assert set(await texts_found(store, messages(), "number", 500)) == {str(each) for each in range(200)}
    await store.write(0, Changes([documents[0]], vectors=WrittenVectors(OTHER, {})), 202)
    assert await store.vector_counts(SPACE) == VectorCounts(waiting=51, stored=149)


async def test_a_search_by_meaning_keeps_to_its_filter_and_its_tenant(store: MemoryStore) -> None:
    documents = [
        message(1, "a", thread_id="t-1"),
        message(2, "b", thread_id="t-2"),
        message(3, "c", about="tools"),
        message(4, "d", tenant_id="other"),
    ]
    await store.write(0, Changes(documents), 5)
    await put(store, SPACE, *((each, NORTH) for each in documents))
    assert await near(store, NORTH, messages(thread_id="t-2")) == [2]
    assert sorted(await near(store, NORTH, Find("message", "acme", {}, {"about": "tools"}))) == [1, 2]
    assert await near(store, NORTH, messages("other")) == [4]
    assert await near(store, NORTH, messages("nobody")) == []


async def test_many_vectors_are_stored_in_one_call(store: MemoryStore) -> None:
    documents = [message(each, "text") for each in range(300)]
    await store.write(0, Changes(documents), 300)
    await put(store, SPACE, *((each, (1.0, number / 10, 0.0)) for number, each in enumerate(documents)))
    assert await waiting(store) == []
    assert (await near(store, EAST))[0] == 0


async def test_a_build_has_vectors_of_its_own(store: MemoryStore) -> None:
    old, new = message(1, "old"), message(2, "new")
    await store.write(0, Changes([old]), 2)
    await put(store, SPACE, (old, NORTH))
    build = await store.begin_build()
    await build.write(0, Changes([old, new], vectors=WrittenVectors(SPACE, {old.point_id: NORTH})), 3)
    await store.switch()
    assert await near(store, NORTH) == [1]
    assert await waiting(store) == [2]


async def test_a_copy_has_what_the_live_store_held_and_is_where_that_was(edge: EdgeMemoryStore) -> None:
    documents = [message(each, f"figs {each}") for each in range(200)]
    await edge.write(0, Changes(documents), 200)
    await put(edge, OTHER, (documents[1], (1.0, 0.0)))
    await put(edge, SPACE, (documents[0], NORTH), (documents[2], None))
    await edge.write(3, Changes(), 7)
    await eventually(lambda: at(edge, {0: 200, 3: 7}), "the positions to be stored")
    build = await edge.begin_copy(SPACE)
    await edge.write(0, Changes([message(200, "later")], deletes=[documents[5].point_id]), 201)
    assert await build.positions() == {0: 200, 3: 7}
    assert await build.count(messages()) == 200
    await edge.switch()
    assert set(await texts_found(edge, messages(), "figs", 200)) == {str(each) for each in range(200)}
    assert await near(edge, NORTH) == [0]
    assert await edge.vector_counts(SPACE) == VectorCounts(waiting=198, stored=1, refused=1, elsewhere=1)


async def test_vectors_are_in_no_index_until_a_build_is_optimised(edge: EdgeMemoryStore) -> None:
    space, chance = VectorSpace("large", 2560), random.Random(1)
    documents = [message(each, "text" if each % 2 else "") for each in range(1200)]
    await edge.write(0, Changes([*documents, message(5000, "without")]), 1200)
    for start in range(0, 1200, 100):
        some = documents[start : start + 100]
        await put(edge, space, *((each, [chance.random() for _ in range(space.size)]) for each in some))
    assert await edge.unindexed(space) == 1200
    build = await edge.begin_copy(space)
    await edge.optimise_build()
    assert await build.unindexed(space) == 0
    await edge.switch()
    assert await edge.unindexed(space) == 0
    assert (await edge.vector_counts(space)).stored == 1200


async def test_an_index_finds_the_nearest_of_the_few_that_a_filter_leaves(
    edge: EdgeMemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.memory.qdrant_shard.COMPARED_KILOBYTES", 1)
    space, chance = VectorSpace("large", 1024), random.Random(1)
    some = [message(each, "text", tenant_id="acme" if each % 5 else "globex") for each in range(6000)]
    vectors = {each.point_id: [chance.gauss() for _ in range(space.size)] for each in some}
    await edge.write(0, Changes(some, vectors=WrittenVectors(space, vectors)), 6000)
    queries = [[chance.gauss() for _ in range(space.size)] for _ in range(20)]
    few = messages(tenant_id="globex")
    compared = [set(await near(edge, query, few, space)) for query in queries]
    await edge.begin_copy(space)
    await edge.optimise_build()
    await edge.switch()
    assert await edge.unindexed(space) == 0
    found = [set(await near(edge, query, few, space)) for query in queries]
    assert sum(len(before & after) for before, after in zip(compared, found, strict=True)) > 186


async def test_a_process_that_is_killed_leaves_each_message_with_its_vector_or_waiting_for_it(tmp_path: Path) -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, str(tmp_path / "memory"), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    async with asyncio.timeout(60):
        while int(await child.stdout.readline()) < 200:
            pass
        child.send_signal(signal.SIGKILL)
        rest = (await child.stdout.read()).split()
        await child.wait()
    stored = int(rest[-2]) if len(rest) > 1 else 200
    store = EdgeMemoryStore(tmp_path / "memory")
    await store.open()
    there = await positions_of(store, messages())
    left = await waiting(store, limit=100_000)
    documents = await store.get([message(each).point_id for each in there])
    with_vector = await store.vectors(SPACE, [each.point_id for each in documents])
    await store.close()
    embedded = [each.fields["position"] for each in documents if each.point_id in with_vector]
    assert sorted([*left, *embedded]) == there
    assert len(with_vector) >= stored, "a vector that was acknowledged outlives the process"


async def test_a_process_that_is_killed_in_a_flush_leaves_each_message_with_its_vector_or_waiting_for_it(
    tmp_path: Path,
) -> None:
    """The flush has told the disk which documents are gone, and nothing else yet: all else is read from the engine's
    log, where a message that is gone is still given its vector together with others."""
    folder, killed = tmp_path / "memory", tmp_path / "killed"
    store = EdgeMemoryStore(folder)
    await store.open()
    some = [message(each, "text") for each in range(200)]
    await store.write(0, Changes(some), 200)
    await store.close()
    await store.open()
    await put(store, SPACE, *((each, NORTH) for each in some[1:]), (some[0], None))
    await store.write(0, Changes(deletes=[some[7].point_id, some[150].point_id]), 201)
    shutil.copytree(folder, killed)
    await store.close()
    (mappings,) = folder.rglob("mutable_id_tracker.mappings")
    shutil.copy(mappings, killed / mappings.relative_to(folder))
    left = EdgeMemoryStore(killed)
    await left.open()
    assert await left.positions() == {0: 200}
    assert await left.vector_counts(SPACE) == VectorCounts(stored=197, refused=1)
    assert len(await left.vectors(SPACE, [each.point_id for each in some])) == 197
    await left.close()


async def test_a_store_that_is_not_open_stores_no_vector(edge: EdgeMemoryStore) -> None:
    await edge.close()
    for call in (
        edge.put_vectors(SPACE, [MessageVector(message(1), NORTH)]),
        edge.without_vector(SPACE, 1),
        edge.vector_counts(SPACE),
        edge.vectors(SPACE, [message(1).point_id]),
        edge.search_vector(messages(), SPACE, NORTH, 1),
    ):
        with pytest.raises(UnavailableError, match="not open"):
            await call


@pytest.mark.parametrize("model", ["BAAI/bge-m3", "nomic-embed-text:latest", "../x", "模型"])
async def test_any_name_of_a_model_can_name_vectors(store: MemoryStore, model: str) -> None:
    written, space = message(1, "text"), VectorSpace(model, 3)
    await store.write(0, Changes([written]), 2)
    await put(store, space, (written, NORTH))
    assert await near(store, NORTH, space=space) == [1]
