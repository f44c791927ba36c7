"""Workers of counting actors on a broker, in this process or as one that may be killed; and what came of the inputs."""

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from schemas.topics import MESSAGES, PROMPTS, TOOL_RESULTS
from services.runtime.failpoints import Failpoints
from services.runtime.kafka import KafkaClients, KafkaError, TopicPartition
from services.runtime.owner.clock import Clock
from services.runtime.owner.partition import PartitionOwner
from services.runtime.owner.takeover import take_partition
from services.runtime.owner.worker import OwnerWorker
from services.runtime.topics import apply_topics
from tests.conftest import ROOT
from tests.support.counting_actor import GROUP, CountingActor, CountingSettings, counting_worker
from tests.support.log import Event, Log
from tests.support.waiting import eventually, until


@dataclass
class Child:
    """A worker in a process of its own."""

    process: asyncio.subprocess.Process
    output: Path

    async def died(self, seconds: float = 20) -> int:
        """Waits for its end; the exit code, negative for a signal."""
        return await asyncio.wait_for(self.process.wait(), seconds)

    async def stopped(self) -> None:
        """Waits until a failpoint or a signal has stopped it."""
        stat = Path(f"/proc/{self.process.pid}/stat")
        await until(
            lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", f"a stop; it says {self.output.read_text()}"
        )

    async def says(self, words: str, times: int = 1) -> None:
        await until(lambda: self.output.read_text().count(words) >= times, f"{words!r} in {self.output}")

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def end(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


class Unasked:
    """Inputs of an owner whose timers wait for nothing."""

    async def ends(self, partition: int) -> dict[str, int]:
        return {}

    async def positions(self, partition: int) -> dict[str, int | None]:
        return {}


@dataclass
class Counting:
    """Topics of one test, with the inputs that were given."""

    settings: CountingSettings
    log: Log
    folder: Path
    clients: KafkaClients
    given: list[tuple[str, str, str]] = field(default_factory=list)
    """Thread, id and command of every input."""
    children: list[Child] = field(default_factory=list)

    @property
    def group(self) -> str:
        return f"{self.settings.topic_prefix}{GROUP}"

    async def give(self, thread: str, command: str = "count") -> str:
        """Publishes a prompt; returns its id."""
        prompt_id = f"{thread}/{len(self.given)}"
        self.given.append((thread, prompt_id, command))
        prompt = {"thread_id": thread, "prompt_id": prompt_id, "agent": "counter", "content": command}
        await self.log.publish(PROMPTS.name, prompt)
        return prompt_id

    async def tell(self, thread: str) -> str:
        """Publishes a tool result; returns its id."""
        call_id = f"{thread}/{len(self.given)}"
        self.given.append((thread, call_id, "tell"))
        await self.log.publish(TOOL_RESULTS.name, {"thread_id": thread, "call_id": call_id, "result": 1})
        return call_id

    def worker(self, actor: CountingActor | None = None, **settings: Any) -> OwnerWorker[Any]:
        return counting_worker(self.settings.model_copy(update=settings), actor or CountingActor())

    @asynccontextmanager
    async def working(self, actor: CountingActor | None = None, **settings: Any) -> AsyncIterator[OwnerWorker[Any]]:
        """A worker in this process that has its partitions; let go without grace."""
        worker = self.worker(actor, **settings)
        await worker.start()
        try:
            await until(lambda: worker.health().ready, "partitions")
            yield worker
        finally:
            await worker.stop(grace_seconds=0)

    @asynccontextmanager
    async def owning(self) -> AsyncIterator[asyncio.Task[None]]:
        """An owner of partition 0 that no group knows, as one is that was taken for dead; gives its run."""
        failpoints = Failpoints()
        taken = await take_partition(
            0, group_id=self.group, clients=self.clients, settings=self.settings, failpoints=failpoints
        )
        owner = PartitionOwner(
            taken,
            inputs=Unasked(),
            actor=CountingActor(),
            group_id=self.group,
            clients=self.clients,
            settings=self.settings,
            failpoints=failpoints,
            clock=Clock(),
        )
        running = asyncio.create_task(owner.run())
        feeding = asyncio.create_task(self._feed(owner))
        try:
            yield running
        finally:
            feeding.cancel()
            running.cancel()
            for each in await asyncio.gather(feeding, running, return_exceptions=True):
                if isinstance(each, Exception) and not isinstance(each, KafkaError):
                    raise each

    async def _feed(self, owner: PartitionOwner[Any]) -> None:
        prompts = TopicPartition(self.settings.topic(PROMPTS.name), 0)
        async with self.clients.consumer() as consumer:
            consumer.assign([prompts])
            consumer.seek(prompts, owner.next_offsets[PROMPTS.name])
            while True:
                for records in (await consumer.getmany(timeout_ms=100)).values():
                    owner.feed(PROMPTS.name, records)

    async def child(self, failpoints: str = "", **settings: Any) -> Child:
        """A worker as a process of its own. It has a fixed place in the group, so that the next one need not wait."""
        chosen = self.settings.model_dump(exclude_none=True) | {"instance_id": "child", "failpoints": failpoints}
        chosen |= settings
        environment = {f"TURNLOG_{name.upper()}": str(value) for name, value in chosen.items() if value is not None}
        output = self.folder / f"child-{len(self.children)}.txt"
        with output.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.support.counting_actor"),
                cwd=ROOT,
                env=os.environ | environment,
                stdout=file,
                stderr=file,
            )
        self.children.append(Child(process, output))
        return self.children[-1]

    async def numbers(self) -> list[Event]:
        """The journal: what is committed by now."""
        return await self.log.events(MESSAGES.name)

    async def until_counted(self, text: str, count: int, *, seconds: float = 30) -> list[Event]:
        """Waits for so many messages of a text."""
        return await self.log.wait_for(
            MESSAGES.name, lambda event: text_of(event) == text, count=count, seconds=seconds
        )

    async def until_counted_or_dead(self, child: Child, count: int) -> None:
        """Waits for so many numbers, or for a worker's end."""

        async def there() -> bool:
            return child.process.returncode is not None or len(await self.numbers()) >= count

        await eventually(there, f"{count} numbers, or a death")

    async def until_done(self, *, seconds: float = 30) -> None:
        """Waits until every input has its effects. Twice one effect, or a number left out, fails the test."""
        wanted = Counter(effect for given in self.given for effect in _effects(*given))

        async def all_there() -> bool:
            return sum(1 for event in await self.numbers() if effect_of(event) in wanted) >= wanted.total()

        await eventually(all_there, f"{wanted.total()} effects", seconds=seconds)
        assert Counter(effect_of(event) for event in await self.numbers()) == wanted
        assert_numbered(await self.numbers())

    async def committed(self, partition: int = 0) -> int:
        """The offset that the group has committed on `prompts`; 0 when there is none."""
        consumer = self.clients.consumer(group_id=self.group)
        await consumer.start()
        try:
            return await consumer.committed(TopicPartition(self.settings.topic(PROMPTS.name), partition)) or 0
        finally:
            await consumer.stop()


def text_of(event: Event) -> str:
    return event["parts"][0]["text"]


def effect_of(event: Event) -> tuple[str, str]:
    """What happened, and the input that it happened for."""
    return text_of(event), event["metadata"]["of"]


def assert_numbered(events: Iterable[Event]) -> None:
    """A thread's numbers follow each other without gap or repetition, from one again after its end."""
    expected: Counter[str] = Counter()
    for event in events:
        thread = event["thread_id"]
        expected[thread] += 1
        assert event["step"] == expected[thread], f"{thread}: expected {expected[thread]}, found {event}"
        if text_of(event) == "ended":
            expected[thread] = 0


def _effects(thread: str, of: str, command: str) -> list[tuple[str, str]]:
    verb, _, argument = command.partition(":")
    if verb in ("tell", "end"):
        return [("told" if verb == "tell" else "ended", of)]
    counted = ("counted", of)
    match verb:
        case "count":
            return [counted]
        case "ring":
            return [counted, ("rang", of)]
        case _:
            spins = int(argument) if verb == "spin" else 1
            return [counted, *(("spun", f"{of} {left}") for left in range(spins, 1, -1)), ("answered", of)]


@asynccontextmanager
async def counting(kafka: str, prefix: str, folder: Path, *, partitions: int = 1) -> AsyncIterator[Counting]:
    settings = CountingSettings(
        kafka_bootstrap=kafka,
        topic_prefix=prefix,
        topic_partitions=partitions,
        topic_replication=1,
        data_dir=folder,
    )
    clients = KafkaClients(settings, client_id="test")
    await apply_topics(clients, settings)
    async with Log(kafka, prefix=prefix) as log:
        bench = Counting(settings, log, folder, clients)
        try:
            yield bench
        finally:
            for child in bench.children:
                await child.end()
