"""Apache Kafka as a child of this process: KRaft nodes on the loopback address, with their data in the data folder.

    async with LocalKafka(data_dir=Path(".turnlog"), port=9092) as kafka:
        ...  # clients connect to kafka.bootstrap

What an acknowledged write survives: the broker or this process being killed at any moment. Kafka writes to the
operating system's page cache and lets it flush, so a power cut may lose the last seconds; a cluster with replicas on
several machines is the answer to that, not this launcher. Three nodes here show what a cluster does when one dies.
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

from infra.local.broker_config import BrokerConfig, new_cluster_id
from infra.local.errors import DataFolderUnusable, LocalExtraMissing
from infra.local.folder_lock import FolderLock
from infra.local.jars import Fetcher, JarCache, JarLock, Progress, cache_folder
from infra.local.node import STOP_SECONDS, Node, server_log
from infra.local.process import claim_port, free_ports, port_is_free

try:
    from infra.local.maven import MavenFetcher
except ImportError:  # an image without the `local` extra may import this module, and is told so on first use
    MavenFetcher = None

RELEASE = "kafka-4.3.1"
LOCK_FILE = Path(__file__).with_name(f"{RELEASE}.lock.json")
PORT_SETTING = "TURNLOG_LOCAL_KAFKA_PORT"

_FENCING_SECONDS = 8.0  # 2 s on an idle machine
_ORPHAN_SECONDS = STOP_SECONDS + 5.0
_RETRY_SECONDS = 0.05


class LocalKafka:
    """One broker or several, their files and processes. May be started again after `stop()` or after all have died."""

    def __init__(
        self,
        *,
        data_dir: Path,
        port: int,
        nodes: int = 1,
        on_progress: Progress | None = None,
        fetcher: Fetcher | None = None,
    ) -> None:
        """`port` 0 takes any free one; several nodes have ports in a row. `on_progress(done, total, name)` counts jars
        while the first start fetches them.

        Everything lives under `<data_dir>/kafka/`; the jars under `<data_dir>/cache/` or `$TURNLOG_CACHE_DIR`. Another
        number of nodes is another cluster, with data of its own.
        """
        data_dir = data_dir.absolute()
        self._home = data_dir / "kafka"
        self._homes = [self._home] if nodes == 1 else [self._home / f"{nodes}-nodes" / f"{n + 1}" for n in range(nodes)]
        self._cache = cache_folder(data_dir, RELEASE)
        self._asked_port = port
        self._on_progress = on_progress
        self._fetcher = fetcher
        self._lock = FolderLock(self._home / "launcher.lock")
        self._configs: list[BrokerConfig] = []
        self.nodes: list[Node] = []
        """From the first start on."""

    @property
    def bootstrap(self) -> str:
        """`127.0.0.1:port`, of each node. Raises `RuntimeError` before the first start."""
        if not self._configs:
            raise RuntimeError("the local Kafka has not been started")
        return ",".join(config.bootstrap for config in self._configs)

    @property
    def pid(self) -> int | None:
        """Process id of a broker that runs, the first node's where it does; None when none runs."""
        return next((node.pid for node in self.nodes if node.pid is not None), None)

    @property
    def log_file(self) -> Path:
        """Where the first broker writes its warnings."""
        return server_log(self._homes[0])

    async def start(self) -> str:
        """Start the brokers and return their bootstrap addresses once they answer clients.

        Raises:
            PortInUse: another program listens on the port.
            AlreadyRunning: another launcher uses the data folder.
            DataFolderUnusable: the data or the cache folder can't be written.
            JarUnavailable: a part of Kafka could not be fetched.
            BrokerFailed: a broker ended or did not answer; its last lines are in the message.
            LocalExtraMissing: the `local` extra is not installed.
        """
        if self.pid is not None:
            raise RuntimeError("the local Kafka runs already")
        await self.stop()
        self._make_folders()
        await self._lock.acquire(orphan_grace_seconds=_ORPHAN_SECONDS)
        try:
            self._configs = self._claim_ports()
            cache = JarCache(self._cache, fetcher=self._fetcher or _maven(), on_progress=self._on_progress)
            jars = await cache.ensure(JarLock.read(LOCK_FILE))
            lock = self._lock.fileno()
            self.nodes = [
                Node(home, config, jars=jars, lock=lock)
                for home, config in zip(self._homes, self._configs, strict=True)
            ]
            cluster_id = self._cluster_id()
            await _all(node.prepare(cluster_id) for node in self.nodes)
            if all(node.was_killed for node in self.nodes):
                await self._fence_the_killed_brokers()
            await _all(node.launch() for node in self.nodes)
        except BaseException:
            await self.stop()
            raise
        return self.bootstrap

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL if a broker takes longer than 15 s. Does nothing when none runs."""
        await asyncio.gather(*(node.stop() for node in self.nodes))
        self._lock.release()

    async def wait(self) -> int:
        """Wait until the first broker's process ends and return its exit code (128 + signal when one ended it)."""
        if not self.nodes:
            raise RuntimeError("the local Kafka does not run")
        return await self.nodes[0].wait()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def _make_folders(self) -> None:
        for home in self._homes:
            try:
                (home / "logs").mkdir(parents=True, exist_ok=True)
                (home / "data").mkdir(exist_ok=True)
            except OSError as error:
                raise DataFolderUnusable(home, error) from error

    def _claim_ports(self) -> list[BrokerConfig]:
        # A start after the brokers died keeps the addresses that clients know.
        asked = self._asked_port or (self._configs[0].port if self._configs else 0)
        first = claim_port(asked, setting=PORT_SETTING)
        count = len(self._homes)
        ports = [first, *(claim_port(first + number, setting=PORT_SETTING) for number in range(1, count))]
        controllers: list[int] = []
        for wanted in range(first + count, first + 2 * count):
            controllers.append(wanted if wanted <= 65535 and port_is_free(wanted) else free_ports())
        return [
            BrokerConfig(
                port=port,
                controller_port=controller,
                log_dir=home / "data",
                node_id=number,
                controllers=tuple(controllers),
            )
            for number, (port, controller, home) in enumerate(zip(ports, controllers, self._homes, strict=True), 1)
        ]

    def _cluster_id(self) -> str:
        """The id that nodes have been formatted with, or a new one."""
        for home in self._homes:
            meta = home / "data" / "meta.properties"
            if meta.exists():
                for line in meta.read_text().splitlines():
                    if line.startswith("cluster.id="):
                        return line.removeprefix("cluster.id=")
        return new_cluster_id()

    async def _fence_the_killed_brokers(self) -> None:
        """Let the cluster's metadata say that the brokers died, before they come back.

        The metadata of a killed broker still name it as the leader of its partitions. Kafka 4.3 then starts the
        transaction coordinator on that stale leadership; when the broker is registered anew all partitions lose their
        leader for a moment, and the coordinator takes a partition without a leader for a deleted one: a transaction
        whose commit was acknowledged just before the kill is marked complete without its marker, and `read_committed`
        readers wait at it for ever. A short run of the nodes as controllers alone, which find the brokers silent and
        take their leadership away, makes this start look like the one after a clean stop.
        """
        running = [node.run_controller_alone() for node in self.nodes]
        logs = [log for _, log in running]
        deadline = time.monotonic() + _FENCING_SECONDS
        # No such lines come if the last start was killed between this and its registration: hence no error.
        while not _fenced(logs, len(self.nodes)) and time.monotonic() < deadline:
            if all(controller.poll() is not None for controller, _ in running):
                break
            await asyncio.sleep(_RETRY_SECONDS)
        await asyncio.gather(*(controller.stop() for controller, _ in running))


def _fenced(logs: list[Path], nodes: int) -> bool:
    """Whether the controllers, one of whom decides and says so, have taken every broker for dead."""
    said = "".join(log.read_text(errors="replace") for log in logs if log.exists())
    return all(f"Fencing broker {node_id}" in said for node_id in range(1, nodes + 1))


async def _all(actions: Generator[Coroutine[None, None, None]]) -> None:
    """Runs all to their ends, then raises the first error: no node may be left half started."""
    outcomes = await asyncio.gather(*actions, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome


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
