"""How long the embedded default takes to be ready, and what it holds in memory at rest."""

import asyncio
import tempfile
from pathlib import Path

from tests.bench.bench_installation import bench_in, resident_megabytes, scripted_model
from tests.bench.report import Figure

REST_SECONDS = 10
"""After it is ready, before memory is read."""


async def measure() -> list[Figure]:
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="turnlog-bench-") as name:
        folder = Path(name)
        async with scripted_model() as url:
            bench = bench_in(folder, model_url=url, cache=folder / "cache")
            async with bench.up() as (_, seconds):
                figures.append(Figure("ready, first start: jars fetched, topics made", seconds, "s"))
            async with bench.up() as (running, seconds):
                figures.append(Figure("ready, later start", seconds, "s"))
                await asyncio.sleep(REST_SECONDS)
                memory = await resident_megabytes(running.process.pid)
        for command, megabytes in sorted(memory.items()):
            figures.append(Figure(f"resident at rest: {command}", megabytes, "MB"))
        figures.append(Figure("resident at rest: all", sum(memory.values()), "MB"))
    return figures
