"""One launcher a data folder."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from pathlib import Path

from infra.local.errors import AlreadyRunning, DataFolderUnusable

_LOOK_AGAIN_SECONDS = 0.1
_DYING_SECONDS = 0.5  # a launcher that was just killed is not gone in the same instant


class FolderLock:
    """An exclusive lock on a file, which the kernel gives up when its last holder dies.

    The guard of the broker inherits it (`fileno`), so it stays held until the broker is gone even if the launcher was
    killed: a new launcher then waits for that instead of starting a second broker on the same data.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def fileno(self) -> int:
        """The descriptor that holds the lock. Raises `RuntimeError` when it isn't held."""
        if self._descriptor is None:
            raise RuntimeError(f"{self._path} is not locked")
        return self._descriptor

    async def acquire(self, *, orphan_grace_seconds: float) -> None:
        """Take the lock and write this process's id into the file.

        If the launcher that wrote its id there is dead, what it left is ending: wait for that up to
        `orphan_grace_seconds`. Raises `AlreadyRunning` in half a second when that launcher lives, or after that time.
        """
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise DataFolderUnusable(self._path, error) from error
        began = time.monotonic()
        while not _try_lock(descriptor):
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            waited = time.monotonic() - began
            if waited >= (_DYING_SECONDS if _is_alive(holder) else orphan_grace_seconds):
                os.close(descriptor)
                raise AlreadyRunning(self._path.parent, holder)
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock up; does nothing when it isn't held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_alive(process_id: str) -> bool:
    if not process_id.isdigit():
        return False
    try:
        os.kill(int(process_id), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _is_zombie(int(process_id))


def _is_zombie(process_id: int) -> bool:
    """Whether the process has ended and only waits for its parent to notice. Linux; elsewhere the wait is longer."""
    try:
        stat = Path(f"/proc/{process_id}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] == "Z"
