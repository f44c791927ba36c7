"""`turnlog rebuild` and `turnlog audit` over a log of many events, with everything in one process beside them.

`TURNLOG_BENCH_EVENTS` of the journal and as many of usage; 200,000 unless it says otherwise.
"""

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiokafka import AIOKafkaProducer

from tests.bench.bench_installation import Bench, bench_in, resident_megabytes
from tests.bench.report import Figure
from tests.bench.turns import percentile
from tests.conftest import CACHE, ROOT

EVENTS = int(os.environ.get("TURNLOG_BENCH_EVENTS", "200000"))
EVENTS_OF_A_TURN = 5
TURNS_OF_A_THREAD = 10
AT = "2026-01-01T12:00:00.000000Z"
ANSWER = "an answer of some words that says what the question was about and what is to be done next " * 3
CALL = {"name": "look_up", "arguments": "{}"}
SETTLE_SECONDS = 1800
LOOK_SECONDS = 0.2


async def measure_audit() -> list[Figure]:
    async with _filled() as (bench, _):
        seconds, megabytes, output = await _run(bench, "audit")
    assert output.count("equal to the log") == 2, output
    return [
        Figure(f"audit of {2 * EVENTS:,} events", seconds, "s"),
        Figure("audit: events a second", 2 * EVENTS / seconds, "/s"),
        Figure("audit: most resident memory", megabytes, "MB"),
    ]


async def measure_rebuild() -> list[Figure]:
    figures: list[Figure] = []
    async with _filled() as (bench, pid):
        await _until_embedded(bench)
        for name, path in (("memory", "/threads/t-0"), ("usage", "/usage")):
            reading = asyncio.create_task(_read(f"{bench.service_url(name)}{path}"))
            before = sum((await resident_megabytes(pid)).values())
            seconds, _, output = await _run(bench, "rebuild", name)
            reading.cancel()
            (took,) = await asyncio.gather(reading)
            assert "is rebuilt" in output, output
            after = sum((await resident_megabytes(pid)).values())
            figures += [
                Figure(f"rebuild {name}: {EVENTS:,} events", seconds, "s"),
                Figure(f"rebuild {name}: events a second", EVENTS / seconds, "/s"),
                Figure(f"rebuild {name}: p50 of a read meanwhile", percentile(took, 50) * 1000, "ms"),
                Figure(f"rebuild {name}: p99 of a read meanwhile", percentile(took, 99) * 1000, "ms"),
                Figure(f"rebuild {name}: resident before", before, "MB"),
                Figure(f"rebuild {name}: resident after", after, "MB"),
            ]
    return figures


@asynccontextmanager
async def _filled() -> AsyncIterator[tuple[Bench, int]]:
    """An installation whose projections have read so many events, and its process."""
    with tempfile.TemporaryDirectory(prefix="turnlog-bench-") as name:
        bench = bench_in(Path(name), model_url="http://127.0.0.1:9", cache=CACHE)
        async with bench.up("--no-agents") as (running, _):
            ends = await _publish(bench.bootstrap)
            await _until_projected(bench, ends)
            yield bench, running.process.pid


async def _publish(bootstrap: str) -> list[int]:
    """The journal and usage; returns the end of each partition of the journal."""
    ends: dict[int, int] = {}
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, linger_ms=20, max_batch_size=256 * 1024) as producer:
        waiting: list[Any] = []
        for topic, key, event in _events():
            waiting.append(await producer.send(topic, json.dumps(event).encode(), key=key))
            if len(waiting) == 10_000:
                _note(await asyncio.gather(*waiting), ends)
                waiting = []
        _note(await asyncio.gather(*waiting), ends)
    return [ends.get(partition, 0) for partition in range(4)]


def _note(written: list[Any], ends: dict[int, int]) -> None:
    for each in written:
        if each.topic == "messages":
            ends[each.partition] = max(ends.get(each.partition, 0), each.offset + 1)


def _events() -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    for number in range(EVENTS // EVENTS_OF_A_TURN):
        thread = f"t-{number // TURNS_OF_A_THREAD}"
        common = {"thread_id": thread, "turn_id": f"turn-{number}"}
        agent = {"agent": "assistant", "agent_version": "0123456789ab"}
        for event in (
            {"type": "turn.opened", "prompt_id": f"prompt-{number}", "opened_at": AT, **agent},
            _message(number, 1, "user", [{"type": "text", "text": f"question {number} about the weather"}]),
            _message(number, 2, "assistant", [{"type": "tool_call", "call_id": f"c-{number}", **CALL}]),
            _message(number, 3, "assistant", [{"type": "text", "text": ANSWER}]),
            {"type": "turn.closed", "outcome": "completed", "steps": 2, "closed_at": AT},
        ):
            yield "messages", thread.encode(), {**common, **event}
    for number in range(EVENTS):
        thread = f"t-{number % 4000}"
        usage = {"usage_id": f"u-{number}", "thread_id": thread, "user_id": f"user-{number % 50}", "model": "scripted"}
        counts = {"kind": "completion", "input_tokens": number % 5000, "output_tokens": number % 700}
        yield "usage", thread.encode(), {**usage, **counts, "turn_id": f"turn-{number}", "occurred_at": AT}


def _message(number: int, step: int, role: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "type": "message.added",
        "message_id": f"m-{number}-{step}",
        "step": step,
        "role": role,
        "parts": parts,
        "created_at": AT,
    }


async def _until_projected(bench: Bench, ends: list[int]) -> None:
    deadline = time.monotonic() + SETTLE_SECONDS
    async with aiohttp.ClientSession() as http:
        for partition, end in enumerate(ends):
            body = {"thread_id": "any", "partition": partition, "min_offset": end, "wait_seconds": 30}
            while (await http.post(f"{bench.service_url('memory')}/context", json=body)).status != 200:
                assert time.monotonic() < deadline, "memory takes too long"
        while True:
            async with http.get(f"{bench.service_url('usage')}/usage") as response:
                if (await response.json())["items"][0]["events"] == EVENTS:
                    return
            assert time.monotonic() < deadline, "usage takes too long"
            await asyncio.sleep(LOOK_SECONDS)


async def _until_embedded(bench: Bench) -> None:
    """Every message has its vector, which a rebuild takes along, and upkeep has no copy under way."""
    deadline = time.monotonic() + SETTLE_SECONDS
    async with aiohttp.ClientSession() as http:
        while True:
            async with http.get(f"{bench.service_url('memory')}/metrics") as response:
                lines = (await response.text()).splitlines()
            async with http.get(f"{bench.service_url('memory')}/rebuild") as response:
                is_busy = (await response.json())["state"] == "running"
            if "turnlog_embeddings_waiting 0.0" in lines and not is_busy:
                return
            assert time.monotonic() < deadline, "vectors take too long"
            await asyncio.sleep(LOOK_SECONDS)


async def _run(bench: Bench, *arguments: str) -> tuple[float, float, str]:
    """Seconds that a command took, its largest resident memory, what it said."""
    began, most = time.monotonic(), 0.0
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.cli.app", *arguments),
        cwd=ROOT,
        env=bench.environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    saying = asyncio.create_task(process.communicate())
    while not saying.done():
        most = max(most, sum((await resident_megabytes(process.pid)).values()))
        await asyncio.wait({saying}, timeout=LOOK_SECONDS)
    output, _ = await saying
    return time.monotonic() - began, most, output.decode()


async def _read(url: str) -> list[float]:
    """Seconds of each of the reads that are made one after the other until this is cancelled, in order of size."""
    took: list[float] = []
    try:
        async with aiohttp.ClientSession() as http:
            while True:
                began = time.monotonic()
                async with http.get(url) as response:
                    assert response.status == 200, await response.text()
                took.append(time.monotonic() - began)
                await asyncio.sleep(0.02)
    except asyncio.CancelledError:
        return sorted(took)
