"""Qdrant's engine in process: a folder with one shard that is live and, while memory is rebuilt, one beside it.

The file `current` names the live shard. It is replaced by a rename, so that a process that is killed at any moment
leaves either the old or the new one, whole; what it does not name is removed at the next start.
"""

import asyncio
import contextlib
import fcntl
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO

import structlog

from services.memory import qdrant_optimise
from services.memory.qdrant_shard import MemoryShard
from services.memory.qdrant_text import TextVectors
from services.memory.store import (
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
)
from services.runtime.disk import require_room
from services.runtime.errors import ConfigurationError, UnavailableError
from services.runtime.tasks import run_to_end

log = structlog.get_logger(__name__)

POINTER = "current"


class EdgeMemoryStore:
    """A folder that one process has open at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._live: MemoryShard | None = None
        self._build: MemoryShard | None = None
        self._old: MemoryShard | None = None
        self._lock: IO[str] | None = None
        self._text = TextVectors()

    async def open(self) -> None:
        """Raises ConfigurationError when another process has the folder open, or the engine cannot read it.

        Raises UnavailableError while the disk is full.
        """
        await run_to_end(self._open)

    def _open(self) -> None:
        with contextlib.ExitStack() as opened:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                lock = opened.enter_context((self._folder / "lock").open("w"))
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigurationError(
                    f"another process has {self._folder} open: stop it or set TURNLOG_DATA_DIR"
                ) from error
            except OSError as error:
                raise ConfigurationError(
                    f"cannot write to {self._folder}: {error.strerror}; set TURNLOG_DATA_DIR"
                ) from error
            try:
                self._live = self._load_or_create()
            except UnavailableError:
                raise
            except Exception as error:
                raise ConfigurationError(
                    f"{self._folder} cannot be read ({error}): remove it, and memory is rebuilt from Kafka"
                ) from error
            opened.pop_all()
            self._lock = lock

    def _load_or_create(self) -> MemoryShard:
        """A new shard is pointed at when it has all its indexes: a start that is killed leaves no half of one.

        To load one wants room as well: the engine writes once more what it had not flushed.
        """
        pointer = self._folder / POINTER
        name = pointer.read_text().strip() if pointer.exists() else None
        self._remove_all_but(name)
        require_room(self._folder)
        if name is not None:
            shard = MemoryShard(self._folder / name)
            if shard.load():
                return shard
            log.warning("memory_begins_anew", folder=str(shard.folder), reason="an earlier release has written it")
        name = "shard-1" if name is None else _following(name)
        MemoryShard.create(self._folder / name)
        self._point_at(name)
        self._remove_all_but(name)
        shard = MemoryShard(self._folder / name)
        shard.load()
        return shard

    def _remove_all_but(self, name: str | None) -> None:
        for each in self._folder.iterdir():
            if each.is_dir() and each.name.startswith("shard") and each.name != name:
                shutil.rmtree(each, ignore_errors=True)

    def _point_at(self, name: str) -> None:
        """The name is on the disk before the rename and the rename before this returns."""
        written = self._folder / f"{POINTER}.new"
        with written.open("w") as file:
            file.write(name)
            file.flush()
            os.fsync(file.fileno())
        written.rename(self._folder / POINTER)
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    async def close(self) -> None:
        """Flushes; the folder is free for another process afterwards, whatever the flush has come to."""
        try:
            await self.clean()
            if self._live is not None:
                await self._live.close()
        finally:
            self._live = None
            if self._lock is not None:
                self._lock.close()
                self._lock = None

    async def begin_build(self) -> MemoryShard:
        await self.clean()
        live = self._opened()
        build = self._build = MemoryShard(self._folder / _following(live.folder.name))

        def create() -> None:
            shutil.rmtree(build.folder, ignore_errors=True)
            MemoryShard.create(build.folder)
            build.load()

        try:
            await run_to_end(create)
        except Exception as error:
            await self.clean()
            raise UnavailableError(f"no shard can be made at {build.folder}: {error}") from error
        return build

    async def begin_copy(self, space: VectorSpace) -> MemoryShard:
        """As `begin_build`, with what the live one holds and the positions of the moment that the copy began.

        Vectors of other spaces stay behind. Raises UnavailableError.
        """
        live, build = self._opened(), await self.begin_build()
        await build.copy_from(live, space)
        return build

    async def unindexed(self, space: VectorSpace) -> int:
        """Vectors of a space that a search compares one by one, until the live shard gives way to an optimised one."""
        return await self._opened().unindexed(space)

    async def optimise_build(self) -> None:
        """Makes what was built as fast to search as the engine can; nobody may use the build during the call.

        In a process of its own, at the lowest priority: the engine holds the GIL for as long as it takes. Raises
        UnavailableError when it fails: the build is of no use then.
        """
        build = self._build
        if build is None:
            raise UnavailableError("nothing was built that could be optimised")
        await build.close()
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", qdrant_optimise.__name__, str(build.folder), str(os.getpid())),
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            _, said = await child.communicate()
        except asyncio.CancelledError:
            child.kill()
            await child.wait()
            raise
        if child.returncode != 0:
            reason = said.decode(errors="replace").strip()[-500:]
            raise UnavailableError(f"{build.folder} cannot be optimised ({child.returncode}): {reason}")
        await run_to_end(build.load)

    async def switch(self) -> None:
        old, new = self._opened(), self._build
        if new is None:
            raise UnavailableError("nothing was built that could be switched to")
        await new.flush()
        await new.flush()  # once for the data, once more for the offsets that the first has written behind it

        def move() -> None:
            self._point_at(new.folder.name)
            self._live, self._build, self._old = new, None, old

        try:
            await run_to_end(move)
        except OSError as error:
            raise UnavailableError(f"cannot write to {self._folder}: {error.strerror}") from error

    async def clean(self) -> None:
        for each in (self._build, self._old):
            if each is not None:
                await each.abandon()
                await run_to_end(partial(shutil.rmtree, each.folder, ignore_errors=True))
        self._build = self._old = None

    async def positions(self) -> Mapping[int, int]:
        return await self._opened().positions()

    async def write(self, partition: int, changes: Changes, next_offset: int) -> None:
        await self._opened().write(partition, changes, next_offset)

    async def get(self, point_ids: Sequence[str]) -> Sequence[Document]:
        return await self._opened().get(point_ids)

    async def bodies(self, point_ids: Sequence[str]) -> Mapping[str, str]:
        return await self._opened().bodies(point_ids)

    async def of_partition(self, partition: int | None, *, after: str | None, limit: int) -> Sequence[Document]:
        return await self._opened().of_partition(partition, after=after, limit=limit)

    async def scroll(
        self, find: Find, *, order_by: str, descending: bool, limit: int, within: Range = Range()
    ) -> Sequence[Listed]:
        return await self._opened().scroll(find, order_by=order_by, descending=descending, limit=limit, within=within)

    async def count(self, find: Find) -> int:
        return await self._opened().count(find)

    async def search(self, find: Find, text: str, limit: int) -> Sequence[Hit]:
        return await self._opened().search(find, text, limit)

    def marker(self, query: str) -> Marker:
        return self._text.marker(query)

    async def search_vector(
        self, find: Find, space: VectorSpace, vector: Sequence[float], limit: int, *, least: float | None = None
    ) -> Sequence[Hit]:
        return await self._opened().search_vector(find, space, vector, limit, least=least)

    async def put_vectors(self, space: VectorSpace, vectors: Sequence[MessageVector]) -> None:
        await self._opened().put_vectors(space, vectors)

    async def without_vector(self, space: VectorSpace, limit: int, *, within: Range = Range()) -> Sequence[Document]:
        return await self._opened().without_vector(space, limit, within=within)

    async def vectors(self, space: VectorSpace, point_ids: Sequence[str]) -> Mapping[str, StoredVector]:
        return await self._opened().vectors(space, point_ids)

    async def vector_counts(self, space: VectorSpace) -> VectorCounts:
        return await self._opened().vector_counts(space)

    def _opened(self) -> MemoryShard:
        if self._live is None:
            raise UnavailableError("memory's store is not open")
        return self._live


def _following(name: str) -> str:
    """Of the next shard."""
    return f"shard-{int(name.removeprefix('shard-')) + 1}"
