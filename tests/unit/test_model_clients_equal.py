"""Both clients of models give the same answer, deltas and failure for the same bytes of a server, whatever they are."""

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.base import TokenCounts
from services.agents.answer import MOST_CHARACTERS
from services.agents.chat_completions import ChatCompletions
from services.agents.model import ModelAnswer, ModelFailure, ModelRequest, ModelToolCall
from services.agents.providers import Client, providers_from
from services.agents.settings import AgentsSettings
from tests.support.installation import free_ports
from tests.support.raw_server import Answer, Connection, answering, chunked, head, raw_server, whole
from tests.support.waiting import until

CLIENTS: tuple[Client, ...] = get_args(Client)

ASKED = ModelRequest(model="m", messages=[{"role": "user", "content": "hello"}], timeout_seconds=20)


@dataclass
class Deltas:
    """What a client sends on while an answer arrives."""

    pieces: list[tuple[Any, ...]] = field(default_factory=list[tuple[Any, ...]])

    def model(self, name: str) -> None:
        self.pieces.append(("model", name))

    def text(self, piece: str) -> None:
        self.pieces.append(("text", piece))

    def reasoning(self, piece: str) -> None:
        self.pieces.append(("reasoning", piece))

    def tool_arguments(self, index: int, name: str, piece: str) -> None:
        self.pieces.append(("tool", index, name, piece))


@asynccontextmanager
async def models(client: Client, base_url: str, **fields: Any) -> AsyncIterator[ChatCompletions]:
    made = ChatCompletions(providers_from(AgentsSettings(model_base_url=base_url, model_client=client, **fields), {}))
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


async def outcome(answer: Answer, request: ModelRequest = ASKED) -> tuple[ModelAnswer | ModelFailure, Deltas]:
    """What both clients make of an answer, after a look whether it is the same."""
    outcomes: list[tuple[ModelAnswer | ModelFailure, Deltas]] = []
    async with raw_server(answer) as server:
        for client in CLIENTS:
            deltas = Deltas()
            async with models(client, server.base_url) as asked:
                got = await asked.attempt(request, deltas)
            outcomes.append((_comparable(got), deltas))
    assert outcomes[0] == outcomes[1]
    return outcomes[0]


def _comparable(got: ModelAnswer | ModelFailure) -> ModelAnswer | ModelFailure:
    """Without times, and without an error's own words: these are the libraries'."""
    if isinstance(got, ModelAnswer):
        return replace(got, latency_ms=0, first_token_ms=got.first_token_ms and 0)
    own_words = got.code in ("unreachable", "stream_cut") or "can't be written" in got.message
    return replace(got, latency_ms=0, message=got.message.partition(": ")[0] if own_words else got.message)


async def answer_to(*pieces: bytes) -> tuple[ModelAnswer, Deltas]:
    got, deltas = await outcome(answering(*pieces))
    assert isinstance(got, ModelAnswer), got
    return got, deltas


async def failure_of(*pieces: bytes) -> ModelFailure:
    got, _ = await outcome(answering(*pieces))
    assert isinstance(got, ModelFailure), got
    return got


def event(value: object, *, ascii_only: bool = False) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=ascii_only).encode() + b"\n\n"


def chunk(delta: dict[str, Any], finish_reason: str | None = None, **fields: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return event({"id": "c-1", "model": "m-1", "choices": [choice], **fields})


def says(text: str) -> bytes:
    return chunk({"content": text})


STOP = chunk({}, "stop")
DONE = b"data: [DONE]\n\n"
USAGE = {
    "prompt_tokens": 3,
    "completion_tokens": 2,
    "prompt_tokens_details": {"cached_tokens": 1},
    "completion_tokens_details": {"reasoning_tokens": 1},
}
STORY = [
    b": hello\r\n\r\n",
    chunk({"role": "assistant", "content": ""}),
    chunk({"reasoning_content": "Hm, 🤔"}),
    says("Grüße, "),
    says("世界 🌍"),
    chunk({"tool_calls": [{"index": 0, "id": "a", "function": {"name": "add", "arguments": '{"ä'}}]}),
    chunk({"tool_calls": [{"index": 0, "function": {"arguments": '": 1}'}}]}),
    chunk({}, "tool_calls").replace(b"\n", b"\r\n"),
    event({"choices": [], "usage": USAGE}),
    DONE,
]


def check_story(answer: ModelAnswer) -> None:
    assert (answer.text, answer.reasoning, answer.model) == ("Grüße, 世界 🌍", "Hm, 🤔", "m-1")
    assert answer.tool_calls == (ModelToolCall("a", "add", '{"ä": 1}'),)
    assert answer.finish_reason == "tool_calls"
    assert answer.usage == TokenCounts(input_tokens=3, cached_input_tokens=1, output_tokens=2, reasoning_tokens=1)
    assert not answer.estimated


# Streams


async def test_a_stream_that_drips_byte_by_byte() -> None:
    drops = [bytes([byte]) for byte in b"".join(STORY)]
    answer, _ = await answer_to(head(200, "Transfer-Encoding: chunked"), *chunked(drops))
    check_story(answer)


@given(st.lists(st.integers(1, len(b"".join(STORY)) - 1), max_size=12), st.booleans())
@settings(max_examples=20, deadline=None)
def test_where_a_stream_is_cut_into_pieces_changes_nothing(cuts: list[int], in_chunks: bool) -> None:
    stream = b"".join(STORY)
    at = sorted({0, *cuts, len(stream)})
    pieces = [stream[begin:end] for begin, end in pairwise(at)]
    sent = [head(200, "Transfer-Encoding: chunked"), *chunked(pieces)] if in_chunks else [head(), *pieces]
    answer, _ = asyncio.run(answer_to(*sent))
    check_story(answer)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
async def test_every_ending_of_lines(end: bytes) -> None:
    answer, _ = await answer_to(head(), b"".join(STORY).replace(b"\r\n", b"\n").replace(b"\n", end))
    check_story(answer)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_a_compressed_stream(coding: str) -> None:
    body = (gzip if coding == "gzip" else zlib).compress(b"".join(STORY))
    answer, _ = await answer_to(
        head(200, f"Content-Encoding: {coding}", "Transfer-Encoding: chunked"), *chunked([body[:40], body[40:]])
    )
    check_story(answer)


async def test_a_compressed_stream_that_is_none_is_cut() -> None:
    failure = await failure_of(head(200, "Content-Encoding: gzip"), b"no gzip at all" * 10)
    assert (failure.code, failure.retryable) == ("stream_cut", True)


@pytest.mark.parametrize(
    ("end", "finish_reason"),
    [
        (STOP + DONE, "stop"),
        (STOP, "stop"),
        (DONE, "stop"),
        (b"data: [DONE]", "stop"),
        (b"data:[DONE]\n", "stop"),
        (chunk({}, "length"), "length"),
        (chunk({}, "length").rstrip(), "length"),
        (STOP + DONE + b"data: {after the end\n\n", "stop"),
    ],
)
async def test_ways_to_end_an_answer(end: bytes, finish_reason: str) -> None:
    answer, _ = await answer_to(head(), says("hello"), end)
    assert (answer.text, answer.finish_reason) == ("hello", finish_reason)


async def test_lines_that_are_no_chunks_are_passed_over() -> None:
    noise = b": ping\n\nevent: ping\n\nid: 7\nretry: 10\n\ndata:\n\ndata: \n\n"
    answer, _ = await answer_to(head(), noise, says("hello"), noise, STOP, noise, DONE)
    assert answer.text == "hello"


async def test_a_chunk_over_several_lines_of_data() -> None:
    lines = json.dumps(json.loads(says("hello")[6:]), indent=1).encode().replace(b"\n", b"\ndata: ")
    answer, _ = await answer_to(head(), b"data: " + lines + b"\n\n", STOP)
    assert answer.text == "hello"


async def test_text_of_every_kind() -> None:
    text = 'line\u2028separator\u2029 next\x85 \x1c tab\t \x0b \\ " 👩‍👩‍👧 \U0010ffff é'
    raw = event({"choices": [{"delta": {"content": text}}]})
    escaped = event({"choices": [{"delta": {"content": text}}]}, ascii_only=True)
    answer, _ = await answer_to(head(), raw, escaped, STOP)
    assert answer.text == text * 2


async def test_bytes_that_are_no_unicode_are_replaced() -> None:
    answer, _ = await answer_to(head(), says("a?c").replace(b"?", b"\xff"), STOP)
    assert answer.text == "a\ufffdc"


async def test_numbers_that_are_no_json_are_read() -> None:
    answer, _ = await answer_to(head(), chunk({"content": "hello"}, logprobs=float("nan"), seed=10**30), STOP)
    assert answer.text == "hello"


async def test_a_usage_in_a_chunk_without_choices() -> None:
    answer, _ = await answer_to(head(), says("hello"), STOP, event({"choices": [], "usage": USAGE}), DONE)
    assert (answer.usage.output_tokens, answer.estimated) == (2, False)


@pytest.mark.parametrize("fields", [{}, {"usage": None}])
async def test_an_absent_usage_is_estimated(fields: dict[str, Any]) -> None:
    answer, _ = await answer_to(head(), chunk({"content": "eight ch"}, **fields), STOP, DONE)
    assert (answer.usage, answer.estimated) == (TokenCounts(input_tokens=2, output_tokens=2), True)


async def test_fields_that_are_null() -> None:
    nulls = {"content": None, "reasoning": None, "tool_calls": None, "refusal": None}
    answer, _ = await answer_to(
        head(), chunk(nulls, error=None), event({"choices": None}), event({"choices": [{"delta": None}]}), STOP
    )
    assert (answer.text, answer.finish_reason) == ("", "stop")


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
async def test_reasoning_under_either_name(field: str) -> None:
    answer, deltas = await answer_to(head(), chunk({field: "Hm. "}), chunk({field: "Ah."}), says("Yes"), STOP)
    assert (answer.reasoning, answer.text) == ("Hm. Ah.", "Yes")
    assert deltas.pieces == [("model", "m-1"), ("reasoning", "Hm. "), ("reasoning", "Ah."), ("text", "Yes")]


def call(index: int | None, arguments: str, **fields: Any) -> dict[str, Any]:
    name = fields.pop("name", None)
    function = {"arguments": arguments, **({"name": name} if name else {})}
    return {**({} if index is None else {"index": index}), "function": function, **fields}


async def test_tool_calls_whose_pieces_are_mixed() -> None:
    answer, deltas = await answer_to(
        head(),
        chunk({"tool_calls": [call(1, "", id="b", name="look"), call(0, '{"a"', id="a", name="add")]}),
        chunk({"tool_calls": [call(0, ": 1"), call(1, "{")]}),
        chunk({"tool_calls": [call(1, "}")]}),
        chunk({"tool_calls": [call(0, "}")]}, "tool_calls"),
    )
    assert answer.tool_calls == (ModelToolCall("a", "add", '{"a": 1}'), ModelToolCall("b", "look", "{}"))
    assert ("tool", 1, "look", "") in deltas.pieces


@pytest.mark.parametrize("index", [0, None])
async def test_a_tool_call_without_an_id_gets_its_number(index: int | None) -> None:
    answer, _ = await answer_to(head(), chunk({"tool_calls": [call(index, "{}", name="add")]}, "tool_calls"))
    assert answer.tool_calls == (ModelToolCall("call_0", "add", "{}"),)


async def test_a_huge_line_is_an_answer_as_any_other() -> None:
    text = "ü" * (MOST_CHARACTERS - 1)
    answer, _ = await answer_to(head(), event({"choices": [{"delta": {"content": text}}]}, ascii_only=True), STOP)
    assert answer.text == text


# Streams that go wrong


@pytest.mark.parametrize("ended", [True, False], ids=["closed well", "cut"])
@pytest.mark.parametrize(
    "sent", [[], [says("hello")], [says("hello"), says("mid")[:20]]], ids=["before", "after a token", "in a chunk"]
)
async def test_a_stream_that_ends_too_early_is_cut(sent: list[bytes], ended: bool) -> None:
    failure = await failure_of(head(200, "Transfer-Encoding: chunked"), *chunked(sent, ended=ended))
    assert (failure.code, failure.retryable) == ("stream_cut", True)
    assert (failure.usage.output_tokens > 0) == bool(sent), "what has arrived was spent"


@pytest.mark.parametrize(
    "wrong",
    [
        b"data: {not json\n\n",
        b"data: <html></html>\n\n",
        b"data: [1, 2]\n\n",
        b"data: 7\n\n",
        b'data: "text"\n\n',
        b"data: null\n\n",
        event({"choices": "text"}),
        event({"choices": [7]}),
        event({"choices": [{"delta": {"content": ["a", "list"]}}]}),
        event({"choices": [{"delta": {"content": 7}}]}),
        event({"choices": [{"delta": {"tool_calls": [call(0, "", name="add"), {"index": "x"}]}}]}),
        event({"choices": [{"delta": {"tool_calls": [{"function": {"arguments": {"a": 1}}}]}}]}),
        event({"usage": {"prompt_tokens": -1}}),
        event({"usage": "much"}),
        event({"model": {"name": "m"}}),
        b'data: {"choices": [{"delta": {"content": "\\ud83d"}}]}\n\n',
    ],
)
async def test_a_malformed_chunk(wrong: bytes) -> None:
    failure = await failure_of(head(), says("hello"), wrong, STOP, DONE)
    assert (failure.code, failure.retryable) == ("malformed_response", True)
    assert failure.usage.output_tokens > 0


@pytest.mark.parametrize("body", [b"", b"<html>Sign in</html>", b'{"choices": []}', b"\n\n"])
async def test_a_body_that_is_no_stream(body: bytes) -> None:
    failure = await failure_of(whole(200, body, content_type="text/html"))
    assert (failure.code, failure.retryable) == ("stream_cut", True)


async def test_an_empty_answer() -> None:
    failure = await failure_of(head(), chunk({"role": "assistant"}), DONE)
    assert (failure.code, failure.retryable) == ("malformed_response", True)


@pytest.mark.parametrize("error", [{"message": "overloaded", "code": 503}, "overloaded", {"error": "overloaded"}])
async def test_an_error_within_the_stream(error: object) -> None:
    failure = await failure_of(head(), says("hello"), event({"error": error}), DONE)
    assert (failure.code, failure.retryable) == ("provider_error", True)
    assert failure.message == "the provider broke the stream off: overloaded"


async def test_an_answer_that_is_too_long_is_left_while_it_goes_on() -> None:
    failure = await failure_of(head(), *[says("x" * 100_000)] * 20)
    assert (failure.code, failure.retryable) == ("malformed_response", False)


async def test_a_line_without_an_end_is_left_while_it_goes_on() -> None:
    failure = await failure_of(head(), b"data: ", *[b"x" * 500_000] * 40)
    assert (failure.code, failure.retryable) == ("malformed_response", False)


# Refusals

CODES = {
    400: ("bad_request", False),
    401: ("auth", False),
    403: ("auth", False),
    404: ("model_not_found", False),
    408: ("provider_error", True),
    409: ("provider_error", True),
    413: ("context_length", False),
    418: ("bad_request", False),
    422: ("bad_request", False),
    429: ("rate_limited", True),
    500: ("provider_error", True),
    502: ("provider_error", True),
    503: ("provider_error", True),
    529: ("provider_error", True),
}


NO = b'{"error": {"message": "no"}}'


@pytest.mark.parametrize("status", CODES)
async def test_a_refusal_says_whether_and_when_to_ask_again(status: int) -> None:
    code, retryable = CODES[status]
    for headers, seconds in ([], None), (["Retry-After: 7"], 7.0), (["Retry-After-Ms: 250"], 0.25):
        failure = await failure_of(whole(status, NO, *headers))
        assert (failure.code, failure.retryable, failure.message) == (code, retryable, f"{status}: no")
        assert failure.retry_after_seconds == (seconds if retryable else None)
        assert failure.usage == TokenCounts()


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("retry-after: 0.5", 0.5),
        ("retry-after-ms: soon\r\nRetry-After: 3", 3.0),
        ("Retry-After: Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Retry-After: Wed, 21 Oct 2015 07:28:00 -0000", None),
        ("Retry-After: later", None),
        ("Retry-After: inf", None),
        ("Retry-After: -1", None),
    ],
)
async def test_a_wish_when_to_be_asked_again_in_all_its_forms(header: str, seconds: float | None) -> None:
    assert (await failure_of(whole(429, NO, header))).retry_after_seconds == seconds


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", ""),
        (b"  \n", ""),
        (b"<html>Bad gateway</html>", "<html>Bad gateway</html>"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b'{"error": "text"}', "text"),
        (b'{"message": "text"}', "text"),
        (b'{"error": {"message": "text", "code": 1}}', "text"),
        (b'{"detail": "text"}', "{'detail': 'text'}"),
        (b'["text"]', "['text']"),
        (b"null", "None"),
        (b'{"error": {"message"', '{"error": {"message"'),
        (b"x" * 100_000, "x" * 500),
        ('{"error": "größer"}'.encode(), "größer"),
    ],
)
async def test_a_refusal_tells_what_the_provider_said(body: bytes, message: str) -> None:
    assert (await failure_of(whole(500, body))).message == f"500: {message}"


async def test_a_refusal_that_is_compressed() -> None:
    assert (await failure_of(whole(500, gzip.compress(NO), "Content-Encoding: gzip"))).message == "500: no"


async def test_a_request_that_is_too_long_for_the_model() -> None:
    for said in (b'{"error": {"message": "maximum context length is 8192"}}', b"context_length_exceeded"):
        failure = await failure_of(whole(400, said))
        assert (failure.code, failure.retryable) == ("context_length", False)


async def test_a_refusal_that_is_cut() -> None:
    failure = await failure_of(head(500, "Content-Length: 100", content_type="application/json"), b'{"err')
    assert (failure.code, failure.retryable) == ("unreachable", True)


# Connections


async def test_an_answer_that_is_no_http() -> None:
    failure = await failure_of(b"SSH-2.0-OpenSSH_9.2\r\n")
    assert (failure.code, failure.retryable) == ("unreachable", True)


async def test_a_connection_that_is_closed_without_an_answer() -> None:
    """Also one that was reused when its server closed it: the turn asks again, and its meter knows of both."""
    failure = await failure_of()
    assert (failure.code, failure.retryable) == ("unreachable", True)


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_kept_connection_that_closes_as_it_is_used_again(client: Client) -> None:
    async def once(connection: Connection) -> bool:
        if len(connection.requests) > 1:
            return False
        await connection.send(head(200, "Transfer-Encoding: chunked"), *chunked([says("hello"), STOP, DONE]))
        return True

    async with raw_server(once) as server, models(client, server.base_url) as asked:
        outcomes = [await asked.attempt(ASKED, Deltas()) for _ in range(3)]

    assert [isinstance(each, ModelAnswer) for each in outcomes] == [True, False, True]
    [_, failure, _] = outcomes
    assert isinstance(failure, ModelFailure)
    assert (failure.code, failure.retryable) == ("unreachable", True)
    assert failure.message.endswith("does not answer: ServerDisconnectedError: Server disconnected")
    assert len(server.connections) == 2


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_stream_that_is_read_to_its_end_leaves_its_connection_for_the_next_call(client: Client) -> None:
    async def slow_end(connection: Connection) -> bool:
        await connection.send(
            head(200, "Transfer-Encoding: chunked"), *chunked([says("hello"), STOP, DONE], ended=False)
        )
        await connection.send(b"0\r\n", b"\r\n")
        return True

    async with raw_server(slow_end) as server, models(client, server.base_url) as asked:
        for _ in range(5):
            assert isinstance(await asked.attempt(ASKED, Deltas()), ModelAnswer)

    assert len(server.connections) == 1


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_stream_that_stays_open_after_its_last_word_holds_nobody_up(client: Client) -> None:
    async def endless(connection: Connection) -> None:
        await connection.send(head(200, "Transfer-Encoding: chunked"), *chunked([says("hello"), DONE], ended=False))
        await until(lambda: connection.writer.is_closing() or connection.closed, "nothing", seconds=60)

    async with raw_server(endless) as server, models(client, server.base_url) as asked:
        answer = await asked.attempt(ASKED, Deltas())

    assert isinstance(answer, ModelAnswer)
    assert answer.text == "hello"


@pytest.mark.parametrize(
    "base_url", [f"http://127.0.0.1:{free_ports(1)}/v1", "http://no-such-host.invalid/v1"], ids=["no server", "no host"]
)
async def test_nobody_there(base_url: str) -> None:
    codes: list[tuple[str, bool]] = []
    for client in CLIENTS:
        async with models(client, base_url) as asked:
            failure = await asked.attempt(ASKED, Deltas())
            assert isinstance(failure, ModelFailure)
            assert base_url in failure.message
            codes.append((failure.code, failure.retryable))
            assert await asked.reachable() == f"no model answers at {base_url}"
    assert codes == [("unreachable", True)] * 2


@pytest.mark.parametrize("sent", [[], [head()], [head(), says("hello")]], ids=["nothing", "headers", "a token"])
async def test_a_server_that_falls_silent(sent: list[bytes]) -> None:
    async def silent(connection: Connection) -> bool:
        await connection.send(*sent)
        return True

    failure, _ = await outcome(silent, replace(ASKED, timeout_seconds=0.3))
    assert isinstance(failure, ModelFailure)
    assert (failure.code, failure.retryable) == ("timeout", True)
    assert failure.message == "no answer within 0.3 s"


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("sent", [[], [head()], [head(), says("hello")]], ids=["nothing", "headers", "a token"])
async def test_a_call_that_is_given_up_closes_its_connection(client: Client, sent: list[bytes]) -> None:
    async def silent(connection: Connection) -> bool:
        await connection.send(*sent)
        return True

    async with raw_server(silent) as server, models(client, server.base_url) as asked:
        calling = asyncio.create_task(asked.attempt(ASKED, Deltas()))
        await until(lambda: bool(server.requests), "the request")
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        await until(lambda: server.connections[0].closed, "the server to notice")


# Requests


async def requests_to(path: str, **fields: Any) -> list[tuple[bytes, dict[str, str], Any]]:
    """Request line, headers and body as each client sends them."""
    seen: list[tuple[bytes, dict[str, str], Any]] = []
    async with raw_server(answering(head(), says("hello"), STOP)) as server:
        for client in CLIENTS:
            async with models(client, f"http://127.0.0.1:{server.port}{path}", **fields) as asked:
                assert isinstance(await asked.attempt(ASKED, Deltas()), ModelAnswer)
        for connection in server.connections:
            line, *headers = connection.requests[0].decode().rstrip().split("\r\n")
            named = dict(each.lower().split(": ", 1) for each in headers)
            seen.append((line.encode(), named, json.loads(connection.bodies[0])))
    return seen


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/", "/openai/deployments/a%20b/", "/v1//"])
async def test_the_base_url_is_completed_alike(path: str) -> None:
    [lean, openai] = await requests_to(path)
    assert lean[0] == openai[0]
    assert lean[0].startswith(b"POST /")
    assert lean[0].endswith(b"/chat/completions HTTP/1.1")


async def test_requests_are_alike() -> None:
    [lean, openai] = await requests_to("/v1", model_api_key="sk-secret\n")
    assert lean[2] == openai[2]
    for name in ("authorization", "accept", "content-type", "host"):
        assert lean[1][name] == openai[1][name]
    assert lean[1]["authorization"] == "bearer sk-secret"


async def test_who_pays_is_told_to_openai_alone() -> None:
    environment = {"OPENAI_ORG_ID": "org-1", "OPENAI_PROJECT_ID": "proj-1"}
    async with raw_server(answering(head(), STOP)) as server:
        for client in CLIENTS:
            own = {**environment, "OPENAI_BASE_URL": server.base_url}
            asked = ChatCompletions(providers_from(AgentsSettings(model_client=client), own))
            await asked.start()
            await asked.attempt(ASKED, Deltas())
            await asked.stop()
    for request in server.requests:
        assert b"openai-organization: org-1\r\n" in request.lower()
        assert b"openai-project: proj-1\r\n" in request.lower()


@pytest.mark.parametrize("value", [10**30, "\ud83d"], ids=["a large integer", "half a character"])
async def test_a_request_that_json_can_hardly_carry(value: object) -> None:
    got, _ = await outcome(answering(head(), says("hello"), STOP), replace(ASKED, call={"x": value}))
    if isinstance(value, int):
        assert isinstance(got, ModelAnswer)
    else:
        assert isinstance(got, ModelFailure)
        assert (got.code, got.retryable) == ("bad_request", False)


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # the openai client's transport
async def test_a_request_of_megabytes() -> None:
    long = replace(ASKED, messages=[{"role": "user", "content": "x" * 3_000_000}])
    got, _ = await outcome(answering(head(), says("hello"), STOP), long)
    assert isinstance(got, ModelAnswer)


@pytest.mark.parametrize("status", [307, 308])
async def test_a_redirect_is_followed_with_its_body(status: int) -> None:
    async def moved(connection: Connection) -> bool:
        if b"/elsewhere" in connection.requests[-1]:
            assert json.loads(connection.bodies[-1])["model"] == "m"
            await connection.send(head(200, "Transfer-Encoding: chunked"), *chunked([says("hello"), STOP, DONE]))
        else:
            await connection.send(whole(status, b"", "Location: /elsewhere"))
        return True

    got, _ = await outcome(moved)
    assert isinstance(got, ModelAnswer)


@pytest.mark.parametrize(
    ("headers", "code"),
    [(["Location: /v1/chat/completions"], "unreachable"), ([], "bad_request")],
    ids=["loop", "nowhere"],
)
async def test_a_redirect_that_leads_nowhere(headers: list[str], code: str) -> None:
    async def moved(connection: Connection) -> bool:
        await connection.send(whole(307, b"", *headers))
        return True

    got, _ = await outcome(moved)
    assert isinstance(got, ModelFailure)
    assert got.code == code


async def test_a_key_is_not_taken_along_to_another_server() -> None:
    async with raw_server(answering(head(), STOP)) as other:
        moved = answering(whole(307, b"", f"Location: http://localhost:{other.port}/v1/chat/completions"))
        got, _ = await outcome(moved)
    assert isinstance(got, ModelAnswer)
    assert len(other.requests) == 2
    assert all(b"authorization" not in request.lower() for request in other.requests)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of aiohttp's own way to read the URL's user
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
async def test_a_proxy_of_the_environment_is_asked(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with raw_server(answering(head(), says("hello"), STOP)) as proxy:
        monkeypatch.setenv(variable, f"http://user:word@127.0.0.1:{proxy.port}")
        for client in CLIENTS:
            async with models(client, "http://model.example/v1") as asked:
                assert isinstance(await asked.attempt(ASKED, Deltas()), ModelAnswer)
    for request in proxy.requests:
        assert request.startswith(b"POST http://model.example/v1/chat/completions ")
        assert b"proxy-authorization: basic dxnlcjp3b3jk" in request.lower()


async def test_a_host_that_needs_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_ports(1)}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    answer, _ = await answer_to(head(), says("hello"), STOP)
    assert answer.text == "hello"


@pytest.mark.parametrize(
    ("status", "said"),
    [(200, None), (404, None), (500, None), (401, "model provider: 401"), (403, "model provider: 403")],
)
async def test_any_answer_to_the_question_for_models_will_do_but_a_wrong_key(status: int, said: str | None) -> None:
    async with raw_server(answering(whole(status, b"<html>", content_type="text/html"))) as server:
        for client in CLIENTS:
            async with models(client, server.base_url) as asked:
                assert await asked.reachable() == said
    assert all(request.startswith(b"GET /v1/models ") for request in server.requests)


ENDS: list[tuple[list[bytes], bool]] = [
    ([head(200, "Transfer-Encoding: chunked"), *chunked([says("hello"), STOP, DONE])], True),
    ([head(200, "Transfer-Encoding: chunked"), *chunked([says("hello"), DONE], ended=False)], True),
    ([head(200, "Transfer-Encoding: chunked"), *chunked([says("hello")], ended=False)], False),
    ([head(), says("hello"), STOP], False),
    ([head(), b"data: {not json\n\n"], True),
    ([whole(500, b"{}")], True),
    ([whole(429, b"", "Retry-After: 1")], False),
    ([], False),
]
"""What a server sends, and whether it keeps the connection."""


@pytest.mark.parametrize("client", CLIENTS)
async def test_no_call_keeps_a_slot_or_a_connection(client: Client) -> None:
    """Two at a time, of many that end in every way: one that kept what it had would hold the others up for good."""

    async def in_turn(connection: Connection) -> bool:
        pieces, kept = ENDS[json.loads(connection.bodies[-1])["x"] % len(ENDS)]
        await connection.send(*pieces)
        return kept

    async with raw_server(in_turn) as server, models(client, server.base_url, model_concurrency=2) as asked:
        calls = [asyncio.create_task(asked.attempt(replace(ASKED, call={"x": x}), Deltas())) for x in range(80)]
        await until(lambda: len(server.requests) > 10, "some to be over")
        for given_up in calls[::7]:
            given_up.cancel()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)

    assert all(isinstance(each, ModelAnswer | ModelFailure | asyncio.CancelledError) for each in outcomes)
    assert not [each for each in outcomes if isinstance(each, ModelFailure) and each.code == "timeout"]
