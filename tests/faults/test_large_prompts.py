"""Prompts at the limit of a record's size, and a thread whose past is many megabytes."""

import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from schemas.topics import MAX_EVENT_BYTES
from tests.scripted_model.server import ScriptedModel
from tests.support.installation import Installation, installation

pytestmark = [pytest.mark.broker, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def model() -> AsyncIterator[ScriptedModel]:
    async with ScriptedModel() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def turnlog(
    kafka: str, model: ScriptedModel, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Installation]:
    folder = tmp_path_factory.mktemp("large")
    async with installation(folder, model_url=model.base_url, kafka=kafka, prefix="large.") as made:
        up = await made.up()
        yield made
        assert await up.interrupt() == 0, up.output


def of_size(thread: str, size: int) -> str:
    """A content that makes the record of its prompt exactly so many bytes."""
    empty = json.dumps({"thread_id": thread, "agent": "assistant", "content": ""})
    return "[[say ok]]".ljust(size - len(empty), "x")


async def test_a_prompt_of_exactly_the_limit_is_answered_and_remembered(turnlog: Installation) -> None:
    content = of_size("just-fits", MAX_EVENT_BYTES)
    await turnlog.prompt("just-fits", content)

    assert (await turnlog.completion("just-fits"))["text"] == "ok"
    messages = await turnlog.messages("just-fits", count=2)
    assert messages[0]["text"] == content


async def test_a_byte_more_is_a_dead_letter_and_the_next_prompt_goes_on(turnlog: Installation) -> None:
    await turnlog.prompt("too-large", of_size("too-large", MAX_EVENT_BYTES + 1))
    await turnlog.prompt("too-large", "[[say small]]")

    assert (await turnlog.completion("too-large"))["text"] == "small"
    [letter] = await turnlog.log.wait_for("dead-letters", lambda event: event["reason"] == "too_large")
    assert letter["topic"].endswith("prompts")


async def test_a_past_of_many_megabytes_reaches_the_model_whole(turnlog: Installation, model: ScriptedModel) -> None:
    for number in range(1, 9):
        await turnlog.prompt("long-past", of_size("long-past", MAX_EVENT_BYTES))
        await turnlog.completion("long-past", count=number)

    sent = max(sum(len(each["content"]) for each in request["messages"]) for request in model.requests)
    assert sent > 8 * (MAX_EVENT_BYTES - 1_000)
