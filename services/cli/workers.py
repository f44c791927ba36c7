"""Agent workers as processes beside `turnlog up`."""

import asyncio
import contextlib
import hashlib
import os
import socket
import sys
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path

from rich.console import Console

from infra.local.process import GuardedProcess

console = Console(highlight=False, soft_wrap=True)

STOP_SECONDS = 30
"""More than the grace time of a worker, which ends by itself unless it hangs."""

RESTART_SECONDS = 1.0


@contextlib.asynccontextmanager
async def kept_workers(count: int, *, data_dir: Path, overrides: Mapping[str, object]) -> AsyncGenerator[None]:
    """Agent workers as processes: started again when one dies, stopped with their grace time, gone with this process.

    Each writes its log to `<data_dir>/logs/agents-<number>.log`, and is a static member of the group: one that is
    started again within the session time-out has its partitions back, and nobody else's move.
    """
    logs = data_dir / "logs"
    logs.mkdir(exist_ok=True)
    named = {f"TURNLOG_{name.upper()}": str(value) for name, value in overrides.items()}
    workers = [
        GuardedProcess(
            [sys.executable, "-m", "services.cli.app", "run", "agents"],
            log=logs / f"agents-{number}.log",
            grace_seconds=STOP_SECONDS,
            env=os.environ | named | {"TURNLOG_AGENTS_PORT": "0", "TURNLOG_INSTANCE_ID": instance_id(data_dir, number)},
        )
        for number in range(1, count + 1)
    ]
    for worker in workers:
        worker.spawn()
    keeping = [asyncio.create_task(_keep(worker, f"agents-{number}")) for number, worker in enumerate(workers, 1)]
    try:
        yield
    finally:
        for task in keeping:
            task.cancel()
        await asyncio.gather(*keeping, return_exceptions=True)
        await asyncio.gather(*(worker.stop() for worker in workers))


def instance_id(data_dir: Path, number: int) -> str:
    """A worker's name in the group: the same after a restart, another one on another machine or in another folder."""
    folder = hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:8]
    return f"{socket.gethostname()}-{folder}-{number}"


async def _keep(worker: GuardedProcess, name: str) -> None:
    while True:
        code = await worker.wait()
        console.print(f"worker {name} ended with {code} and is started again; its last words:\n{worker.tail()}")
        await asyncio.sleep(RESTART_SECONDS)
        worker.spawn()
