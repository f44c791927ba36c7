"""One worker with too much to do: prompts of a megabyte, ten thousand for one thread, thousands of slow models."""

import asyncio
import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from uuid import uuid4

import aiohttp

from infra.local.kafka import LocalKafka
from tests.bench.bench_installation import resident_megabytes, scripted_model
from tests.bench.report import Figure
from tests.bench.turns import percentile
from tests.support.installation import Installation, Running, free_ports, installation

MEGABYTE = 1_048_576

QUEUED, DRAINED = 10_000, 500

SLOW = {5_000: 30, 10_000: 5}
"""Turns that begin at once, and the seconds that the model thinks about each."""


async def measure() -> list[Figure]:
    figures: list[Figure] = []
    in_flight = [partial(_many_in_flight, count, seconds) for count, seconds in SLOW.items()]
    for scenario in (_large_prompts, _long_queue, *in_flight):
        async with _one_worker() as (turnlog, worker, health):
            figures += await scenario(turnlog, worker, health)
    return figures


async def _large_prompts(turnlog: Installation, worker: Running, health: str) -> list[Figure]:
    """Ten prompts of 1 MiB in one thread: the last model request has all of them."""
    thread = f"t-{uuid4().hex}"
    began = time.monotonic()
    for number in range(1, 11):
        await turnlog.prompt(thread, filled(thread))
        await turnlog.completion(thread, count=number)
    memory = await resident_megabytes(worker.process.pid)
    return [
        Figure("10 turns of a thread with prompts of 1 MiB, the last asks with 10 MiB", time.monotonic() - began, "s"),
        Figure("resident after it: worker", sum(memory.values()), "MB"),
    ]


async def _long_queue(turnlog: Installation, worker: Running, health: str) -> list[Figure]:
    thread = f"t-{uuid4().hex}"
    began = time.monotonic()
    async with responsiveness(health) as delays:
        await asyncio.gather(*(turnlog.prompt(thread, "[[say ok]]") for _ in range(QUEUED)))
        published = time.monotonic() - began
        await turnlog.completion(thread, count=DRAINED, seconds=120)
        drained = time.monotonic() - began - published
        memory = await resident_megabytes(worker.process.pid)
        await turnlog.log.publish("prompts", {"type": "turn.cancel", "thread_id": thread})
        cancelling = time.monotonic()
        await turnlog.completion(thread, count=QUEUED, seconds=60)
        cancelled = time.monotonic() - cancelling
    endings = Counter(each["turn_id"] for each in await turnlog.log.events("completions"))
    assert set(endings.values()) == {1}
    assert len(endings) == QUEUED
    return [
        Figure(f"{QUEUED:,} prompts on one thread: published", published, "s"),
        Figure(f"the first {DRAINED:,} turns, one after the other", DRAINED / drained, "/s"),
        Figure("all others cancelled at once, each told once", cancelled, "s"),
        *_delays(delays),
        Figure("resident with the queue: worker", sum(memory.values()), "MB"),
    ]


async def _many_in_flight(
    count: int, think_seconds: int, turnlog: Installation, worker: Running, health: str
) -> list[Figure]:
    """How far the worker is behind shows in what it takes to open all of them."""
    began = time.monotonic()
    prompt = f"[[think {think_seconds}]]"
    async with responsiveness(health) as delays, most_in_flight(health) as in_flight:
        await asyncio.gather(*(turnlog.prompt(f"t-{uuid4().hex}", prompt) for _ in range(count)))
        published = time.monotonic() - began
        await turnlog.log.wait_for("messages", lambda event: event["type"] == "turn.opened", count=count, seconds=300)
        opened = time.monotonic() - began
        memory = await resident_megabytes(worker.process.pid)
        await turnlog.log.wait_for("completions", lambda event: True, count=count, seconds=300)
        over = time.monotonic() - began
    completions = await turnlog.log.events("completions")
    attempts = await turnlog.log.events("usage")
    assert {each["type"] for each in completions} == {"turn.completed"}
    return [
        Figure(f"{count:,} turns whose model takes {think_seconds} s: all published", published, "s"),
        Figure("all opened", opened, "s"),
        Figure("all over", over, "s"),
        Figure("in flight at once, most", max(in_flight), ""),
        Figure("attempts that failed", sum(each["outcome"] != "ok" for each in attempts), ""),
        *_delays(delays),
        Figure("resident when the last is opened: worker", sum(memory.values()), "MB"),
    ]


def filled(thread: str, *, size: int = MEGABYTE) -> str:
    """A content that makes the record of its prompt exactly so many bytes."""
    event = {"thread_id": thread, "agent": "assistant", "content": "[[say ok]]"}
    return "[[say ok]]" + "x" * (size - len(json.dumps(event)))


@asynccontextmanager
async def responsiveness(health: str) -> AsyncIterator[list[float]]:
    """Seconds that the worker took to answer `/healthz`, asked ten times a second: how busy its event loop is."""
    delays: list[float] = []

    async def ask() -> None:
        async with aiohttp.ClientSession() as http:
            while True:
                began = time.monotonic()
                async with http.get(health) as response:
                    await response.read()
                delays.append(time.monotonic() - began)
                await asyncio.sleep(0.1)

    asking = asyncio.create_task(ask())
    try:
        yield delays
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


@asynccontextmanager
async def most_in_flight(health: str) -> AsyncIterator[list[float]]:
    """The worker's turns in flight, as it says itself, once a second."""
    seen = [0.0]

    async def ask() -> None:
        async with aiohttp.ClientSession() as http:
            while True:
                async with http.get(health.replace("/healthz", "/metrics")) as response:
                    text = await response.text()
                if found := re.search(r"^turnlog_turns_in_flight (\S+)", text, re.MULTILINE):
                    seen.append(float(found[1]))
                await asyncio.sleep(1)

    asking = asyncio.create_task(ask())
    try:
        yield seen
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


def _delays(delays: Sequence[float]) -> list[Figure]:
    ordered = sorted(delays)
    return [
        Figure("worker answers /healthz, p50", percentile(ordered, 50) * 1000, "ms"),
        Figure("worker answers /healthz, p99", percentile(ordered, 99) * 1000, "ms"),
        Figure("worker answers /healthz, worst", ordered[-1] * 1000, "ms"),
    ]


@asynccontextmanager
async def _one_worker() -> AsyncIterator[tuple[Installation, Running, str]]:
    """Everything on a broker of its own, one worker, and the address of the worker's health."""
    with tempfile.TemporaryDirectory(prefix="turnlog-bench-") as name:
        folder = Path(name)
        async with (
            LocalKafka(data_dir=folder / "kafka", port=0) as broker,
            scripted_model() as url,
            installation(folder, model_url=url, kafka=broker.bootstrap, prefix="") as turnlog,
        ):
            await turnlog.up("--no-agents")
            port = free_ports(1)
            worker = await turnlog.start(
                "run",
                "agents",
                TURNLOG_AGENTS_PORT=str(port),
                TURNLOG_MODEL_CONCURRENCY=str(max(SLOW)),
                TURNLOG_MAX_OPEN_TURNS=str(2 * max(SLOW)),
            )
            await worker.until_says("partition_taken")
            yield turnlog, worker, f"http://127.0.0.1:{port}/healthz"
