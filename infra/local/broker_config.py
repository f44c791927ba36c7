"""The configuration files of the local brokers, rendered from a few facts. Pure: no files, no processes.

The settings are those of Kafka 4.3 (https://kafka.apache.org/43/configuration/broker-configs/); each that differs from
Kafka's default says why.
"""

from __future__ import annotations

import uuid
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_FENCING_SESSION_MILLISECONDS = 300
MESSAGE_MAX_BYTES = 8 * 1024 * 1024
_FOREVER_MINUTES = 2**31 - 1


@dataclass(frozen=True)
class BrokerConfig:
    """What `server.properties` depends on. Folders are absolute."""

    port: int
    controller_port: int
    log_dir: Path
    node_id: int = 1
    controllers: tuple[int, ...] = ()
    """Controller ports of all nodes, that of node 1 first; none: this is the only node."""

    @property
    def replicas(self) -> int:
        """Every node holds a copy of everything."""
        return max(1, len(self.controllers))

    @property
    def insync(self) -> int:
        """Copies that an acknowledged write has at least: the cluster goes on without the others."""
        return self.replicas // 2 + 1

    @property
    def voters(self) -> str:
        """The static voter list: with it a controller's port may be another one at the next start."""
        ports = self.controllers or (self.controller_port,)
        return ",".join(f"{number}@127.0.0.1:{port}" for number, port in enumerate(ports, 1))

    @property
    def bootstrap(self) -> str:
        """The address for clients."""
        return f"127.0.0.1:{self.port}"

    def server_properties(self) -> str:
        """The text of `server.properties` for a node that is broker and controller, on the loopback address only."""
        settings: dict[str, str | int] = {
            "process.roles": "broker,controller",
            "node.id": self.node_id,
            "controller.quorum.voters": self.voters,
            "listeners": f"PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{self.controller_port}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self.port}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": _escaped(self.log_dir),
            # Topics are declared in one place; a misspelt name must not make a new one.
            "auto.create.topics.enable": "false",
            "delete.topic.enable": "true",
            "num.partitions": 4,
            "default.replication.factor": self.replicas,
            "min.insync.replicas": self.insync,
            "offsets.topic.replication.factor": self.replicas,
            "transaction.state.log.replication.factor": self.replicas,
            "transaction.state.log.min.isr": self.insync,
            "share.coordinator.state.topic.replication.factor": self.replicas,
            "share.coordinator.state.topic.min.isr": self.insync,
            # 50 partitions each by default, all made at the first use.
            "offsets.topic.num.partitions": 4,
            "transaction.state.log.num.partitions": 4,
            "share.coordinator.state.topic.num.partitions": 4,
            # Kafka forgets a group's offsets a week after its last member left, and a log is kept for ever here:
            # a machine that was off for a fortnight must go on where it was.
            "offsets.retention.minutes": _FOREVER_MINUTES,
            # Topics without a retention of their own are kept; a week by default.
            "log.retention.ms": -1,
            # A group of one worker is ready at once; 3 s by default.
            "group.initial.rebalance.delay.ms": 0,
            # Lets a test or a worker be found dead sooner than after 6 s. Other clusters refuse that.
            "group.min.session.timeout.ms": 1000,
            "message.max.bytes": MESSAGE_MAX_BYTES,
            "replica.fetch.max.bytes": MESSAGE_MAX_BYTES,
            # Small: a heap of a few hundred MB, two cores, and tests that make hundreds of partitions.
            "num.network.threads": 2,
            "num.io.threads": 4,
            "background.threads": 2,
            "num.recovery.threads.per.data.dir": 2,
            "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,  # allocated at the start, 128 MiB by default
            "log.segment.bytes": 256 * 1024 * 1024,
            "log.index.size.max.bytes": 1024 * 1024,  # two indexes a partition, mapped at full size
            # Looked for every 5 minutes and 10 s by default: compaction and expired transactions show sooner.
            "log.retention.check.interval.ms": 60_000,
        }
        return _rendered(settings)

    def fencing_properties(self) -> str:
        """The configuration of the same node as a controller alone, which soon takes the broker for dead."""
        return _rendered(
            {
                "process.roles": "controller",
                "node.id": self.node_id,
                "controller.quorum.voters": self.voters,
                "listeners": f"CONTROLLER://127.0.0.1:{self.controller_port}",
                "listener.security.protocol.map": "CONTROLLER:PLAINTEXT",
                "controller.listener.names": "CONTROLLER",
                "log.dirs": _escaped(self.log_dir),
                "broker.session.timeout.ms": _FENCING_SESSION_MILLISECONDS,
                "broker.heartbeat.interval.ms": _FENCING_SESSION_MILLISECONDS // 3,
            }
        )


def log4j_properties(log: Path) -> str:
    """The text of a `log4j2.properties`: warnings, and what the controller decides, to `log` and three older files."""
    return f"""\
status = error
name = turnlog-local-kafka
appender.file.type = RollingFile
appender.file.name = file
appender.file.fileName = {_escaped(log)}
appender.file.filePattern = {_escaped(log.with_suffix(".%i.log"))}
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d{{ISO8601}} %p %c: %m%n
appender.file.policies.type = Policies
appender.file.policies.size.type = SizeBasedTriggeringPolicy
appender.file.policies.size.size = 8MB
appender.file.strategy.type = DefaultRolloverStrategy
appender.file.strategy.max = 3
rootLogger.level = warn
rootLogger.appenderRef.file.ref = file
logger.server.name = kafka.server.KafkaRaftServer
logger.server.level = info
logger.fencing.name = org.apache.kafka.controller
logger.fencing.level = info
"""


def new_cluster_id() -> str:
    """A random cluster id as Kafka writes them: 16 bytes in URL-safe base64 without padding, 22 characters.

    Kafka's storage tool reads an id that begins with `-` as an option, so such a one is drawn again.
    """
    while True:
        candidate = urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        if not candidate.startswith("-"):
            return candidate


def _rendered(settings: Mapping[str, str | int]) -> str:
    return "".join(f"{name}={value}\n" for name, value in settings.items())


def _escaped(path: Path) -> str:
    """A path as Java's properties files write it, where a backslash escapes."""
    return str(path).replace("\\", "\\\\")
