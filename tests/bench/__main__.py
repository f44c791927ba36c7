"""`python -m tests.bench [NAME ...]`: all benches, or those that are named."""

import argparse
import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from tests.bench import model_client, overload, projections, recovery, startup, turns
from tests.bench.report import Figure, machine, show

BENCHES: dict[str, tuple[str, Callable[[], Awaitable[Sequence[Figure]]]]] = {
    "startup": ("turnlog up, scripted model", startup.measure),
    "turns": ("One-tool turns, turnlog up: everything in one process", turns.measure),
    "worker": (
        "One-tool turns, turnlog up --workers 1: agents in a process of their own",
        partial(turns.measure, "--workers", "1"),
    ),
    "model-client": ("One model call, through each of the two clients", model_client.measure),
    "audit": ("turnlog audit, turnlog up --no-agents beside it", projections.measure_audit),
    "rebuild": ("turnlog rebuild, in turnlog up --no-agents", projections.measure_rebuild),
    "overload": ("One worker with too much to do", overload.measure),
    "recovery": ("Partitions without an owner: a long past, a death, a rolling restart", recovery.measure),
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHES))
    names = parser.parse_args().names or list(BENCHES)
    if unknown := set(names) - BENCHES.keys():
        parser.error(f"expected {', '.join(BENCHES)}, got {', '.join(sorted(unknown))}")
    print(machine())
    for name in names:
        title, bench = BENCHES[name]
        show(title, asyncio.run(bench()))
