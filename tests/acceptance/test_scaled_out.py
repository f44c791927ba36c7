"""More workers, fewer workers, killed workers: every prompt ends once and every step is metered once."""

import asyncio
import os
import re
import signal
from collections import Counter
from uuid import uuid4

import pytest

from tests.support.installation import Installation
from tests.support.waiting import until

pytestmark = [pytest.mark.broker, pytest.mark.asyncio(loop_scope="session")]

QUICK_DEATHS = {"TURNLOG_SESSION_TIMEOUT_MS": "3000"}


class Traffic:
    """Prompts with a tool call each, published one after the other until it is told to stop."""

    def __init__(self, turnlog: Installation) -> None:
        self._turnlog = turnlog
        self._stop = asyncio.Event()
        self.threads: list[str] = []

    async def run(self) -> None:
        while not self._stop.is_set():
            thread = f"t-{uuid4().hex}"
            await self._turnlog.prompt(thread, '[[think 0.1]][[tool calculate {"expression": "2 + 2"}]] go')
            self.threads.append(thread)
            await asyncio.sleep(0.01)

    def stop(self) -> None:
        self._stop.set()


async def assert_exactly_once(turnlog: Installation, threads: list[str]) -> None:
    await turnlog.log.wait_for("completions", lambda event: event["thread_id"] in threads, count=len(threads))
    completions = await turnlog.log.events("completions")
    assert Counter(each["thread_id"] for each in completions) == Counter(threads)
    assert {each["text"] for each in completions} == {"You said: go Result: 4"}
    usage = await turnlog.log.events("usage")
    steps = Counter(
        (each["thread_id"], each["step"]) for each in usage if each["outcome"] == "ok" and each["kind"] == "completion"
    )
    assert steps == Counter((thread, step) for thread in threads for step in (1, 2))
    assert all(not each["billable"] for each in usage if each["outcome"] == "lost")
    opened = Counter(
        each["thread_id"] for each in await turnlog.log.events("messages") if each["type"] == "turn.opened"
    )
    assert opened == Counter(threads)


def partitions_taken(output: str) -> list[int]:
    """Of a worker's log."""
    return [int(each) for each in re.findall(r"partition_taken.*?\bpartition=(\d+)", output)]


def worker_log(turnlog: Installation, number: int) -> str:
    file = turnlog.folder / "data" / "logs" / f"agents-{number}.log"
    return file.read_text() if file.exists() else ""


async def test_workers_join_and_leave_without_a_lost_or_doubled_turn(fresh: Installation) -> None:
    up = await fresh.up("--workers", "2")
    await until(
        lambda: bool(partitions_taken(worker_log(fresh, 1))) and bool(partitions_taken(worker_log(fresh, 2))),
        "both workers to have partitions",
    )
    traffic = Traffic(fresh)
    publishing = asyncio.create_task(traffic.run())

    third = await fresh.start("run", "agents")
    await until(lambda: bool(partitions_taken(third.output)), "the third worker to take a partition")
    seen = len(traffic.threads)
    await until(lambda: len(traffic.threads) > seen + 50, "it to have had some work")
    assert await third.interrupt() == 0, third.output
    seen = len(traffic.threads)
    await until(lambda: len(traffic.threads) > seen + 50, "the others to have had its work")
    traffic.stop()
    await publishing

    await assert_exactly_once(fresh, traffic.threads)
    assert await up.interrupt() == 0, up.output


async def test_a_killed_worker_loses_and_doubles_nothing(fresh: Installation) -> None:
    await fresh.up("--no-agents")
    workers = [await fresh.start("run", "agents", **QUICK_DEATHS) for _ in range(2)]
    await until(lambda: all(partitions_taken(each.output) for each in workers), "both workers to have partitions")
    traffic = Traffic(fresh)
    publishing = asyncio.create_task(traffic.run())
    await until(lambda: len(traffic.threads) > 100, "some traffic")

    os.kill(workers[0].process.pid, signal.SIGKILL)
    taken = len(partitions_taken(workers[1].output))
    await until(lambda: len(partitions_taken(workers[1].output)) > taken, "its partitions to be taken over")
    traffic.stop()
    await publishing

    await assert_exactly_once(fresh, traffic.threads)
