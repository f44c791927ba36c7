"""One node of the local Kafka: its files and its process."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from infra.local.broker_config import BrokerConfig, log4j_properties
from infra.local.errors import BrokerFailed, DataFolderUnusable
from infra.local.java import java_command
from infra.local.process import GuardedProcess, child_environment, port_is_free, tail_of

STOP_SECONDS = 15.0  # Kafka needs about one to close its logs
_START_SECONDS = 60.0  # 2 s on an idle machine; recovery after a kill reads the last segments
_FORMAT_SECONDS = 60.0
_ANSWER_MILLISECONDS = 2_000  # for one attempt to reach the broker while it starts
_RETRY_SECONDS = 0.05


class Node:
    """A broker and controller with a folder of its own. `lock` is the launcher's, held on by whatever runs here."""

    def __init__(self, home: Path, config: BrokerConfig, *, jars: list[Path], lock: int) -> None:
        self.config = config
        self._home = home
        self._jars = jars
        self._lock = lock
        self._process: GuardedProcess | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the broker while it runs, else None."""
        return self._process.pid if self._process is not None else None

    @property
    def was_killed(self) -> bool:
        """Whether a broker ran on this data and did not close it: Kafka leaves a file when it does."""
        data = self.config.log_dir
        return (data / "__cluster_metadata-0").exists() and not (data / ".kafka_cleanshutdown").exists()

    async def prepare(self, cluster_id: str) -> None:
        """Writes the node's files, and the cluster's id into an empty data folder."""
        try:
            self._properties.write_text(self.config.server_properties())
            self._log4j.write_text(log4j_properties(server_log(self._home)))
        except OSError as error:
            raise DataFolderUnusable(self._home, error) from error
        if not (self.config.log_dir / "meta.properties").exists():  # Kafka's tool refuses a folder that has one
            await self._format(cluster_id)

    async def launch(self) -> None:
        """Starts the broker and returns once it answers clients. Raises BrokerFailed."""
        process = self._process = self._run("kafka.Kafka", str(self._properties), out="console.log")
        log = server_log(self._home)
        deadline = time.monotonic() + _START_SECONDS
        while not await _answers(self.config):
            code = process.poll()
            if code is None and time.monotonic() < deadline:
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            what = f"it ended with code {code}" if code is not None else f"it did not answer in {_START_SECONDS:.0f} s"
            raise BrokerFailed(what, log=log, tail=process.tail() or tail_of(log))

    def run_controller_alone(self) -> tuple[GuardedProcess, Path]:
        """The node without its broker, which its cluster soon takes for dead; the log that will say so."""
        log = self._home / "logs" / "fencing.log"
        properties, log4j = self._home / "fencing.properties", self._home / "fencing-log4j2.properties"
        log.unlink(missing_ok=True)
        properties.write_text(self.config.fencing_properties())
        log4j.write_text(log4j_properties(log))
        return self._run("kafka.Kafka", str(properties), out="fencing-console.log", log4j=log4j), log

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL if the broker takes longer than 15 s. Does nothing when it does not run."""
        if self._process is not None:
            process, self._process = self._process, None
            await process.stop()

    async def wait(self) -> int:
        """Waits until the broker's process ends; its exit code (128 + signal when a signal ended it)."""
        if self._process is None:
            raise RuntimeError("the local Kafka does not run")
        return await self._process.wait()

    @property
    def _properties(self) -> Path:
        return self._home / "server.properties"

    @property
    def _log4j(self) -> Path:
        return self._home / "log4j2.properties"

    async def _format(self, cluster_id: str) -> None:
        arguments = ("format", "-t", cluster_id, "-c", str(self._properties), "--ignore-formatted")
        formatting = self._run("kafka.tools.StorageTool", *arguments, out="format.log")
        try:
            code = await asyncio.wait_for(formatting.wait(), _FORMAT_SECONDS)
        except TimeoutError:
            code = None
        tail = formatting.tail()
        await formatting.stop()
        if code != 0:
            what = "formatting its folder took too long" if code is None else f"formatting its folder ended with {code}"
            raise BrokerFailed(what, log=self._home / "logs" / "format.log", tail=tail)

    def _run(self, main_class: str, *arguments: str, out: str, log4j: Path | None = None) -> GuardedProcess:
        log = self._home / "logs" / out
        log.write_bytes(b"")
        process = GuardedProcess(
            java_command(
                main_class,
                *arguments,
                jars=self._jars,
                options=(f"-Dlog4j2.configurationFile={(log4j or self._log4j).as_uri()}",),
            ),
            log=log,
            grace_seconds=STOP_SECONDS,
            # glibc keeps an arena a thread otherwise, tens of MB for a broker.
            env=child_environment(MALLOC_ARENA_MAX="2"),
            keep_fds=(self._lock,),
        )
        process.spawn()
        return process


def server_log(home: Path) -> Path:
    """Where the broker of a folder writes its warnings."""
    return home / "logs" / "server.log"


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
