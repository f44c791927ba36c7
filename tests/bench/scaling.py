"""More workers, more turns: each brings its share of turns in flight, whose model takes a fifth of a second a call."""

import time

from tests.bench.bench_installation import turnlog_up
from tests.bench.report import Figure
from tests.bench.turns import CONTENT, Client

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
    async with turnlog_up("--workers", str(workers)) as (bench, _, _):
        client = Client(bench.bootstrap, content=content)
        await client.start()
        await client.turns(IN_FLIGHT * workers, in_flight=IN_FLIGHT * workers)
        began = time.monotonic()
        await client.turns(TURNS * workers, in_flight=IN_FLIGHT * workers)
        seconds = time.monotonic() - began
        await client.stop()
    return TURNS * workers / seconds
