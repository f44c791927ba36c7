"""Prompts that keep coming while something breaks, and what must hold of them afterwards."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

from tests.support.installation import Installation
from tests.support.waiting import until


class Traffic:
    """Prompts with a tool call each, published one after the other until it is told to stop."""

    def __init__(self, turnlog: Installation) -> None:
        self._turnlog = turnlog
        self._stop = asyncio.Event()
        self.threads: list[str] = []

    async def run(self) -> None:
        while not self._stop.is_set():
            thread = f"t-{uuid4().hex}"
            self.threads.append(thread)
            await self._turnlog.prompt(
                thread, '[[think 0.1]][[tool calculate {"expression": "2 + 2"}]] go', prompt_id="once"
            )
            await asyncio.sleep(0.01)

    def stop(self) -> None:
        self._stop.set()

    async def goes_on(self, *, prompts: int = 50) -> None:
        """Returns when as many more have been published."""
        seen = len(self.threads)
        await until(lambda: len(self.threads) >= seen + prompts, f"{prompts} more prompts", seconds=90)


@asynccontextmanager
async def traffic(turnlog: Installation) -> AsyncIterator[Traffic]:
    """Traffic until the block ends; then every turn of it has ended exactly once."""
    made = Traffic(turnlog)
    publishing = asyncio.create_task(made.run())
    try:
        yield made
        made.stop()
        await publishing
        await assert_exactly_once(turnlog, made.threads)
    finally:
        publishing.cancel()
        await asyncio.gather(publishing, return_exceptions=True)


async def assert_exactly_once(turnlog: Installation, threads: list[str]) -> None:
    """Each thread had one turn of two steps and one tool call: told once, stored once, metered once."""
    known = set(threads)
    await turnlog.log.wait_for("completions", lambda event: event["thread_id"] in known, count=len(threads))
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
