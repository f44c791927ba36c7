"""The installation under chaos: a broker of its own and each service as processes that are kept running."""

import asyncio
import contextlib
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from infra.local.kafka import LocalKafka
from tests.chaos.plan import MEMBERS, TENANTS, WORKER_SESSION_SECONDS
from tests.scripted_model.server import ScriptedModel
from tests.support.installation import Installation, Running, installation
from tests.support.waiting import eventually, until

RESTART_SECONDS = 0.3
"""Before a process that was killed at a failpoint is started again, as a supervisor does."""

BACK_OFF_SECONDS = 2.0
"""Before one that gave up by itself is: it found no Kafka, and starting costs a second of a core."""

READY_SECONDS = 180

STARTED = "service_started"
"""What a process says when it takes work."""

PARTITIONS = 4

AGENTS = """
name: assistant
tools: [note, wait, fail, pay]
retries: {max_attempts: 20, backoff_seconds: 0.05, max_backoff_seconds: 1}
stop: {max_seconds: 86400}
---
name: careful
tools: [note, wait, fail, pay]
approval: [pay]
retries: {max_attempts: 20, backoff_seconds: 0.05, max_backoff_seconds: 1}
stop: {max_seconds: 86400}
"""
"""They have time: no turn may end for another reason than its prompt gives, however far a slow machine falls behind."""


@dataclass
class Member:
    """One process of the installation: started again whenever it ends, until the cluster is closed."""

    name: str
    service: str
    cluster: "Cluster"
    armed: str = ""
    """`TURNLOG_FAILPOINTS` of the next start."""
    dead_seconds: float = 0
    """How long the next death lasts."""
    killed_by_us: bool = False
    running: Running | None = None
    failpoint: str = ""
    """What the running process is armed with."""
    lives: list[Running] = field(default_factory=list)

    @property
    def alive(self) -> bool:
        return self.running is not None and self.running.process.returncode is None and not self.killed_by_us

    @property
    def stopped(self) -> bool:
        """Whether it runs, and has got SIGSTOP, from whomever."""
        return self.running is not None and self.running.stopped

    async def keep(self) -> None:
        while True:
            self.failpoint, self.armed = self.armed, ""
            self.killed_by_us = False
            self.running = await self.cluster.turnlog.start("run", self.service, TURNLOG_FAILPOINTS=self.failpoint)
            self.lives.append(self.running)
            code = await self.running.process.wait()
            if code == -signal.SIGKILL and not self.killed_by_us:
                self.cluster.happened[f"{self.failpoint.partition('=')[0]} killed {self.service}"] += 1
            elif code != -signal.SIGKILL:
                self.cluster.happened[f"{self.service} ended with {code}"] += 1
                self.dead_seconds = BACK_OFF_SECONDS
            seconds, self.dead_seconds = self.dead_seconds or RESTART_SECONDS, 0
            await asyncio.sleep(seconds)

    def kill(self, *, dead_seconds: float, armed: str = "") -> None:
        """SIGKILL; what starts afterwards has the failpoint armed."""
        assert self.running is not None
        self.armed, self.dead_seconds = armed, dead_seconds
        with contextlib.suppress(ProcessLookupError):  # Its failpoint was faster, and nobody has heard of it yet.
            os.kill(self.running.process.pid, signal.SIGKILL)
            self.killed_by_us = True
            self.cluster.happened[f"kill {self.service}"] += 1


@dataclass
class Cluster:
    """Broker, model, processes, and a count of everything that befell them."""

    kafka: LocalKafka
    model: ScriptedModel
    turnlog: Installation
    folder: Path
    members: dict[str, Member] = field(default_factory=dict)
    happened: Counter[str] = field(default_factory=Counter)

    @property
    def executions(self) -> Path:
        """Where the tools write down what they do."""
        return Path(self.turnlog.environment["CHAOS_EXECUTIONS"])

    async def until_ready(self) -> None:
        """Returns when the gateway says that a prompt would be answered and every process runs."""

        async def ready() -> bool:
            if not all(member.alive and not member.stopped for member in self.members.values()):
                return False
            with contextlib.suppress(OSError):
                async with self.turnlog.http.get(self.turnlog.base_url + "/readyz") as answer:
                    return answer.status == 200
            return False

        await eventually(ready, "the whole installation to be ready", seconds=READY_SECONDS)

    def kill_broker(self) -> None:
        assert self.kafka.pid is not None
        os.kill(self.kafka.pid, signal.SIGKILL)
        self.happened["kill kafka"] += 1

    async def kill_model(self) -> None:
        self.happened["kill model"] += 1
        await self.model.die()

    async def start_broker(self) -> None:
        await until(lambda: self.kafka.pid is None, "the broker to be dead")
        await self.kafka.start()


@asynccontextmanager
async def cluster(folder: Path, model: ScriptedModel) -> AsyncIterator[Cluster]:
    """Starts everything and waits until it is ready; at the end nothing is left running."""
    async with (
        LocalKafka(data_dir=folder / "broker", port=0) as kafka,
        installation(folder, model_url=model.base_url, kafka=kafka.bootstrap, prefix="") as turnlog,
    ):
        turnlog.environment |= {
            "TURNLOG_TOPIC_PARTITIONS": str(PARTITIONS),
            "TURNLOG_SESSION_TIMEOUT_MS": str(round(WORKER_SESSION_SECONDS * 1000)),
            "TURNLOG_TOOLS_SESSION_TIMEOUT_MS": str(round(WORKER_SESSION_SECONDS * 1000)),
            "TURNLOG_TRUST_TENANT_HEADER": "true",
            "TURNLOG_TOOLS_MODULES": str(Path(__file__).with_name("chaos_tools.py")),
            "CHAOS_EXECUTIONS": str(folder / "executions.jsonl"),
        }
        agents = folder / "agents.yaml"
        agents.write_text(AGENTS)
        for command in (("topics", "apply"), ("agents", "apply", str(agents))):
            finished = await turnlog.run(*command)
            assert finished.code == 0, finished.output + finished.errors
        made = Cluster(kafka, model, turnlog, folder)
        made.members = {name: Member(name, service, made) for name, service in MEMBERS.items()}
        keeping = [asyncio.create_task(member.keep(), name=name) for name, member in made.members.items()]
        try:
            await made.until_ready()
            yield made
        finally:
            for task in keeping:
                task.cancel()
            await asyncio.gather(*keeping, return_exceptions=True)


def headers_of(tenant: str) -> dict[str, str]:
    """What the proxy before a gateway says of who asks."""
    assert tenant in TENANTS
    return {"X-Tenant-Id": tenant}
