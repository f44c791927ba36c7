"""OpenAI's own client against the gateway: a model is an agent's name."""

from collections.abc import AsyncIterator

import openai
import pytest
import pytest_asyncio

from tests.support.installation import Installation

pytestmark = [pytest.mark.broker, pytest.mark.asyncio(loop_scope="session")]


@pytest_asyncio.fixture(loop_scope="session")
async def client(turnlog: Installation) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{turnlog.base_url}/v1", api_key="none", max_retries=0) as made:
        yield made


async def test_a_chat_completion_is_an_agents_answer(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="assistant", messages=[{"role": "user", "content": "hello"}])

    assert answer.choices[0].message.content == "You said: hello"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


async def test_a_chat_completion_is_streamed(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="assistant", messages=[{"role": "user", "content": "[[long 30]][[slow 0.02]]"}], stream=True
    )

    pieces = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]

    assert "".join(pieces) == " ".join(f"word{number}" for number in range(30))
    assert len([piece for piece in pieces if piece]) > 2


async def test_the_agents_tools_run_behind_the_protocol(client: openai.AsyncOpenAI) -> None:
    content = '[[tool calculate {"expression": "6 * 7"}]] please'

    answer = await client.chat.completions.create(model="assistant", messages=[{"role": "user", "content": content}])

    assert answer.choices[0].message.content == "You said: please Result: 42"


async def test_earlier_messages_of_the_request_are_the_context(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="assistant",
        messages=[
            {"role": "user", "content": "my name is Ada"},
            {"role": "assistant", "content": "hello Ada"},
            {"role": "user", "content": "what is it?"},
        ],
    )

    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 10, "all three messages were seen by the model"


async def test_the_models_are_the_agents(client: openai.AsyncOpenAI) -> None:
    assert "assistant" in [each.id async for each in client.models.list()]


async def test_an_unknown_model_is_refused(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        await client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "hello"}])

    assert refused.value.status_code in (400, 404)
