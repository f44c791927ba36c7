"""The commands of a terminal."""

import asyncio
import csv
import io
import json
from pathlib import Path
from uuid import uuid4

import pytest

from tests.scripted_model.server import ScriptedModel
from tests.support.installation import Installation

pytestmark = [pytest.mark.broker, pytest.mark.asyncio(loop_scope="session")]


async def test_a_prompt_is_answered_in_the_terminal(turnlog: Installation) -> None:
    finished = await turnlog.run("prompt", "hello")

    assert (finished.code, finished.output.strip()) == (0, "You said: hello"), finished.errors


async def test_an_answer_is_shown_while_it_is_written(turnlog: Installation, thread: str) -> None:
    prompt = await turnlog.start("prompt", "[[long 3000]][[slow 0.02]]", "--thread", thread)

    await prompt.until_says("word3 word4")

    assert prompt.process.returncode is None
    assert not [each for each in await turnlog.log.events("completions") if each["thread_id"] == thread]
    await prompt.kill()


async def test_a_thread_goes_on_where_it_was(turnlog: Installation, shared_model: ScriptedModel, thread: str) -> None:
    word = uuid4().hex
    for content in (f"remember {word}", f"again {word}"):
        assert (await turnlog.run("prompt", content, "--thread", thread)).code == 0

    asked = [each for each in shared_model.requests if f"again {word}" in json.dumps(each)]
    assert f"remember {word}" in json.dumps(asked[-1])


async def test_a_failed_turn_is_told_with_exit_code_1(turnlog: Installation) -> None:
    finished = await turnlog.run("prompt", "[[status 400 9]] no")

    assert finished.code == 1
    assert finished.errors.startswith("turn.failed: bad_request 400: scripted 400")


async def test_tail_shows_every_event_of_a_thread_as_it_happens(turnlog: Installation, thread: str) -> None:
    tail = await turnlog.start("tail", thread, "--from-start", "--json")

    await turnlog.prompt(thread, '[[tool calculate {"expression": "6 * 7"}]] hello')
    await tail.until_says('"content": "')
    shown = "turn.opened tool_args.delta tool.called tool.returned text.delta turn.closed turn.completed usage.recorded"
    for wanted in shown.split():
        await tail.until_says(f'"type":"{wanted}"')

    journal = [json.loads(line) for line in tail.output.splitlines()]
    spoken = [each["role"] for each in journal if each.get("type") == "message.added"]
    assert spoken == ["user", "assistant", "tool", "assistant"]
    assert await tail.interrupt() == 0, tail.output


async def test_agents_are_taken_up_without_a_restart(
    turnlog: Installation, shared_model: ScriptedModel, thread: str, tmp_path: Path
) -> None:
    name, file = f"pirate-{uuid4().hex[:8]}", tmp_path / "agents.yaml"
    for instructions in ("Speak like a pirate.", "Speak like an admiral."):
        file.write_text(f"name: {name}\ninstructions: {instructions}\n")
        applied = await turnlog.run("agents", "apply", str(file))
        assert applied.code == 0, applied.errors
        body = {"agent": name, "content": f"who is {name}"}
        completed = await turnlog.post(f"/v1/threads/{thread}/prompts?wait=30", body, status=200)
        assert completed["agent"] == name
        asked = [each for each in shared_model.requests if f"who is {name}" in json.dumps(each)]
        assert asked[-1]["messages"][0] == {"role": "system", "content": instructions}

    listed = await turnlog.run("agents", "list")
    assert name in listed.output


async def test_a_bad_agent_file_changes_nothing_and_says_why(turnlog: Installation, tmp_path: Path) -> None:
    file = tmp_path / "agents.yaml"
    file.write_text("name: fine\n---\nname: bad\nstop: {max_steps: many}\n")

    finished = await turnlog.run("agents", "apply", str(file))

    assert finished.code == 2
    assert "max_steps" in finished.errors
    assert "fine" not in (await turnlog.run("agents", "list")).output


async def test_usage_is_summed_in_the_terminal(turnlog: Installation) -> None:
    user = f"u-{uuid4().hex[:8]}"
    assert (await turnlog.run("prompt", "count me", "--user", user)).code == 0

    async with asyncio.timeout(30):
        while user not in (finished := await turnlog.run("usage", "--group-by", "user")).output:
            assert finished.code == 0, finished.errors


async def test_prices_are_applied_from_a_file_and_usage_shows_what_it_comes_to(
    turnlog: Installation, tmp_path: Path
) -> None:
    user, file = f"u-{uuid4().hex[:8]}", tmp_path / "prices.yaml"
    file.write_text(
        "name: scripted\nmodel: scripted\neffective_from: 2020-01-01T00:00:00Z\n"
        "rates: {call: 0.25, input: 0, output: 0}\n"
    )
    assert (await turnlog.run("prompt", "count me", "--user", user)).code == 0

    applied = await turnlog.run("prices", "apply", str(file))

    assert (applied.code, applied.output[:16]) == (0, "applied scripted"), applied.errors
    assert "call 0.25 USD" in (await turnlog.run("prices", "list")).output
    async with asyncio.timeout(30):
        while "0.250000 USD" not in (finished := await turnlog.run("usage", "--group-by", "user,model")).output:
            assert finished.code == 0, finished.errors
    days = ("--from", "2020-01-01", "--to", "2100-01-01")
    exported = await turnlog.run("usage", "--group-by", "user", *days, "--order-by", "cost", "--format", "csv")
    rows = [row for row in csv.DictReader(io.StringIO(exported.output)) if row["user"] == user]
    assert [(row["events"], row["cost_USD"]) for row in rows] == [("1", "0.25")], exported.errors
    compared = await turnlog.run("usage", "--group-by", "user", *days, "--compare", COLUMNS="300")
    assert "cost before" in compared.output, compared.errors


async def test_a_bad_price_file_changes_nothing_and_says_why(turnlog: Installation, tmp_path: Path) -> None:
    file = tmp_path / "prices.yaml"
    fine = "name: fine-price\neffective_from: 2020-01-01T00:00:00Z\nmarkup: 0.1\n"
    file.write_text(f"{fine}---\nname: bad\neffective_from: 2020-01-01\nrates: {{input: -1}}\n")

    finished = await turnlog.run("prices", "apply", str(file))

    assert finished.code == 2
    for field in ("document 2: ", "effective_from: ", "rates.input: "):
        assert field in finished.errors
    assert "fine-price" not in (await turnlog.run("prices", "list")).output


async def test_the_doctor_finds_everything_in_order(turnlog: Installation) -> None:
    finished = await turnlog.run("doctor")

    assert finished.code == 0, finished.output
    assert "a prompt would be answered" in finished.output
    assert "fail" not in finished.output


async def test_the_doctor_says_what_to_do(turnlog: Installation) -> None:
    finished = await turnlog.run("doctor", TURNLOG_KAFKA_BOOTSTRAP="127.0.0.1:1", TURNLOG_DATA_DIR="/dev/null/x")

    assert finished.code == 1
    for words in ("no answer at 127.0.0.1:1", "set TURNLOG_KAFKA_BOOTSTRAP", "set TURNLOG_DATA_DIR"):
        assert words in finished.output


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"TURNLOG_HTTP_PORT": "many", "TURNLOG_LOG_LEVEL": "loud"}, "TURNLOG_HTTP_PORT: "),
        ({"TURNLOG_DATA_DIR": "/dev/null/x"}, "cannot write to the data folder /dev/null/x"),
        ({"TURNLOG_KAFKA_BOOTSTRAP": "127.0.0.1:1"}, "127.0.0.1:1"),
        ({"TURNLOG_PROVIDERS": "name: not-a-list"}, "TURNLOG_PROVIDERS: expected a list of providers"),
    ],
)
async def test_what_cannot_work_is_said_in_one_line(
    fresh: Installation, settings: dict[str, str], complaint: str
) -> None:
    finished = await fresh.run("up", **settings)

    lines = [line for line in finished.errors.splitlines() if line.startswith("turnlog: ")]
    assert finished.code == 2, finished.errors
    assert len(lines) == 1
    assert complaint in lines[0]
    assert "Traceback" not in finished.errors


async def test_a_port_in_use_is_said_in_one_line(turnlog: Installation, fresh: Installation) -> None:
    finished = await fresh.run("up", TURNLOG_HTTP_PORT=turnlog.environment["TURNLOG_HTTP_PORT"])

    assert finished.code == 2
    assert "cannot listen on 127.0.0.1:" in finished.errors
    assert "set TURNLOG_HTTP_PORT to a free port" in finished.errors
    assert "Traceback" not in finished.errors


async def test_ctrl_c_ends_cleanly_and_the_next_start_finds_everything(
    shared_model: ScriptedModel, fresh: Installation, thread: str
) -> None:
    word = uuid4().hex
    for content in (f"remember {word}", f"again {word}"):
        running = await fresh.up()
        body = {"content": content, "user_id": "ada"}
        await fresh.post(f"/v1/threads/{thread}/prompts?wait=30", body, status=200)
        assert await running.interrupt() == 0, running.output
        assert "stopping ..." in running.output
        assert "Traceback" not in running.output
        assert "[error" not in running.output, running.output

    asked = [each for each in shared_model.requests if f"again {word}" in json.dumps(each)]
    assert f"remember {word}" in json.dumps(asked[-1])


async def test_stores_are_audited_and_rebuilt_while_prompts_are_answered(turnlog: Installation) -> None:
    stop = asyncio.Event()

    async def keep_prompting() -> int:
        answered = 0
        while not stop.is_set():
            for thread in [f"t-{uuid4().hex[:12]}" for _ in range(5)]:
                await turnlog.prompt(thread, '[[tool calculate {"expression": "6 * 7"}]] hello')
                answered += (await turnlog.completion(thread))["type"] == "turn.completed"
        return answered

    prompting = asyncio.create_task(keep_prompting())
    try:
        for arguments in (("audit",), ("rebuild", "memory"), ("audit",), ("rebuild", "usage"), ("audit",)):
            finished = await turnlog.run(*arguments)
            assert finished.code == 0, finished.output + finished.errors
    finally:
        stop.set()
        assert await prompting > 0
    assert (await turnlog.run("audit")).code == 0
