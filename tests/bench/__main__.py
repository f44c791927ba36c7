"""`python -m tests.bench [NAME ...]`: all benches, or those that are named. `--quick`: ours beside the floor."""

import argparse
import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from tests.bench import (
    budgets,
    comparison,
    gateway,
    invoice,
    listeners,
    log_size,
    memory,
    model_client,
    overload,
    projections,
    recovery,
    scaling,
    startup,
    turns,
    usage,
    vector_index,
)
from tests.bench.report import Figure, machine, show
from tests.conftest import ROOT

COMPARISON = "comparison"

SCENARIOS: dict[str, tuple[str, Callable[[], Awaitable[Sequence[Figure]]]]] = {
    "startup": ("turnlog up, scripted model", startup.measure),
    "turns": ("One-tool turns, turnlog up: everything in one process", turns.measure),
    "worker": (
        "One-tool turns, turnlog up --workers 1: agents in a process of their own",
        partial(turns.measure, "--workers", "1"),
    ),
    "log-size": ("Bytes on the log", log_size.measure),
    "prompts": ("Prompts over HTTP, turnlog up --no-agents", gateway.measure_prompts),
    "first-token": ("The first token over SSE, turnlog up --workers 1", gateway.measure_first_token),
    "listeners": ("A thousand clients look on, turnlog up --workers 1", listeners.measure),
    "scaling": ("1, 2 and 4 workers with a model that takes 0.2 s", scaling.measure),
    "model-client": ("One model call, through each of the two clients", model_client.measure),
    "audit": ("turnlog audit, turnlog up --no-agents beside it", projections.measure_audit),
    "rebuild": ("turnlog rebuild, in turnlog up --no-agents", projections.measure_rebuild),
    "memory": ("Memory's engine in process, without Kafka and HTTP", memory.measure),
    "vector-index": ("Memory's index of vectors, without Kafka and HTTP", vector_index.measure),
    "usage": ("Usage's engine in process, without Kafka and HTTP", usage.measure),
    "budgets": ("Budgets over ten million units of usage, without Kafka", budgets.measure),
    "invoice": ("An invoice over a million rows, without HTTP", invoice.measure),
    "overload": ("One worker with too much to do", overload.measure),
    "recovery": ("Partitions without an owner: a long past, a death, a rolling restart", recovery.measure),
}


def main() -> None:
    names = [COMPARISON, *SCENARIOS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names))
    parser.add_argument(
        "--quick", action="store_true", help="ours beside the floor, or `memory` with few messages; no file"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of the comparison; 3 by default")
    parser.add_argument("--json", type=Path, metavar="FILE", help=".turnlog/bench/<date>.json by default")
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - set(names):
        parser.error(f"expected {', '.join(names)}, got {', '.join(sorted(unknown))}")
    print(machine())
    if chosen.quick:
        if "memory" in chosen.names:
            show("Memory's engine in process", uvloop.run(memory.measure(memory.QUICK)))
        else:
            asyncio.run(comparison.quick())
        return
    began = datetime.now(UTC)
    file = chosen.json or ROOT / ".turnlog" / "bench" / f"{began:%Y-%m-%dT%H-%M-%SZ}.json"
    report: dict[str, Any] = {"date": began.isoformat(timespec="seconds"), "machine": machine()}
    for name in chosen.names or names:
        if name == COMPARISON:
            report[name] = asyncio.run(comparison.compare(rounds=chosen.rounds)).as_json()
        else:
            title, bench = SCENARIOS[name]
            figures = uvloop.run(_awaited(bench()))  # the loop that services have
            show(title, figures)
            report[name] = [asdict(figure) for figure in figures]
        write(file, report)  # after each, so that what fails later takes nothing away
    print(f"Written to {file}")


async def _awaited(figures: Awaitable[Sequence[Figure]]) -> Sequence[Figure]:
    return await figures


def write(file: Path, report: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
