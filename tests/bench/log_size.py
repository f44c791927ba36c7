"""Bytes on the log that a one-tool turn leaves, by topic: the segments on disk, with batches and markers."""

import asyncio
from collections import Counter
from pathlib import Path

from tests.bench.bench_installation import turnlog_up
from tests.bench.report import Figure
from tests.bench.turns import WARM_UP, Client
from tests.support.waiting import eventually

TURNS = {1: 100, 64: 1000}
"""By how many are in flight: the more, the more share a transaction."""


async def measure() -> list[Figure]:
    figures: list[Figure] = []
    async with turnlog_up() as (bench, _, _):
        client = Client(bench.bootstrap)
        await client.start()
        await client.turns(WARM_UP, in_flight=8)
        for in_flight, count in TURNS.items():
            before = await _at_rest(bench.folder)
            await client.turns(count, in_flight=in_flight)
            grown = await _at_rest(bench.folder)
            grown.subtract(before)
            figures.append(Figure(f"{in_flight} in flight: all", grown.total() / count, "bytes a turn"))
            figures += [
                Figure(f"{in_flight} in flight: {topic}", size / count, "bytes a turn")
                for topic, size in grown.most_common()
                if size >= count
            ]
        await client.stop()
    return figures


async def _at_rest(folder: Path) -> Counter[str]:
    """Once nothing is written any more for a moment: consumers store offsets after the turn."""

    async def probe() -> Counter[str] | None:
        before = _sizes(folder)
        await asyncio.sleep(1)
        return before if before == _sizes(folder) else None

    return await eventually(probe, "the log to come to rest", seconds=60)


def _sizes(folder: Path) -> Counter[str]:
    """Bytes by topic. Kafka's own topics count as one, and its metadata, which grows by itself, not at all."""
    sizes: Counter[str] = Counter()
    for segment in folder.rglob("*.log"):
        topic, _, partition = segment.parent.name.rpartition("-")
        if partition.isdecimal() and topic != "__cluster_metadata":
            sizes["Kafka's own" if topic.startswith("__") else topic] += segment.stat().st_size
    return sizes
