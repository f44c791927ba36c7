"""Every command of the README, as it stands there, against the embedded default with its own model."""

import asyncio
import os
import shlex
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.conftest import ROOT
from tests.support.installation import Running, free_ports
from tests.support.readme import COMMANDS, FILES, OF_ANOTHER_TEST, RUNS_UNTIL_STOPPED

pytestmark = [pytest.mark.broker, pytest.mark.asyncio(loop_scope="module")]

SAYS = {
    "curl -s 'localhost:8080/v1/threads/t-1/prompts?wait=30'": '"turn.completed"',
    "curl -sN": "event: text.delta",
    "curl -s localhost:8080/v1/threads/t-1/messages": '"and again"',
    "uv run python publish.py": "turn.completed",
    "uv run turnlog agents list": "pirate",
    "uv run turnlog tools list": "order",
    "curl -s 'localhost:8080/v1/usage": '"input_tokens"',
    "uv run turnlog usage": "pirate",
    "uv run turnlog topics list": "completions",
    "uv run turnlog audit": "usage: equal to the log",
    "uv run turnlog prices apply": "applied house-model version ",
    "uv run turnlog prices list": "+20%",
    "uv run turnlog budgets apply": "applied each-user version ",
    "uv run turnlog budgets list": "100000",
    "uv run turnlog budgets show": "spent",
    "uv run turnlog plans apply": "applied pro version ",
    "uv run turnlog plans list": "subscription to pro",
    "uv run turnlog invoices draft": "29.00",
    "uv run turnlog invoices list": "of invoice",
    "uv run turnlog rebuild": "is rebuilt: ",
    "uv run turnlog doctor": "a prompt would be answered",
}


class Tour:
    """A folder with the README's files, and `make run` beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.http_port, self.kafka_port = free_ports(3), free_ports(1)
        self.environment = os.environ | {
            "TURNLOG_DATA_DIR": str(folder / "data"),
            "TURNLOG_HTTP_PORT": str(self.http_port),
            "TURNLOG_LOCAL_KAFKA_PORT": str(self.kafka_port),
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "COLUMNS": "200",
        }
        self.started: list[Running] = []

    def written_for_here(self, command: str) -> str:
        """A command with this installation's ports, and this environment's Python."""
        command = command.replace("localhost:8080", f"localhost:{self.http_port}")
        command = command.replace("uv run turnlog", f"{shlex.quote(sys.executable)} -m services.cli.app")
        return command.replace("uv run python", shlex.quote(sys.executable))

    async def start(self, command: str, *, cwd: Path | None = None) -> Running:
        output = self.folder / f"output-{len(self.started)}.txt"
        with output.open("wb") as file:
            process = await asyncio.create_subprocess_shell(
                f"exec env {command}",
                cwd=cwd or self.folder,
                env=self.environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self.started.append(Running(process, output))
        return self.started[-1]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tour(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Tour]:
    made = Tour(tmp_path_factory.mktemp("tour"))
    for name, text in FILES.items():
        (made.folder / name).write_text(text.replace("localhost:9092", f"localhost:{made.kafka_port}"))
    running = await made.start("make run", cwd=ROOT)
    try:
        await running.until_says("Turnlog is up.", seconds=90)
        yield made
    finally:
        for each in made.started[1:]:
            await each.kill()
        try:
            await running.interrupt()
        finally:
            await running.kill()
    assert "Traceback" not in running.output, running.output


async def test_the_start_says_where_to_look_and_what_the_model_is(tour: Tour) -> None:
    output = tour.started[0].output

    assert f"http://127.0.0.1:{tour.http_port}" in output
    assert f"127.0.0.1:{tour.kafka_port}" in output
    assert "SmolLM2" in output
    assert "curl -s" in output
    assert "AIOKafkaProducer" in output


@pytest.mark.parametrize("command", [each for each in COMMANDS if each not in OF_ANOTHER_TEST and "export" not in each])
async def test_a_command_of_the_readme_works_as_it_stands_there(tour: Tour, command: str) -> None:
    running = await tour.start(tour.written_for_here(command))
    if command in RUNS_UNTIL_STOPPED:
        await running.until_says(RUNS_UNTIL_STOPPED[command])
        assert await running.interrupt() == 0, running.output
    else:
        assert await asyncio.wait_for(running.process.wait(), 90) == 0, running.output
        expected = [word for begin, word in SAYS.items() if command.startswith(begin)]
        assert all(word in running.output for word in expected), running.output
