"""`turnlog up` and its sister commands as processes, the way a person runs them."""

import asyncio
import contextlib
import itertools
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from infra.local.process import free_ports
from tests.support.log import Log
from tests.support.waiting import eventually, until

START_SECONDS = 60
STOP_SECONDS = 45


@dataclass
class Running:
    """A command that has been started. Its output goes to a file, so that no pipe fills."""

    process: asyncio.subprocess.Process
    output_file: Path

    @property
    def output(self) -> str:
        return self.output_file.read_text(errors="replace")

    @property
    def stopped(self) -> bool:
        """Whether it has got SIGSTOP, from whomever, and runs on when it is woken."""
        if self.process.returncode is not None:
            return False
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{self.process.pid}/stat").read_text()
            return stat.rpartition(")")[2].split()[0] == "T"
        return False

    async def until_says(self, text: str, *, seconds: float = START_SECONDS) -> None:
        """Waits for words of its output. Fails when the process ends before, or takes too long."""

        def said() -> bool:
            assert text in self.output or self.process.returncode is None, f"it ended with:\n{self.output}"
            return text in self.output

        await until(said, f"{text!r} in:\n{self.output}", seconds=seconds)

    async def interrupt(self) -> int:
        """Ctrl-C, which a terminal sends to all that it runs; returns the exit code."""
        os.killpg(self.process.pid, signal.SIGINT)
        return await asyncio.wait_for(self.process.wait(), STOP_SECONDS)

    def wake(self) -> None:
        """Lets a process that stopped go on."""
        self.process.send_signal(signal.SIGCONT)

    async def kill(self) -> None:
        """Ends it at once, with its children in the same session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        await self.process.wait()


@dataclass
class Finished:
    """A command that has ended."""

    code: int
    output: str
    errors: str


@dataclass
class Installation:
    """One installation of Turnlog: settings, and what runs with them."""

    folder: Path
    environment: dict[str, str]
    log: Log
    http: aiohttp.ClientSession
    started: list[Running] = field(default_factory=list)
    _outputs: Iterator[Path] = field(init=False)

    def __post_init__(self) -> None:
        self._outputs = (self.folder / f"output-{number}.txt" for number in itertools.count())

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.environment['TURNLOG_HTTP_PORT']}"

    async def start(self, *arguments: str, **extra: str) -> Running:
        """Starts a `turnlog` command and leaves it running."""
        output = next(self._outputs)
        with output.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "services.cli.app",
                *arguments,
                env=self.environment | extra,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        running = Running(process, output)
        self.started.append(running)
        return running

    async def up(self, *arguments: str, **extra: str) -> Running:
        """Starts `turnlog up` and waits until it says that it is ready."""
        running = await self.start("up", *arguments, **extra)
        await running.until_says("Turnlog is up.")
        return running

    async def run(self, *arguments: str, seconds: float = 60, **extra: str) -> Finished:
        """Runs a `turnlog` command to its end."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "services.cli.app",
            *arguments,
            env=self.environment | extra,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await asyncio.wait_for(process.communicate(), seconds)
        return Finished(process.returncode or 0, output.decode(), errors.decode())

    async def prompt(self, thread_id: str, content: str, **fields: Any) -> str:
        """Publishes a prompt from Kafka, as another system does; returns its thread."""
        event = {"thread_id": thread_id, "agent": "assistant", "content": content, **fields}
        await self.log.publish("prompts", event)
        return thread_id

    async def completion(self, thread_id: str, *, count: int = 1, seconds: float = 60) -> dict[str, Any]:
        """The terminal event of a thread's turn; the last one of `count`."""
        found = await self.log.wait_for(
            "completions", lambda event: event["thread_id"] == thread_id, count=count, seconds=seconds
        )
        return found[-1]

    async def get(self, path: str, *, status: int = 200) -> Any:
        async with self.http.get(self.base_url + path) as response:
            body = await response.json(content_type=None)
            assert response.status == status, body
            return body

    async def post(self, path: str, body: Any, *, headers: Mapping[str, str] | None = None, status: int) -> Any:
        async with self.http.post(self.base_url + path, json=body, headers=headers) as response:
            answer = await response.json(content_type=None)
            assert response.status == status, answer
            return answer

    async def stream(self, method: str, path: str, **options: Any) -> AsyncIterator[tuple[str, str, Any]]:
        """Server-sent events: name, id, data."""
        async with self.http.request(method, self.base_url + path, **options) as response:
            assert response.status == 200, await response.text()
            assert response.content_type == "text/event-stream"
            block: dict[str, str] = {}
            async for line in response.content:
                if match := re.match(r"(event|id|data): ?(.*)", line.decode().rstrip("\n")):
                    block[match[1]] = block.get(match[1], "") + match[2]
                elif block and not line.strip():
                    if "data" in block:
                        yield block.get("event", "message"), block.get("id", ""), json.loads(block["data"])
                    block = {}

    async def messages(self, thread_id: str, *, count: int) -> list[dict[str, Any]]:
        """The messages of a thread once memory has as many."""

        async def probe() -> list[dict[str, Any]] | None:
            async with self.http.get(f"{self.base_url}/v1/threads/{thread_id}/messages") as response:
                items = (await response.json())["items"] if response.status == 200 else []
            return items if len(items) >= count else None

        return await eventually(probe, f"{count} messages of {thread_id}")


@asynccontextmanager
async def installation(folder: Path, *, model_url: str, kafka: str, prefix: str) -> AsyncIterator[Installation]:
    """An installation on a broker that runs; whatever it has started is killed at the end."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("TURNLOG_", "OPENAI_"))
    } | {
        "TURNLOG_DATA_DIR": str(folder / "data"),
        "TURNLOG_HTTP_PORT": str(free_ports(3)),
        "TURNLOG_KAFKA_BOOTSTRAP": kafka,
        "TURNLOG_TOPIC_PREFIX": prefix,
        "TURNLOG_TOPIC_PARTITIONS": "4",
        "TURNLOG_TOPIC_REPLICATION": "1",
        "TURNLOG_MODEL_BASE_URL": model_url,
        "TURNLOG_MODEL": "scripted",
        "COLUMNS": "200",
        "NO_COLOR": "1",
        "PYTHONUNBUFFERED": "1",
    }
    timeout = aiohttp.ClientTimeout(total=90)
    async with Log(kafka, prefix=prefix) as log, aiohttp.ClientSession(timeout=timeout) as http:
        made = Installation(folder, environment, log, http)
        try:
            yield made
        finally:
            for running in made.started:
                await running.kill()
