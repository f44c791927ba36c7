"""Each client of models against a server that streams, calls tools, breaks off, refuses and hangs."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, get_args
from uuid import uuid4

import pytest

from services.agents.answer import MOST_CHARACTERS
from services.agents.chat_completions import ChatCompletions
from services.agents.model import ModelAnswer, ModelFailure, ModelRequest
from services.agents.providers import Client, providers_from
from services.agents.settings import AgentsSettings
from services.runtime.errors import ConfigurationError
from tests.scripted_model.server import ScriptedModel
from tests.support.installation import free_ports
from tests.support.waiting import until


class Pieces:
    """What a client sends on while an answer arrives."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.arguments: dict[int, str] = {}
        self.names: dict[int, str] = {}

    def model(self, name: str) -> None: ...

    def text(self, piece: str) -> None:
        self.words.append(piece)

    def reasoning(self, piece: str) -> None:
        raise AssertionError(piece)

    def tool_arguments(self, index: int, name: str, piece: str) -> None:
        self.names[index] = name or self.names[index]
        self.arguments[index] = self.arguments.get(index, "") + piece


@pytest.fixture(params=get_args(Client))
def kind(request: pytest.FixtureRequest) -> Client:
    return request.param


@pytest.fixture
async def client(model: ScriptedModel, kind: Client) -> AsyncIterator[ChatCompletions]:
    settings = AgentsSettings(model_base_url=model.base_url, model_client=kind)
    made = ChatCompletions(providers_from(settings, {}))
    await made.start()
    yield made
    await made.stop()


def asking(content: str, **fields: Any) -> ModelRequest:
    """The id makes each request its own, so that failures are counted from the first attempt."""
    return ModelRequest(
        **{"model": "m", "messages": [{"role": "user", "content": f"{content} {uuid4().hex}"}], **fields}
    )


async def test_an_answer_comes_in_pieces_and_as_a_whole(client: ChatCompletions) -> None:
    pieces = Pieces()

    answer = await client.attempt(asking("[[say one two three]]"), pieces)

    assert isinstance(answer, ModelAnswer)
    assert (answer.text, answer.finish_reason, answer.tool_calls) == ("one two three", "stop", ())
    assert "".join(pieces.words) == "one two three"
    assert len(pieces.words) == 3
    assert answer.usage.output_tokens == 3
    assert not answer.estimated
    assert answer.first_token_ms is not None


async def test_parallel_tool_calls_are_put_together_from_their_pieces(client: ChatCompletions) -> None:
    pieces = Pieces()

    answer = await client.attempt(asking('[[tool add {"a": 1}]][[tool look {"city": "Paris"}]]'), pieces)

    assert isinstance(answer, ModelAnswer)
    assert [(each.name, each.arguments) for each in answer.tool_calls] == [
        ("add", '{"a": 1}'),
        ("look", '{"city": "Paris"}'),
    ]
    assert answer.finish_reason == "tool_calls"
    assert (pieces.names, pieces.arguments) == ({0: "add", 1: "look"}, {0: '{"a": 1}', 1: '{"city": "Paris"}'})


@pytest.mark.parametrize(
    ("directive", "code", "retryable", "retry_after"),
    [
        ("[[status 429 1 retry-after=7]]", "rate_limited", True, 7.0),
        ("[[status 500 1]]", "provider_error", True, None),
        ("[[status 503 1 retry-after=2]]", "provider_error", True, 2.0),
        ("[[status 401 1]]", "auth", False, None),
        ("[[status 404 1]]", "model_not_found", False, None),
        ("[[status 400 1]]", "bad_request", False, None),
        ("[[cut 1]][[long 50]]", "stream_cut", True, None),
        ("[[malformed 1]][[long 50]]", "malformed_response", True, None),
    ],
)
async def test_a_failure_says_whether_and_when_to_ask_again(
    client: ChatCompletions, directive: str, code: str, retryable: bool, retry_after: float | None
) -> None:
    request = asking(directive)

    failure = await client.attempt(request, Pieces())
    again = await client.attempt(request, Pieces())

    assert isinstance(failure, ModelFailure)
    assert (failure.code, failure.retryable, failure.retry_after_seconds) == (code, retryable, retry_after)
    assert isinstance(again, ModelAnswer), "the client itself never asks twice"


async def test_what_arrived_before_a_stream_broke_off_is_counted(client: ChatCompletions) -> None:
    failure = await client.attempt(asking("[[cut 1]][[long 50]]"), Pieces())

    assert isinstance(failure, ModelFailure)
    assert failure.usage.output_tokens > 0


async def test_a_model_that_hangs_is_given_up_in_time(client: ChatCompletions) -> None:
    failure = await client.attempt(asking("[[think 60]]", timeout_seconds=0.2), Pieces())

    assert isinstance(failure, ModelFailure)
    assert (failure.code, failure.retryable) == ("timeout", True)


async def test_waiting_for_a_slot_is_no_part_of_the_time_that_a_call_may_take(
    model: ScriptedModel, kind: Client
) -> None:
    """Four calls, one at a time: the last one waits longer than a call may take."""
    settings = AgentsSettings(model_base_url=model.base_url, model_client=kind, model_concurrency=1)
    client = ChatCompletions(providers_from(settings, {}))
    await client.start()
    try:
        answers = await asyncio.gather(
            *(client.attempt(asking("[[think 0.6]]", timeout_seconds=1.5), Pieces()) for _ in range(4))
        )
    finally:
        await client.stop()

    assert all(isinstance(each, ModelAnswer) for each in answers)


async def test_giving_up_a_call_closes_its_stream(client: ChatCompletions, model: ScriptedModel) -> None:
    pieces = Pieces()
    call = asyncio.create_task(client.attempt(asking("[[long 5000]][[slow 0.01]]"), pieces))
    await until(lambda: len(pieces.words) > 2, "the stream to begin")

    call.cancel()
    await asyncio.gather(call, return_exceptions=True)

    await until(lambda: model.streams_cancelled == 1, "the model to notice")


async def test_nobody_there_is_a_failure_that_may_pass(kind: Client) -> None:
    url = f"http://127.0.0.1:{free_ports(1)}/v1"
    client = ChatCompletions(providers_from(AgentsSettings(model_base_url=url, model_client=kind), {}))
    await client.start()
    try:
        failure = await client.attempt(asking("hello"), Pieces())
        why = await client.reachable()
    finally:
        await client.stop()

    assert isinstance(failure, ModelFailure)
    assert (failure.code, failure.retryable) == ("unreachable", True)
    assert why is not None
    assert url in why


async def test_what_the_agent_asks_for_reaches_the_model(client: ChatCompletions, model: ScriptedModel) -> None:
    tool = {"type": "function", "function": {"name": "add", "description": "", "parameters": {"type": "object"}}}
    request = asking(
        "hello",
        call={"temperature": 0.5, "max_output_tokens": 9, "logit_bias": {"1": 2}},
        tools=[tool],
        response_schema={"type": "object"},
    )

    await client.attempt(request, Pieces())

    [body] = model.requests
    assert (body["temperature"], body["max_tokens"], body["logit_bias"]) == (0.5, 9, {"1": 2})
    assert body["tools"] == [tool]
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert body["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    "base_url",
    [
        "host/v1",
        "ftp://host/v1",
        "http://",
        "http://[host/v1",
        "http://host:99999/v1",
        "http://a:b@host",
        "http://h?v=1",
    ],
)
def test_a_base_url_that_is_none_is_told_at_the_start(base_url: str) -> None:
    with pytest.raises(ConfigurationError, match="base URL of a provider"):
        providers_from(AgentsSettings(model_base_url=base_url), {})


@pytest.mark.parametrize("key", ["sk-\x00", "sk-a\nb", "sk-ü"])
def test_a_key_that_cannot_be_sent_is_told_at_the_start_and_not_shown(key: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        providers_from(AgentsSettings(), {"OPENAI_API_KEY": key})

    assert "key of provider openai" in str(caught.value)
    assert key not in str(caught.value)


async def test_a_key_is_sent_and_never_shown(model: ScriptedModel) -> None:
    settings = AgentsSettings.model_validate({"model_base_url": model.base_url, "model_api_key": "sk-secret"})
    providers = providers_from(settings, {})

    assert "sk-secret" not in repr(settings)
    assert "sk-secret" not in repr(providers.default)


async def test_an_answer_that_no_record_could_carry_is_a_failure_that_is_not_tried_again(
    client: ChatCompletions,
) -> None:
    failure = await client.attempt(asking(f"[[say {'x' * (MOST_CHARACTERS + 1)}]]"), Pieces())

    assert isinstance(failure, ModelFailure)
    assert (failure.code, failure.retryable) == ("malformed_response", False)
    assert failure.usage.output_tokens > 0, "what has arrived was spent"
