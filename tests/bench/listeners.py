"""Many who look on: a thousand clients on server-sent events of a hundred threads, all of them live."""

import asyncio
import json
import tempfile
import time
from datetime import datetime
from pathlib import Path
from uuid import uuid4

import aiohttp

from tests.bench.bench_installation import Bench, bench_in, resident_megabytes, scripted_model
from tests.bench.processor_time import own_cpu_seconds
from tests.bench.report import Figure
from tests.bench.turns import Client, percentile
from tests.conftest import CACHE

THREADS, CLIENTS, TURNS = 100, 10, 5
"""Clients of each thread, and turns of each, one after the other."""


async def measure() -> list[Figure]:
    """From the completion's time on the log to the client that has read it, all on one machine and one clock."""
    with tempfile.TemporaryDirectory(prefix="turnlog-bench-") as name:
        async with scripted_model() as url, aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
            bench = bench_in(Path(name), model_url=url, cache=CACHE)
            async with bench.up("--workers", "1") as (running, _):
                return await _watched(bench, running.process.pid, http)


async def _watched(bench: Bench, gateway: int, http: aiohttp.ClientSession) -> list[Figure]:
    threads = [f"bench-{uuid4().hex}" for _ in range(THREADS)]
    open_streams = asyncio.Semaphore(0)
    late: list[float] = []
    events = 0

    async def watch(thread: str) -> None:
        nonlocal events
        path = f"http://127.0.0.1:{bench.environment['TURNLOG_HTTP_PORT']}/v1/threads/{thread}/events"
        left = TURNS
        async with http.get(path, timeout=aiohttp.ClientTimeout(total=None)) as response:
            assert response.status == 200, await response.text()
            open_streams.release()
            async for line in response.content:
                if not line.startswith(b"data:"):
                    continue
                events += 1
                if b'"type":"turn.completed"' in line:
                    completed_at = _epoch_seconds(json.loads(line[5:])["completed_at"])
                    late.append(time.time() - completed_at)
                    left -= 1
                    if not left:
                        return

    watching = [asyncio.create_task(watch(thread)) for thread in threads for _ in range(CLIENTS)]
    for _ in watching:
        await open_streams.acquire()
    client = Client(bench.bootstrap)
    await client.start()
    began, spent = time.monotonic(), own_cpu_seconds(gateway)

    async def talk(thread: str) -> None:
        for _ in range(TURNS):
            await client.turn(thread)

    await asyncio.gather(*map(talk, threads))
    await asyncio.gather(*watching)
    seconds = time.monotonic() - began
    cpu = own_cpu_seconds(gateway) - spent
    memory = await resident_megabytes(gateway)
    await client.stop()
    late.sort()
    return [
        Figure(f"{len(watching):,} clients of {THREADS} threads: events delivered", events, ""),
        Figure("events delivered a second", events / seconds, "/s"),
        Figure("completed turn at its clients, after its time: p50", percentile(late, 50) * 1000, "ms"),
        Figure("completed turn at its clients, after its time: p99", percentile(late, 99) * 1000, "ms"),
        Figure("clients that got all turns, of each", len(late) / TURNS, ""),
        Figure("turns a second meanwhile", THREADS * TURNS / seconds, "/s"),
        Figure("CPU of the gateway's process, with tools, memory and usage in it, of a core", cpu / seconds, ""),
        Figure("resident: everything", sum(memory.values()), "MB"),
    ]


def _epoch_seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
