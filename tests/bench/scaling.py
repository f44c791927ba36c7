"""More workers, more turns: each brings its share of turns in flight, whose model takes a fifth of a second a call."""

import tempfile
import time
from pathlib import Path

from tests.bench.bench_installation import bench_in, scripted_model
from tests.bench.report import Figure
from tests.bench.turns import CONTENT, Client
from tests.conftest import CACHE

WORKERS = (1, 2, 4)

THINK_SECONDS = 0.2

IN_FLIGHT, TURNS = 8, 80
"""A worker, so that nothing but their number changes."""


async def measure() -> list[Figure]:
    """A broker of its own for each number of workers, with as many partitions as the most."""
    rates = {workers: await _rate(workers) for workers in WORKERS}
    return [
        *(Figure(f"{workers} workers: turns a second", rate, "/s") for workers, rate in rates.items()),
        *(
            Figure(f"{workers} workers: of {workers} times one", rate / (workers * rates[1]), "")
            for workers, rate in rates.items()
            if workers > 1
        ),
    ]


async def _rate(workers: int) -> float:
    think = f"[[think {THINK_SECONDS}]]"
    content = think + CONTENT.replace("[[then]]", f"[[then]]{think}")
    with tempfile.TemporaryDirectory(prefix="turnlog-bench-") as name:
        async with scripted_model() as url:
            bench = bench_in(Path(name), model_url=url, cache=CACHE)
            async with bench.up("--workers", str(workers)):
                client = Client(bench.bootstrap, content=content)
                await client.start()
                await client.turns(IN_FLIGHT * workers, in_flight=IN_FLIGHT * workers)
                began = time.monotonic()
                await client.turns(TURNS * workers, in_flight=IN_FLIGHT * workers)
                seconds = time.monotonic() - began
                await client.stop()
    return TURNS * workers / seconds
