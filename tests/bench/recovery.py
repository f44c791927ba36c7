"""How long a partition has no owner: restoring one with a long past, the death of a worker, a rolling restart."""

import asyncio
import os
import re
import signal
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

from aiokafka import AIOKafkaConsumer, TopicPartition

from infra.local.kafka import LocalKafka
from schemas.topics import TURNS
from services.runtime.failpoints import Failpoints
from services.runtime.kafka import KafkaClients
from services.runtime.owner.takeover import take_partition
from services.runtime.settings import RuntimeSettings
from services.runtime.topics import apply_topics
from tests.bench.bench_installation import scripted_model
from tests.bench.report import Figure
from tests.bench.state_topic import write_past
from tests.support.installation import Installation, Running, installation
from tests.support.waiting import until

PAST, OPEN = 1_000_000, 1_000

TAKEOVERS = 5

IN_FLIGHT = 200

AWAY_SECONDS = 60

SETTLING_SECONDS = 3
"""What a late rebalance moves counts too."""


async def measure() -> list[Figure]:
    return [*await _restore(), *await _death(), *await _rolling_restart(), *await _broker_away()]


async def _restore() -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="turnlog-bench-") as name:
        async with LocalKafka(data_dir=Path(name), port=0) as broker:
            settings = RuntimeSettings(kafka_bootstrap=broker.bootstrap, topic_partitions=1, topic_replication=1)
            clients = KafkaClients(settings, client_id="bench")
            await apply_topics(clients, settings)
            began = time.monotonic()
            await write_past(broker.bootstrap, "owners", past=PAST, still_open=OPEN)
            figures = [Figure("writing the past", time.monotonic() - began, "s")]
            took = sorted([await _take(clients, settings, "owners") for _ in range(TAKEOVERS)])
            figures += [
                Figure("records on the state topic, as the cleaner has left them", await _left(broker.bootstrap), ""),
                Figure(f"restore {OPEN:,} open turns of {PAST:,}: median", took[TAKEOVERS // 2], "s"),
                Figure(f"restore {OPEN:,} open turns of {PAST:,}: worst", took[-1], "s"),
                Figure("the same from the beginning of the topic", await _take(clients, settings, "newcomers"), "s"),
            ]
    return figures


async def _take(clients: KafkaClients, settings: RuntimeSettings, group: str) -> float:
    began = time.monotonic()
    taken = await take_partition(0, group_id=group, clients=clients, settings=settings, failpoints=Failpoints())
    seconds = time.monotonic() - began
    await taken.producer.stop()
    assert len(taken.states) == OPEN, f"{len(taken.states)} open turns"
    return seconds


async def _left(bootstrap: str) -> int:
    turns = TopicPartition(TURNS.name, 0)
    count = 0
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap, isolation_level="read_committed") as consumer:
        consumer.assign([turns])
        await consumer.seek_to_beginning(turns)
        end = (await consumer.end_offsets([turns]))[turns]
        while await consumer.position(turns) < end:
            count += sum(map(len, (await consumer.getmany(timeout_ms=100)).values()))
    return count


async def _death() -> list[Figure]:
    """Two workers with turns whose models think; one is killed."""
    async with _without_agents(partitions=4) as (turnlog, _):
        workers = [await turnlog.start("run", "agents") for _ in range(2)]
        await until(lambda: all(len(_assigned(each)) == 2 for each in workers), "both to have a half", seconds=60)
        threads = [f"t-{uuid4().hex}" for _ in range(IN_FLIGHT)]
        await asyncio.gather(*(turnlog.prompt(each, "[[think 60]] go") for each in threads))
        await turnlog.log.wait_for("messages", lambda event: event["type"] == "turn.opened", count=IN_FLIGHT)
        dead, heir = workers
        lost = _assigned(dead)
        orphans = [
            each
            for each in await turnlog.log.events("messages")
            if each["type"] == "turn.opened" and each["position"][0] in lost
        ]
        os.kill(dead.process.pid, signal.SIGKILL)
        killed = time.monotonic()
        await turnlog.log.wait_for("usage", lambda event: event["outcome"] == "lost", count=len(orphans))
        went_on = time.monotonic() - killed
        assert lost <= set(_taken(heir))
    return [
        Figure("open turns of a killed worker", len(orphans), ""),
        Figure("until all of them are asked again elsewhere (session time-out 10 s)", went_on, "s"),
    ]


async def _broker_away() -> list[Figure]:
    """The broker stands still for a minute, with turns in every phase: longer than every time-out but the deadline."""
    async with _without_agents(partitions=4) as (turnlog, broker):
        worker = await turnlog.start("run", "agents")
        await until(lambda: len(_taken(worker)) == 4, "the worker to have all partitions", seconds=60)
        threads = [f"t-{uuid4().hex}" for _ in range(IN_FLIGHT)]
        prompt = '[[think 1]][[tool calculate {"expression": "2 + 2"}]] go'
        await asyncio.gather(*(turnlog.prompt(each, prompt, prompt_id="once") for each in threads))
        await turnlog.log.wait_for("messages", lambda event: event["type"] == "turn.opened", count=IN_FLIGHT // 2)
        assert broker.pid is not None
        os.kill(broker.pid, signal.SIGSTOP)
        await asyncio.sleep(AWAY_SECONDS)
        os.kill(broker.pid, signal.SIGCONT)
        back = time.monotonic()
        await turnlog.log.wait_for("completions", lambda event: True, count=IN_FLIGHT)
        over = time.monotonic() - back
        completions = await turnlog.log.events("completions")
    assert Counter(each["thread_id"] for each in completions) == Counter(threads)
    assert {each["type"] for each in completions} == {"turn.completed"}
    late = sum("timeout" in each["text"] for each in completions)
    return [
        Figure(f"broker away for {AWAY_SECONDS} s: until all {IN_FLIGHT} open turns are over, once each", over, "s"),
        Figure("of these with a tool call whose time ran out meanwhile", late, ""),
    ]


async def _rolling_restart() -> list[Figure]:
    return [
        Figure("partitions taken in a rolling restart of 3 workers with 12, without names", await _restarts(False), ""),
        Figure("the same with TURNLOG_INSTANCE_ID: each takes its own again", await _restarts(True), ""),
    ]


async def _restarts(named: bool) -> int:
    async with _without_agents(partitions=12) as (turnlog, _):

        async def worker(number: int) -> Running:
            name = {"TURNLOG_INSTANCE_ID": f"worker-{number}"} if named else {}
            return await turnlog.start("run", "agents", **name)

        running = {number: await worker(number) for number in range(3)}
        await until(lambda: all(map(_taken, running.values())), "all to have partitions", seconds=60)
        await asyncio.sleep(SETTLING_SECONDS)
        everyone = [*running.values()]
        before = sum(len(_taken(each)) for each in everyone)
        for number in range(3):
            await running[number].interrupt()
            running[number] = await worker(number)
            everyone.append(running[number])
            await until(lambda: bool(_taken(everyone[-1])), "it to have partitions", seconds=60)
            await asyncio.sleep(SETTLING_SECONDS)
        return sum(len(_taken(each)) for each in everyone) - before


def _taken(worker: Running) -> list[int]:
    return [int(each) for each in re.findall(r"partition_taken.*?\bpartition=(\d+)", worker.output)]


def _assigned(worker: Running) -> set[int]:
    """What the group has given it last."""
    lists = re.findall(r"partitions_assigned.*?\bpartitions=\[(.*?)\]", worker.output)
    return {int(each) for each in lists[-1].split(",")} if lists and lists[-1] else set()


@asynccontextmanager
async def _without_agents(*, partitions: int) -> AsyncIterator[tuple[Installation, LocalKafka]]:
    """Everything but agents, on a broker of its own."""
    with tempfile.TemporaryDirectory(prefix="turnlog-bench-") as name:
        folder = Path(name)
        async with (
            LocalKafka(data_dir=folder / "kafka", port=0) as broker,
            scripted_model() as url,
            installation(folder, model_url=url, kafka=broker.bootstrap, prefix="") as turnlog,
        ):
            turnlog.environment["TURNLOG_TOPIC_PARTITIONS"] = str(partitions)
            await turnlog.up("--no-agents")
            yield turnlog, broker
