"""The embedded default as a process, its own Kafka included, with the scripted model as another one."""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import CACHE, ROOT
from tests.support.installation import Running, free_ports


@dataclass
class Bench:
    """A data folder with the settings of one installation."""

    folder: Path
    environment: dict[str, str]

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.environment['TURNLOG_LOCAL_KAFKA_PORT']}"

    def service_url(self, name: str) -> str:
        """Of memory or usage."""
        return f"http://127.0.0.1:{int(self.environment['TURNLOG_HTTP_PORT']) + {'memory': 1, 'usage': 2}[name]}"

    @asynccontextmanager
    async def up(self, *arguments: str, **extra: str) -> AsyncIterator[tuple[Running, float]]:
        """`turnlog up` until the block ends, and the seconds that it took to be ready."""
        began = time.monotonic()
        output = self.folder / "up.txt"
        with output.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "services.cli.app",
                "up",
                *arguments,
                cwd=ROOT,
                env=self.environment | extra,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        running = Running(process, output)
        try:
            await running.until_says("Turnlog is up.", seconds=180)
            yield running, time.monotonic() - began
            await running.interrupt()
        finally:
            await running.kill()


def bench_in(folder: Path, *, model_url: str, cache: Path) -> Bench:
    """`cache`: where Kafka's jars are or will be."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("TURNLOG_", "OPENAI_"))
    } | {
        "TURNLOG_DATA_DIR": str(folder / "data"),
        "TURNLOG_CACHE_DIR": str(cache),
        "TURNLOG_HTTP_PORT": str(free_ports(3)),
        "TURNLOG_LOCAL_KAFKA_PORT": str(free_ports(1)),
        "TURNLOG_MODEL_BASE_URL": model_url,
        "TURNLOG_MODEL": "scripted",
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": "200",
    }
    return Bench(folder, environment)


@asynccontextmanager
async def turnlog_up(*arguments: str) -> AsyncIterator[tuple[Bench, int, str]]:
    """`turnlog up` in a folder of its own beside the scripted model: its process, and the URL of the model."""
    with tempfile.TemporaryDirectory(prefix="turnlog-bench-") as name:
        async with scripted_model() as url:
            bench = bench_in(Path(name), model_url=url, cache=CACHE)
            async with bench.up(*arguments) as (running, _):
                yield bench, running.process.pid, url


@asynccontextmanager
async def scripted_model() -> AsyncIterator[str]:
    """The scripted model in a process of its own, so that it takes no time from the measuring one; its base URL."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.scripted_model", cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        yield (await process.stdout.readline()).decode().strip()
    finally:
        process.terminate()
        await process.wait()


async def resident_megabytes(pid: int) -> dict[str, float]:
    """Resident memory of a process and all its descendants, MB by command, as `ps` tells it."""
    listing = await asyncio.create_subprocess_exec("ps", "-eo", "pid=,ppid=,rss=,comm=", stdout=asyncio.subprocess.PIPE)
    output, _ = await listing.communicate()
    rows = [line.split(None, 3) for line in output.decode().splitlines()]
    family = {pid}
    while True:
        born = {int(each[0]) for each in rows if int(each[1]) in family} - family
        if not born:
            break
        family |= born
    memory: dict[str, float] = {}
    for number, _, kilobytes, command in rows:
        if int(number) in family:
            memory[command] = memory.get(command, 0) + int(kilobytes) / 1024
    return memory
