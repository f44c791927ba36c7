"""The engine in process while its disk is full: whatever wants room says so, and what is there is read."""

import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from services.memory.qdrant_edge import EdgeMemoryStore
from services.memory.store import Changes
from services.runtime import disk
from services.runtime.errors import ConfigurationError, UnavailableError
from tests.contract.test_memory_store import ROOT, message, messages, positions_of, texts_found
from tests.contract.test_memory_vectors import NORTH, OTHER, SPACE, near, put, waiting
from tests.support.disk import small_disk

CHILD = """
import asyncio, contextlib, shutil, sys
from pathlib import Path
from services.memory.qdrant_edge import EdgeMemoryStore
from services.memory.store import Changes, VectorSpace
from services.runtime.disk import RESERVE_MEGABYTES
from services.runtime.errors import UnavailableError
from tests.contract.test_memory_store import message, messages, texts_found
from tests.contract.test_memory_vectors import NORTH, near, put

DISK = Path(sys.argv[1])
MEGABYTE = 1024**2
LARGE = VectorSpace("large", 4096)

def leave(megabytes):
    with (DISK / "filler").open("ab", buffering=0) as file:
        while shutil.disk_usage(DISK).free > megabytes * MEGABYTE:
            file.write(bytes(MEGABYTE // 4))

async def refused(call):
    try:
        await call
    except UnavailableError as error:
        assert "make room" in str(error), error
    else:
        raise AssertionError("there was no room")

async def main():
    store = EdgeMemoryStore(DISK / "memory")
    await store.open()
    said = [message(number, "figs") for number in range(4000)]
    await store.write(0, Changes(said), 4000)
    leave(RESERVE_MEGABYTES + 1)
    await store.begin_build()
    await store.clean()
    await refused(put(store, LARGE, (said[0], [1.0] * LARGE.size)))
    leave(20)
    await refused(store.begin_build())
    assert await near(store, [1.0] * LARGE.size, space=LARGE) == []
    assert len(await texts_found(store, messages(), "figs")) == 10
    await refused(EdgeMemoryStore(DISK / "another").open())
    leave(0)
    with contextlib.suppress(UnavailableError):
        await store.close()
    await refused(store.open())
    (DISK / "filler").unlink()
    await store.open()
    assert await store.count(messages()) == 4000
    await store.close()

asyncio.run(main())
"""


def test_no_want_of_room_ends_the_process(tmp_path: Path) -> None:
    """A disk of its own, since a test cannot fill another one; a process of its own, which the kernel would end."""
    with small_disk(tmp_path / "disk", megabytes=400) as folder:
        program = (sys.executable, "-c", CHILD, str(folder))
        child = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert (child.returncode, child.stderr) == (0, "")


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As if nothing were left on any disk, until it is undone."""
    monkeypatch.setattr(disk, "RESERVE_MEGABYTES", 1024**3)
    return monkeypatch


async def test_a_first_start_waits_for_room(tmp_path: Path, full: pytest.MonkeyPatch) -> None:
    store = EdgeMemoryStore(tmp_path / "memory")
    for _ in range(2):
        with pytest.raises(UnavailableError, match="make room"):
            await store.open()
    assert not [*(tmp_path / "memory").glob("shard*")]
    full.undo()
    await store.open()
    assert await store.positions() == {}
    await store.close()


async def test_a_start_waits_for_room_and_goes_on_where_it_was(edge: EdgeMemoryStore, full: pytest.MonkeyPatch) -> None:
    """The engine writes what it had not flushed once more: where nothing is left, the kernel ends the process."""
    full.undo()
    await edge.write(0, Changes([message(1)]), 2)
    await edge.close()
    full.setattr(disk, "RESERVE_MEGABYTES", 1024**3)
    for _ in range(2):
        with pytest.raises(UnavailableError, match="make room"):
            await edge.open()
    full.undo()
    await edge.open()
    assert await positions_of(edge, messages()) == [1]
    assert await edge.positions() == {0: 2}


async def test_a_build_wants_room(edge: EdgeMemoryStore, full: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnavailableError, match="make room"):
        await edge.begin_build()
    full.undo()
    await edge.begin_build()
    await edge.switch()


async def test_what_is_there_is_found_by_meaning_while_the_disk_is_full(
    edge: EdgeMemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = message(1, "figs")
    await edge.write(0, Changes([written]), 2)
    await put(edge, SPACE, (written, NORTH))
    monkeypatch.setattr(disk, "RESERVE_MEGABYTES", 1024**3)
    assert await near(edge, NORTH) == [1]
    assert await near(edge, (1.0, 0.0), space=OTHER) == []
    assert await edge.vectors(OTHER, [written.point_id]) == {}
    assert await edge.unindexed(OTHER) == 0
    assert await waiting(edge, OTHER) == [1]
    assert await texts_found(edge, messages(), "figs") == ["1"]


async def test_a_new_space_wants_room_for_a_vector_of_every_document(
    edge: EdgeMemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = [message(number, "figs") for number in range(100)]
    await edge.write(0, Changes(some), 100)
    asked: list[int] = []
    monkeypatch.setattr("services.memory.qdrant_shard.require_room", lambda _, more=0: asked.append(more))
    await put(edge, SPACE, (some[0], NORTH))
    await put(edge, SPACE, (some[1], NORTH))
    assert asked == [0, 100 * SPACE.size * 4, 0]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (BlockingIOError(errno.EWOULDBLOCK, "it is locked"), "another process has"),
        (OSError(errno.ENOLCK, "there are no locks"), "cannot write to .*: there are no locks"),
    ],
)
async def test_another_process_is_named_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, said: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    store = EdgeMemoryStore(tmp_path / "memory")
    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(ConfigurationError, match=said):
        await store.open()
    monkeypatch.undo()
    await store.open()
    assert await positions_of(store, messages()) == []
    await store.close()
