"""The jars of Apache Kafka: exactly those of the lock file, checked by sha256, kept in a cache folder.

A jar is in the cache under its final name only when its checksum has matched: it is fetched beside it, checked, and
then renamed. So a start that was killed half way leaves nothing that a later one would trust, and two launchers may
fill one cache at the same time.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infra.local.errors import DataFolderUnusable, JarUnavailable, LockFileInvalid

Progress = Callable[[int, int, str], None]
"""`(done, total, name)`: jars in place, jars in all, and the one that has just come. Called on the event loop."""

_AT_ONCE = 24  # connections; the jars are small, so latency and not bandwidth decides
_ATTEMPTS = 4
_RETRY_AFTER_SECONDS = 0.5  # doubled after each failed attempt


class FetchFailed(Exception):
    """A fetcher could not bring a jar; the message says why. Trying again may help."""


class Fetcher(Protocol):
    """Where jars come from."""

    def fetch(self, coordinate: str, folder: Path) -> Path:
        """Bring the file of `coordinate` somewhere below `folder` and return its path. Raises `FetchFailed`."""
        ...


class LockedJar(BaseModel):
    """One jar: `group:artifact:version`, its size and its checksum."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    coordinate: str = Field(pattern=r"^[\w.\-]+:[\w.\-]+:[\w.\-]+$")
    bytes: int = Field(gt=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @property
    def filename(self) -> str:
        """The name of the file in the cache, `artifact-version.jar`."""
        _, artifact, version = self.coordinate.split(":")
        return f"{artifact}-{version}.jar"


class JarLock(BaseModel):
    """Every jar that a release of Kafka runs on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    root: str
    jars: tuple[LockedJar, ...] = Field(min_length=1)

    @classmethod
    def read(cls, source: Path) -> JarLock:
        """Parse the lock file. Raises `LockFileInvalid` that says what is wrong in it."""
        try:
            lock = cls.model_validate_json(source.read_bytes())
        except OSError as error:
            raise LockFileInvalid(source, f"it can't be read ({error.strerror})") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise LockFileInvalid(source, f"{where}: {first['msg']}") from error
        names = [jar.filename for jar in lock.jars]
        if doubled := {name for name in names if names.count(name) > 1}:
            raise LockFileInvalid(source, f"{sorted(doubled)} come twice")
        return lock


class JarCache:
    """A folder of verified jars."""

    def __init__(self, folder: Path, *, fetcher: Fetcher, on_progress: Progress | None = None) -> None:
        self._folder = folder
        self._fetcher = fetcher
        self._on_progress: Progress = on_progress or (lambda _done, _total, _name: None)

    async def ensure(self, lock: JarLock) -> list[Path]:
        """Paths of all the jars of the lock, in its order; fetches what is missing or damaged.

        Progress is reported only if something must be fetched. Raises `JarUnavailable` when a jar can't be had, with
        the others already in place for the next try, and `DataFolderUnusable`.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataFolderUnusable(self._folder, error) from error
        sound = await asyncio.gather(*(asyncio.to_thread(self._is_sound, jar) for jar in lock.jars))
        missing = [jar for jar, is_sound in zip(lock.jars, sound, strict=True) if not is_sound]
        if missing:
            await self._fetch_all(missing, total=len(lock.jars))
        return [self._folder / jar.filename for jar in lock.jars]

    async def _fetch_all(self, missing: list[LockedJar], *, total: int) -> None:
        done = total - len(missing)

        async def fetch(jar: LockedJar) -> None:
            nonlocal done
            await self._fetch_one(jar, threads)
            done += 1
            self._on_progress(done, total, jar.filename)

        self._on_progress(done, total, "")
        # Threads of its own: the loop's default ones are few on a small machine, and others need them.
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fetch") as threads:
            outcomes = await asyncio.gather(*(fetch(jar) for jar in missing), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _fetch_one(self, jar: LockedJar, threads: Executor) -> None:
        loop = asyncio.get_running_loop()
        reason = ""
        for attempt in range(_ATTEMPTS):
            if attempt:
                await asyncio.sleep(_RETRY_AFTER_SECONDS * 2 ** (attempt - 1))
            try:
                await loop.run_in_executor(threads, self._fetch_and_check, jar)
            except FetchFailed as error:
                reason = str(error)
            except OSError as error:
                raise DataFolderUnusable(self._folder, error) from error
            else:
                return
        raise JarUnavailable(jar.coordinate, _ATTEMPTS, reason)

    def _fetch_and_check(self, jar: LockedJar) -> None:
        """One attempt in a folder of its own, so that nothing of a failed one is left or reused."""
        workspace = Path(tempfile.mkdtemp(prefix=".fetch-", dir=self._folder))
        try:
            fetched = self._fetcher.fetch(jar.coordinate, workspace)
            if (fault := _fault_of(fetched, jar)) is not None:
                raise FetchFailed(fault)
            fetched.replace(self._folder / jar.filename)
        finally:
            shutil.rmtree(workspace, ignore_errors=True)

    def _is_sound(self, jar: LockedJar) -> bool:
        """Whether the cached file matches the lock. One that doesn't is deleted."""
        cached = self._folder / jar.filename
        if not cached.exists():
            return False
        if _fault_of(cached, jar) is None:
            return True
        try:
            cached.unlink(missing_ok=True)
        except OSError as error:
            raise DataFolderUnusable(self._folder, error) from error
        return False


def sha256_of(path: Path) -> str:
    """Checksum of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder(data_dir: Path, release: str) -> Path:
    """`<data_dir>/cache/<release>`, or `$TURNLOG_CACHE_DIR/<release>` when that is set."""
    shared = os.environ.get("TURNLOG_CACHE_DIR")
    return (Path(shared) if shared else data_dir / "cache") / release


def _fault_of(path: Path, jar: LockedJar) -> str | None:
    size = path.stat().st_size
    if size != jar.bytes:
        return f"expected {jar.bytes} bytes, got {size}"
    if (checksum := sha256_of(path)) != jar.sha256:
        return f"expected sha256 {jar.sha256}, got {checksum}"
    return None
