"""Context handlers over HTTP and as functions: what they get, what becomes of their answer, and how they fail."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from schemas.http import ContextHandlerRequest, ContextMessage, MessageView
from schemas.ids import EPOCH
from schemas.parts import ImagePart, TextPart
from services.agents.context_handlers import ContextHandlers
from services.agents.context_hook import MAX_ANSWER_BYTES
from services.agents.failures import CallFailed
from services.runtime.errors import ConfigurationError

MESSAGE = MessageView(
    message_id="m-1",
    thread_id="t-1",
    position=7,
    role="user",
    parts=[TextPart(text="my card is 1234")],
    text="my card is 1234",
    created_at=EPOCH,
)
REQUEST = ContextHandlerRequest(
    thread_id="t-1",
    turn_id="turn-1",
    agent="assistant",
    agent_version="0123456789ab",
    instructions="Be brief.",
    messages=[ContextMessage(message=MESSAGE, reason="recent")],
)


def redacts(request: ContextHandlerRequest) -> Any:
    said = [(each.message.role, each.message.text.replace("1234", "****")) for each in request.messages]
    return {"messages": [{"role": role, "content": text} for role, text in said]}


async def redacts_later(request: ContextHandlerRequest) -> Any:
    return redacts(request)


class Redacting:
    async def __call__(self, request: ContextHandlerRequest) -> Any:
        return redacts(request)


an_object = Redacting()


def decorated(request: ContextHandlerRequest) -> Any:
    return redacts_later(request)


async def raises_later(request: ContextHandlerRequest) -> Any:
    return raises(request)


def decorated_raises(request: ContextHandlerRequest) -> Any:
    return raises_later(request)


def raises(request: ContextHandlerRequest) -> Any:
    raise RuntimeError("no such customer")


def finds_nothing(request: ContextHandlerRequest) -> Any:
    return next(each for each in request.messages if each.reason == "hit")


def runs_out_of_time(request: ContextHandlerRequest) -> Any:
    raise TimeoutError("no such customer within 5 s")


async def awaits_what_was_cancelled(request: ContextHandlerRequest) -> Any:
    asking = asyncio.create_task(asyncio.sleep(10))
    asking.cancel()
    await asking


def sleeps(request: ContextHandlerRequest) -> Any:
    time.sleep(0.5)


NO_FUNCTION = 7


@asynccontextmanager
async def handlers(*rows: Mapping[str, Any], **environment: str) -> AsyncIterator[ContextHandlers]:
    made = ContextHandlers(json.dumps([{"name": "it", **row} for row in rows]), environment)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


@pytest.fixture
async def hook() -> AsyncIterator[TestServer]:
    async def answer(request: web.Request) -> web.Response:
        asked = await request.json()
        assert request.headers["Idempotency-Key"] == "turn-1"
        match request.match_info["how"]:
            case "echo":
                key = request.headers.get("Authorization", "no key")
                text = f"{asked['messages'][0]['message']['text']}, {asked['instructions']} {key}"
                content = [{"type": "text", "text": text}, {"type": "image", "url": "https://example.com/a.png"}]
                return web.json_response({"messages": [{"role": "system", "content": content}]})
            case "away":
                raise web.HTTPFound("/echo")
            case "large":
                return web.Response(body=b" " * (MAX_ANSWER_BYTES + 1))
            case "list":
                return web.json_response([])
            case "text":
                return web.Response(text="hello")
            case "deep":
                return web.Response(text="[" * 100_000)
            case "half":
                return web.Response(text='{"messages": [{"role": "user", "content": "half a smile \\ud83d"}]}')
            case status:
                return web.Response(status=int(status), text="why")

    app = web.Application()
    app.router.add_post("/{how}", answer)
    async with TestServer(app) as server:
        yield server


@pytest.mark.parametrize("function", ["redacts", "redacts_later", "an_object", "decorated"])
async def test_a_function_says_what_the_model_sees(function: str) -> None:
    async with handlers({"entry_point": f"{__name__}:{function}"}) as made:
        [message] = await made.handle("it", REQUEST)
    assert (message.role, message.text) == ("user", "my card is ****")


async def test_a_hook_is_sent_the_messages_with_their_reasons_and_its_key(hook: TestServer) -> None:
    async with handlers({"url": str(hook.make_url("/echo")), "api_key_env": "HOOK_KEY"}, HOOK_KEY="s3cret\n") as made:
        [message] = await made.handle("it", REQUEST)
    assert (message.role, message.text) == ("system", "my card is 1234, Be brief. Bearer s3cret")
    assert isinstance(message.parts[1], ImagePart)


async def failure(made: ContextHandlers, name: str = "it") -> CallFailed:
    with pytest.raises(CallFailed) as raised:
        await made.handle(name, REQUEST)
    assert raised.value.code == "context_handler"
    return raised.value


@pytest.mark.parametrize(
    ("how", "retryable", "said"),
    [
        ("503", True, "answered 503: why"),
        ("429", True, "answered 429"),
        ("404", False, "answered 404"),
        ("away", False, "answered 302"),
        ("large", False, "more than"),
        ("list", False, "expected messages with role and content"),
        ("text", False, "is not JSON"),
        ("deep", False, "is not JSON"),
        ("half", False, "is not JSON"),
    ],
)
async def test_a_hook_that_answers_something_else_is_a_failure(
    hook: TestServer, how: str, retryable: bool, said: str
) -> None:
    async with handlers({"url": str(hook.make_url(f"/{how}"))}) as made:
        failed = await failure(made)
    assert failed.retryable == retryable
    assert said in failed.message


async def test_nobody_there_is_a_failure_that_may_pass() -> None:
    async with handlers({"url": f"http://127.0.0.1:{unused_port()}/"}) as made:
        assert (await failure(made)).retryable


async def test_a_function_that_raises_or_takes_too_long_is_a_failure() -> None:
    for function, said in (
        ("raises", "no such customer"),
        ("decorated_raises", "no such customer"),
        ("runs_out_of_time", "no such customer within 5 s"),
        ("finds_nothing", "StopIteration"),
        ("awaits_what_was_cancelled", "cancelled by itself"),
    ):
        async with handlers({"entry_point": f"{__name__}:{function}", "timeout_seconds": 5}) as made:
            assert said in (await failure(made)).message
    async with handlers({"entry_point": f"{__name__}:sleeps", "timeout_seconds": 0.01}) as made:
        failed = await failure(made)
    assert (failed.retryable, "within 0.01 s" in failed.message) == (True, True)


async def test_a_name_that_the_worker_does_not_know_is_a_failure_that_says_which_it_knows() -> None:
    async with handlers({"entry_point": f"{__name__}:redacts"}) as made:
        failed = await failure(made, "other")
    assert (failed.retryable, "it has: it" in failed.message) == (False, True)


@pytest.mark.parametrize(
    "table",
    [
        "{",
        "[1]",
        '[{"name": "it"}]',
        '[{"name": "it", "url": "ftp://example.com"}]',
        '[{"name": "it", "url": "http://example.com", "entry_point": "a:b"}]',
        '[{"name": "it", "entry_point": "no.such.module:function"}]',
        f'[{{"name": "it", "entry_point": "{__name__}:NO_FUNCTION"}}]',
        '[{"name": "it", "entry_point": "os"}]',
    ],
)
def test_a_table_that_can_never_work_stops_the_worker_at_its_start(table: str) -> None:
    with pytest.raises(ConfigurationError, match="TURNLOG_CONTEXT_HANDLERS"):
        ContextHandlers(table)
