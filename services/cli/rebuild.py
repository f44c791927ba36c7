"""`turnlog rebuild`: drives a rebuild, which runs in the service that has the store open, and shows how far it is."""

import asyncio
import signal
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from schemas.http import RebuildStatus
from services.cli.gateway import request
from services.runtime.service import wait_for_signal
from services.runtime.settings import RuntimeSettings, load_settings

console = Console(highlight=False)

POLL_SECONDS = 0.25

Projected = Literal["memory", "usage"]


async def run(name: Projected) -> int:
    """Exit code 1 when it was cancelled or failed: the live projection is as it was."""
    settings = load_settings(RuntimeSettings)
    stopping = asyncio.ensure_future(wait_for_signal())
    try:
        await _ask(settings, "POST", name)
        status = await _watch(settings, name, stopping)
        if status.state == "running":
            status = await _ask(settings, "DELETE", name)
    finally:
        stopping.cancel()
    if status.state != "done":
        console.print(f"{name} was not rebuilt: {status.detail}", markup=False, soft_wrap=True)
        return 1
    seconds = (status.ended_at - status.started_at).total_seconds() if status.ended_at and status.started_at else 0
    console.print(f"{name} is rebuilt: {status.done} records in {seconds:.1f} s")
    return 0


async def _watch(settings: RuntimeSettings, name: Projected, stopping: asyncio.Future[signal.Signals]) -> RebuildStatus:
    """Shows the bar until the rebuild has ended or somebody wants it to."""
    columns = (
        TextColumn("rebuilding {task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} records"),
        TextColumn("{task.fields[rate]:,.0f}/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(name, total=0, rate=0.0)
        while True:
            status = await _ask(settings, "GET", name)
            shown = progress.tasks[0]
            progress.update(task, completed=status.done, total=status.total, rate=shown.speed or 0.0)
            if status.state != "running":
                return status
            await asyncio.wait({stopping}, timeout=POLL_SECONDS)
            if stopping.done():
                return status


async def _ask(settings: RuntimeSettings, method: str, name: Projected) -> RebuildStatus:
    async with request(settings, method, "/rebuild", service=name) as response:
        return RebuildStatus.model_validate_json(await response.read())
