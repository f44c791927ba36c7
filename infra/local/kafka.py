"""Apache Kafka as a child of this process: one KRaft node on the loopback address, with its data in the data folder.

    async with LocalKafka(data_dir=Path(".turnlog"), port=9092) as kafka:
        ...  # clients connect to kafka.bootstrap

What an acknowledged write survives: the broker or this process being killed at any moment. Kafka writes to the
operating system's page cache and lets it flush, so a power cut may lose the last seconds; a cluster with replicas
is the answer to that, not this launcher.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from infra.local.broker_config import BrokerConfig, log4j_properties, new_cluster_id
from infra.local.errors import BrokerFailed, DataFolderUnusable, LocalExtraMissing
from infra.local.folder_lock import FolderLock
from infra.local.jars import Fetcher, JarCache, JarLock, Progress, cache_folder
from infra.local.java import java_command
from infra.local.process import (
    GuardedProcess,
    child_environment,
    claim_port,
    free_port,
    port_is_free,
    tail_of,
)

try:
    from infra.local.maven import MavenFetcher
except ImportError:  # an image without the `local` extra may import this module, and is told so on first use
    MavenFetcher = None

RELEASE = "kafka-4.3.1"
LOCK_FILE = Path(__file__).with_name(f"{RELEASE}.lock.json")
PORT_SETTING = "TURNLOG_LOCAL_KAFKA_PORT"

_START_SECONDS = 60.0  # 2 s on an idle machine; recovery after a kill reads the last segments
_FORMAT_SECONDS = 60.0
_FENCING_SECONDS = 8.0  # 2 s on an idle machine
_STOP_SECONDS = 15.0  # Kafka needs about one to close its logs
_ORPHAN_SECONDS = _STOP_SECONDS + 5.0
_ANSWER_MILLISECONDS = 2_000  # for one attempt to reach the broker while it starts
_RETRY_SECONDS = 0.05


class LocalKafka:
    """One broker, its files and its process. May be started again after `stop()` or after the broker died."""

    def __init__(
        self,
        *,
        data_dir: Path,
        port: int,
        on_progress: Progress | None = None,
        fetcher: Fetcher | None = None,
    ) -> None:
        """`port` 0 takes any free one. `on_progress(done, total, name)` counts jars while the first start fetches them.

        Everything lives under `<data_dir>/kafka/`; the jars under `<data_dir>/cache/` or `$TURNLOG_CACHE_DIR`.
        """
        data_dir = data_dir.absolute()
        self._home = data_dir / "kafka"
        self._cache = cache_folder(data_dir, RELEASE)
        self._asked_port = port
        self._on_progress = on_progress
        self._fetcher = fetcher
        self._lock = FolderLock(self._home / "launcher.lock")
        self._process: GuardedProcess | None = None
        self._config: BrokerConfig | None = None

    @property
    def bootstrap(self) -> str:
        """`127.0.0.1:port`. Raises `RuntimeError` before the first start."""
        if self._config is None:
            raise RuntimeError("the local Kafka has not been started")
        return self._config.bootstrap

    @property
    def pid(self) -> int | None:
        """Process id of the broker while it runs, else None."""
        return self._process.pid if self._process is not None else None

    @property
    def log_file(self) -> Path:
        """Where the broker writes its warnings."""
        return self._home / "logs" / "server.log"

    async def start(self) -> str:
        """Start the broker and return its bootstrap address once it answers clients.

        Raises:
            PortInUse: another program listens on the port.
            AlreadyRunning: another launcher uses the data folder.
            DataFolderUnusable: the data or the cache folder can't be written.
            JarUnavailable: a part of Kafka could not be fetched.
            BrokerFailed: the broker ended or did not answer; its last lines are in the message.
            LocalExtraMissing: the `local` extra is not installed.
        """
        if self.pid is not None:
            raise RuntimeError("the local Kafka runs already")
        await self.stop()
        self._make_folders()
        await self._lock.acquire(orphan_grace_seconds=_ORPHAN_SECONDS)
        try:
            config = self._config = self._claim_ports()
            cache = JarCache(self._cache, fetcher=self._fetcher or _maven(), on_progress=self._on_progress)
            jars = await cache.ensure(JarLock.read(LOCK_FILE))
            self._write_files(config)
            await self._format(config, jars)
            if _was_killed(config):
                await self._fence_the_killed_broker(config, jars)
            self._process = self._run("kafka.Kafka", str(self._properties), jars=jars, out="console.log")
            await self._until_it_answers(self._process, config)
        except BaseException:
            await self.stop()
            raise
        return config.bootstrap

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL if the broker takes longer than 15 s. Does nothing when it does not run."""
        if self._process is not None:
            process, self._process = self._process, None
            await process.stop()
        self._lock.release()

    async def wait(self) -> int:
        """Wait until the broker's process ends and return its exit code (128 + signal when a signal ended it)."""
        if self._process is None:
            raise RuntimeError("the local Kafka does not run")
        return await self._process.wait()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def _properties(self) -> Path:
        return self._home / "server.properties"

    @property
    def _log4j(self) -> Path:
        return self._home / "log4j2.properties"

    def _make_folders(self) -> None:
        try:
            (self._home / "logs").mkdir(parents=True, exist_ok=True)
            (self._home / "data").mkdir(exist_ok=True)
        except OSError as error:
            raise DataFolderUnusable(self._home, error) from error

    def _claim_ports(self) -> BrokerConfig:
        # A start after the broker died keeps the address that clients know.
        asked = self._asked_port or (self._config.port if self._config is not None else 0)
        port = claim_port(asked, setting=PORT_SETTING)
        controller_port = port + 1 if port < 65535 and port_is_free(port + 1) else free_port()
        return BrokerConfig(port=port, controller_port=controller_port, log_dir=self._home / "data")

    def _write_files(self, config: BrokerConfig) -> None:
        try:
            self._properties.write_text(config.server_properties())
            self._log4j.write_text(log4j_properties(self.log_file))
        except OSError as error:
            raise DataFolderUnusable(self._home, error) from error

    async def _format(self, config: BrokerConfig, jars: list[Path]) -> None:
        """Write the cluster id into an empty data folder; Kafka's tool refuses a folder that has one."""
        if (config.log_dir / "meta.properties").exists():
            return
        arguments = ("format", "-t", new_cluster_id(), "-c", str(self._properties), "--ignore-formatted")
        formatting = self._run("kafka.tools.StorageTool", *arguments, jars=jars, out="format.log")
        try:
            code = await asyncio.wait_for(formatting.wait(), _FORMAT_SECONDS)
        except TimeoutError:
            code = None
        tail = formatting.tail()
        await formatting.stop()
        if code != 0:
            what = "formatting its folder took too long" if code is None else f"formatting its folder ended with {code}"
            raise BrokerFailed(what, log=self._home / "logs" / "format.log", tail=tail)

    async def _fence_the_killed_broker(self, config: BrokerConfig, jars: list[Path]) -> None:
        """Let the cluster's metadata say that the broker died, before it comes back.

        The metadata of a killed broker still name it as the leader of every partition. Kafka 4.3 then starts the
        transaction coordinator on that stale leadership; when the broker is registered anew all partitions lose their
        leader for a moment, and the coordinator takes a partition without a leader for a deleted one: a transaction
        whose commit was acknowledged just before the kill is marked complete without its marker, and `read_committed`
        readers wait at it for ever. A short run of the node as a controller alone, which finds the broker silent and
        takes its leadership away, makes this start look like the one after a clean stop.
        """
        log = self._home / "logs" / "fencing.log"
        properties, log4j = self._home / "fencing.properties", self._home / "fencing-log4j2.properties"
        log.unlink(missing_ok=True)
        properties.write_text(config.fencing_properties())
        log4j.write_text(log4j_properties(log))
        controller = self._run("kafka.Kafka", str(properties), jars=jars, out="fencing-console.log", log4j=log4j)
        deadline = time.monotonic() + _FENCING_SECONDS
        # No such line comes if the last start was killed between this and its registration: hence no error.
        while controller.poll() is None and time.monotonic() < deadline and not _fenced(log):  # noqa: ASYNC110
            await asyncio.sleep(_RETRY_SECONDS)
        await controller.stop()

    def _run(
        self, main_class: str, *arguments: str, jars: list[Path], out: str, log4j: Path | None = None
    ) -> GuardedProcess:
        log = self._home / "logs" / out
        log.write_bytes(b"")
        process = GuardedProcess(
            java_command(
                main_class,
                *arguments,
                jars=jars,
                options=(f"-Dlog4j2.configurationFile={(log4j or self._log4j).as_uri()}",),
            ),
            log=log,
            grace_seconds=_STOP_SECONDS,
            # glibc keeps an arena a thread otherwise, tens of MB for a broker.
            env=child_environment(MALLOC_ARENA_MAX="2"),
            keep_fds=(self._lock.fileno(),),
        )
        process.spawn()
        return process

    async def _until_it_answers(self, process: GuardedProcess, config: BrokerConfig) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not await _answers(config):
            code = process.poll()
            if code is None and time.monotonic() < deadline:
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            what = f"it ended with code {code}" if code is not None else f"it did not answer in {_START_SECONDS:.0f} s"
            raise BrokerFailed(what, log=self.log_file, tail=process.tail() or tail_of(self.log_file))


def _was_killed(config: BrokerConfig) -> bool:
    """Whether a broker ran on this data and did not close it: Kafka leaves a file when it does."""
    has_run = (config.log_dir / "__cluster_metadata-0").exists()
    return has_run and not (config.log_dir / ".kafka_cleanshutdown").exists()


def _fenced(log: Path) -> bool:
    return log.exists() and "Fencing broker 1" in log.read_text(errors="replace")


async def _answers(config: BrokerConfig) -> bool:
    """Whether a client gets the node's own address in the cluster's description."""
    if port_is_free(config.port):
        return False
    admin = AIOKafkaAdminClient(bootstrap_servers=config.bootstrap, request_timeout_ms=_ANSWER_MILLISECONDS)
    try:
        await admin.start()
        cluster = await admin.describe_cluster()
    except (KafkaError, OSError):
        return False
    finally:
        await admin.close()
    return any(node["port"] == config.port for node in cluster["brokers"])


def _maven() -> Fetcher:
    if MavenFetcher is None:
        raise LocalExtraMissing("jgo")
    return MavenFetcher()


@contextlib.contextmanager
def running_kafka(*, data_dir: Path, port: int = 0, on_progress: Progress | None = None) -> Generator[LocalKafka]:
    """A broker for code without an event loop, such as a test session's fixture; stopped at the end."""
    kafka = LocalKafka(data_dir=data_dir, port=port, on_progress=on_progress)
    _in_a_loop_of_its_own(kafka.start)
    try:
        yield kafka
    finally:
        _in_a_loop_of_its_own(kafka.stop)


def _in_a_loop_of_its_own(action: Callable[[], Coroutine[None, None, object]]) -> None:
    """Run to the end on a thread, since the calling thread may have a loop that is running or set up."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        thread.submit(lambda: asyncio.run(action())).result()
