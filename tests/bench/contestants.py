"""Who is compared: ours and the peers, started and asked in one way."""

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from infra.local.kafka import LocalKafka
from tests.bench import pinning
from tests.bench.bench_installation import bench_in
from tests.bench.postgres import Unavailable, postgres
from tests.bench.turns import CONTENT, GROWING, GROWN_TURNS, Client, grow
from tests.conftest import CACHE

PEERS = Path(__file__).parent / "peers"

START_SECONDS = 90


class Contestant(Protocol):
    """One that runs."""

    versions: dict[str, str]

    async def turns(self, count: int, *, in_flight: int) -> tuple[list[float], float]:
        """The seconds of each turn, and of all together."""
        ...

    async def grow(self) -> list[float]:
        """When the turns of the threads that grow have ended, in seconds, in order: each sees those before it."""
        ...

    async def begin(self, turn: str, content: str) -> None:
        """Starts a turn and doesn't wait for it."""
        ...

    async def kill(self) -> None:
        """SIGKILL to the worker; starts it again."""
        ...

    async def worker_pid(self) -> int:
        """The process that has the core of its own."""
        ...

    async def answers(self, turn: str) -> int:
        """How many answers of a turn are kept."""
        ...

    async def resume(self, turn: str) -> None:
        """What a caller does who knows that the turn was cut off."""
        ...


@dataclass(frozen=True)
class Entry:
    """One of the list."""

    name: str
    keeps: str
    """What is durable, and when."""
    start: Callable[[str], AbstractAsyncContextManager[Contestant]]
    """Given the model's URL."""
    killed: bool = True
    """Whether a SIGKILL is tried."""
    threads: bool = False
    """Whether a turn sees the turns of its thread before it."""


@dataclass
class Ours:
    client: Client
    up: int
    worker: str
    """In the worker's command line; empty: the worker is `up` itself."""
    versions: dict[str, str] = field(default_factory=lambda: {each: version(each) for each in ("turnlog", "aiokafka")})

    async def turns(self, count: int, *, in_flight: int) -> tuple[list[float], float]:
        began = asyncio.get_running_loop().time()
        seconds = await self.client.turns(count, in_flight=in_flight)
        return seconds, asyncio.get_running_loop().time() - began

    async def grow(self) -> list[float]:
        return await grow(self.client.turn)

    async def begin(self, turn: str, content: str) -> None:
        await self.client.begin(turn, content)

    async def kill(self) -> None:
        """`turnlog up` starts it again itself."""
        os.kill(await self.worker_pid(), signal.SIGKILL)

    async def answers(self, turn: str) -> int:
        return self.client.completed[turn]

    async def resume(self, turn: str) -> None:
        """Nobody needs to."""

    async def worker_pid(self) -> int:
        return await pinning.descendant(self.up, self.worker) if self.worker else self.up


@asynccontextmanager
async def ours(model_url: str, *, workers: int) -> AsyncIterator[Contestant]:
    with tempfile.TemporaryDirectory(prefix="turnlog-bench-") as name:
        bench = bench_in(Path(name), model_url=model_url, cache=CACHE)
        arguments = ("--workers", str(workers)) if workers else ()
        async with bench.up(*arguments) as (running, _):
            client = Client(bench.bootstrap)
            await client.start()
            contestant = Ours(client, running.process.pid, "run agents" if workers else "")
            pinning.alone(await contestant.worker_pid())
            yield contestant
            await client.stop()


@dataclass
class Process:
    """A peer's process, asked over its input and output."""

    command: list[str]
    environment: dict[str, str]
    output: Path
    process: asyncio.subprocess.Process | None = None
    versions: dict[str, str] = field(default_factory=dict)

    async def start(self, *, alone: bool) -> None:
        with self.output.open("ab") as errors:
            self.process = await asyncio.create_subprocess_exec(
                *self.command,
                env=self.environment,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                limit=64 * 1024**2,
            )
        if alone:
            pinning.alone(self.process.pid)
        self.versions = (await asyncio.wait_for(self._answer(), START_SECONDS))["ready"]

    async def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        return await asyncio.wait_for(self._answer(), 300)

    async def stop(self) -> None:
        """At once: what a peer does at its end is not compared."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()

    async def _answer(self) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            if line.startswith(b"{"):  # a framework may print too
                return json.loads(line)
        raise Unavailable(f"it ended with: {self.output.read_text(errors='replace')[-2000:]}")


@dataclass
class Peer:
    """A worker, and for one that works off a log the client that asks it."""

    worker: Process
    client: Process

    @property
    def versions(self) -> dict[str, str]:
        return self.worker.versions

    async def turns(self, count: int, *, in_flight: int) -> tuple[list[float], float]:
        answer = await self.client.ask("turns", count=count, in_flight=in_flight, content=CONTENT)
        return answer["seconds"], answer["elapsed"]

    async def grow(self) -> list[float]:
        return (await self.client.ask("grow", threads=GROWING, turns=GROWN_TURNS, content=CONTENT))["ended"]

    async def begin(self, turn: str, content: str) -> None:
        await self.client.ask("begin", turn=turn, content=content)

    async def worker_pid(self) -> int:
        assert self.worker.process is not None
        return self.worker.process.pid

    async def kill(self) -> None:
        await self.worker.stop()
        await self.worker.start(alone=True)

    async def answers(self, turn: str) -> int:
        return (await self.client.ask("answers", turn=turn))["answers"]

    async def resume(self, turn: str) -> None:
        await self.client.ask("resume", turn=turn)


@asynccontextmanager
async def peer(
    model_url: str, script: str, *arguments: str, kafka: bool = False, database: str = "", client: bool = False
) -> AsyncIterator[Contestant]:
    """`kafka`, `database`: what it needs. `client`: it has two processes."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="turnlog-bench-")))
        environment = dict(os.environ) | {"BENCH_MODEL_URL": model_url, "BENCH_FOLDER": str(folder)}
        if kafka:
            broker = await stack.enter_async_context(LocalKafka(data_dir=folder, port=0))
            environment["BENCH_KAFKA"] = broker.bootstrap
        if database:
            environment["BENCH_POSTGRES"] = f"{await stack.enter_async_context(postgres())}/{database}"

        async def process(*role: str, alone: bool) -> Process:
            command = [await python(script), str(PEERS / script), *arguments, *role]
            started = Process(command, environment, folder / f"{'-'.join(role) or 'output'}.txt")
            stack.push_async_callback(started.stop)
            await started.start(alone=alone)
            return started

        worker = await process(*(["worker"] if client else []), alone=True)
        yield Peer(worker, await process("client", alone=False) if client else worker)


async def python(script: str) -> str:
    """The interpreter of a script's own environment, made as its lock file says. Raises `Unavailable`."""
    if not Path(PEERS / f"{script}.lock").exists():
        return sys.executable
    await _uv("sync", "--quiet", "--locked", "--script", str(PEERS / script))
    return await _uv("python", "find", "--script", str(PEERS / script))


async def _uv(*arguments: str) -> str:
    uv = os.environ.get("UV", "uv")  # `uv run` says where it is
    try:
        process = await asyncio.create_subprocess_exec(
            uv, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
    except FileNotFoundError as error:
        raise Unavailable(f"not installed: no {uv} here") from error
    output, errors = await process.communicate()
    if process.returncode != 0:
        raise Unavailable(f"not installed: {errors.decode().strip().splitlines()[-1][:200]}")
    return output.decode().strip()


FLOOR = Entry(
    "no framework, aiohttp",
    "the answer, once it is there",
    lambda url: peer(url, "floor.py", "aiohttp", kafka=True),
)

OURS = Entry(
    "Turnlog, a worker's process", "every event, as it happens", lambda url: ours(url, workers=1), threads=True
)

ENTRIES = (
    OURS,
    Entry(
        "Turnlog, all in one process",
        "every event, as it happens",
        lambda url: ours(url, workers=0),
        killed=False,
        threads=True,
    ),
    FLOOR,
    Entry(
        "no framework, httpx",
        "the answer, once it is there",
        lambda url: peer(url, "floor.py", "httpx", kafka=True),
        killed=False,
    ),
    Entry(
        "eggai",
        "prompt and answer",
        lambda url: peer(url, "with_eggai.py", kafka=True, client=True),
    ),
    Entry(
        "calfkit",
        "every hop",
        lambda url: peer(url, "with_calfkit.py", kafka=True, client=True),
        threads=True,
    ),
    Entry(
        "langgraph, SQLite",
        "every step, before the next",
        lambda url: peer(url, "with_langgraph.py", "sqlite"),
        threads=True,
    ),
    Entry(
        "langgraph, Postgres",
        "every step, before the next",
        lambda url: peer(url, "with_langgraph.py", "postgres", database="postgres"),
        threads=True,
    ),
    Entry(
        "DBOS, Postgres",
        "every step, before the next",
        lambda url: peer(url, "with_dbos.py", database="bench"),
    ),
)
