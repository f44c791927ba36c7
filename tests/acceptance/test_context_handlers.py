"""An agent whose past is what a handler of the installation says."""

import json

import pytest

from tests.support.installation import Installation

pytestmark = [pytest.mark.broker, pytest.mark.asyncio(loop_scope="session")]


async def test_a_model_sees_what_the_handler_of_its_agent_says_and_nothing_where_there_is_none(
    fresh: Installation, thread: str
) -> None:
    table = [{"name": "long", "entry_point": "tests.acceptance.context_functions:five_hundred_words"}]
    await fresh.up(TURNLOG_CONTEXT_HANDLERS=json.dumps(table))
    for name, handler in (("talker", "long"), ("lost", "nowhere")):
        await fresh.post("/v1/agents", {"name": name, "context_handler": handler}, status=201)
    path = f"/v1/threads/{thread}/prompts?wait=60"
    completed = await fresh.post(path, {"content": "hello", "agent": "talker"}, status=200)
    assert completed["usage"]["input_tokens"] == 501
    failed = await fresh.post(path, {"content": "hello", "agent": "lost"}, status=200)
    assert (failed["type"], failed["error"]["code"]) == ("turn.failed", "context_handler")
    assert "it has: long" in failed["error"]["message"]
