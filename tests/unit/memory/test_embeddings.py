"""What a query's vector and its cost are, and models behind HTTP and in this process."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import SecretStr

from schemas.usage import UsageRecorded
from services.memory import embeddings
from services.memory.embedder_http import HttpEmbedder
from services.memory.embedder_local import LocalEmbedder
from services.memory.embeddings import (
    Asker,
    Embedded,
    EmbedderBusyError,
    EmbedderUnavailableError,
    Embeddings,
    TextsRefusedError,
    flaw,
)
from services.memory.store import VectorSpace
from services.runtime.errors import UnavailableError
from tests.support.embedder import ScriptedEmbedder, UsageKept
from tests.support.raw_server import Answer, RawServer, raw_server, whole
from tests.support.waiting import until


async def test_the_same_query_of_a_tenant_costs_nothing_again_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "QUERIES_KEPT", 2)
    usage = UsageKept()
    asked = Embeddings(ScriptedEmbedder(), usage.record)
    for query, tenant in (("car", "a"), ("car", "a"), ("car", "b"), ("car", "a"), ("dog", "a"), ("car", "b")):
        await asked.query(query, Asker(tenant))
    assert [each.tenant_id for each in usage.events] == ["a", "b", "a", "b"]


@pytest.mark.parametrize("query", ["unreadable", "odd"])
async def test_a_query_without_a_vector_says_why(query: str) -> None:
    with pytest.raises(EmbedderUnavailableError, match="meanings"):
        await Embeddings(ScriptedEmbedder(), UsageKept().record).query(query, Asker("acme"))


@pytest.mark.parametrize("vector", [[], [0.0] * 4, [math.nan] * 4, [1e300] * 4])
async def test_a_vector_that_cannot_be_compared_is_none_of_a_query_nor_of_a_model(vector: list[float]) -> None:
    embedder = ScriptedEmbedder()
    embedder.instead["car"] = vector
    usage = UsageKept()
    with pytest.raises(EmbedderUnavailableError, match=r"meanings gave .* for the query"):
        await Embeddings(embedder, usage.record).query("car", Asker("acme"))
    assert len(usage.events) == 1
    embedder.instead[embeddings.PROBE] = vector
    with pytest.raises(EmbedderUnavailableError, match="meanings embeds nothing"):
        await Embeddings(embedder, UsageKept().record).space()


class Gated(ScriptedEmbedder):
    """Answers while its gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.cancelled = False

    async def embed(self, texts: Sequence[str]) -> Embedded:
        answer = await super().embed(texts)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return answer


async def test_a_query_does_not_wait_for_a_model_and_what_it_costs_is_told_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embeddings, "QUERY_SECONDS", 0.01)
    embedder, usage = Gated(), UsageKept()
    asked = Embeddings(embedder, usage.record)
    for _ in range(3):
        with pytest.raises(EmbedderUnavailableError, match="did not answer within"):
            await asked.query("car", Asker("acme"))
    embedder.gate.set()
    await until(lambda: usage.events != [], "the cost of the query")
    await asked.query("car", Asker("acme"))
    assert embedder.asked == [embeddings.PROBE, "car"]
    assert len(usage.events) == 1


async def test_a_query_does_not_wait_for_the_log_and_is_paid_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "QUERY_SECONDS", 0.01)
    embedder, usage, written = ScriptedEmbedder(), UsageKept(), asyncio.Event()

    async def record(events: Sequence[UsageRecorded]) -> None:
        await written.wait()
        await usage.record(events)

    asked = Embeddings(embedder, record)
    for _ in range(3):
        with pytest.raises(EmbedderUnavailableError, match="did not answer within"):
            await asked.query("car", Asker("acme"))
    written.set()
    await until(lambda: usage.events != [], "the cost of the query")
    await asked.query("car", Asker("acme"))
    assert embedder.asked.count("car") == len(usage.events) == 1


async def test_all_who_ask_at_once_ask_the_model_once() -> None:
    embedder, usage = Gated(), UsageKept()
    asked = Embeddings(embedder, usage.record)
    queries = ["car"] * 20 + ["dog"] * 20
    waiting = asyncio.gather(*(asked.query(query, Asker("acme")) for query in queries))
    await until(lambda: embedder.asked != [], "the model to be asked")
    embedder.gate.set()
    found = await waiting
    assert sorted(embedder.asked) == ["car", "dog", embeddings.PROBE]
    assert len(usage.events) == 2
    assert len({tuple(each.vector) for each in found}) == 2


async def test_no_more_queries_are_under_way_than_the_model_is_asked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "QUERIES_AT_ONCE", 2)
    embedder = Gated()
    asked = Embeddings(embedder, UsageKept().record)
    waiting = [asyncio.create_task(asked.query(query, Asker("acme"))) for query in ("car", "dog", "car")]
    await until(lambda: embedder.asked != [], "the model to be asked")
    with pytest.raises(EmbedderUnavailableError, match="2 queries wait for meanings"):
        await asked.query("rain", Asker("acme"))
    embedder.gate.set()
    await asyncio.gather(*waiting)
    await asked.query("rain", Asker("acme"))


@pytest.mark.parametrize("probed", [False, True])
async def test_what_nobody_waits_for_ends_with_the_model(monkeypatch: pytest.MonkeyPatch, probed: bool) -> None:
    monkeypatch.setattr(embeddings, "QUERY_SECONDS", 0.01)
    embedder = Gated()
    asked = Embeddings(embedder, UsageKept().record)
    if probed:
        embedder.gate.set()
        await asked.space()
        embedder.gate.clear()
    with pytest.raises(EmbedderUnavailableError):
        await asked.query("car", Asker("acme"))
    await asked.close()
    assert embedder.cancelled


async def test_a_query_whose_cost_cannot_be_written_has_no_vector_and_is_paid_once() -> None:
    embedder, usage = ScriptedEmbedder(), UsageKept()
    usage.trouble = UnavailableError("Kafka is away")
    asked = Embeddings(embedder, usage.record)
    for query in ("car", "car", "dog"):
        with pytest.raises(UnavailableError, match="Kafka"):
            await asked.query(query, Asker("acme"))
    assert embedder.asked == [embeddings.PROBE, "car"]
    usage.trouble = None
    for query in ("dog", "car"):
        await asked.query(query, Asker("acme"))
    assert embedder.asked == [embeddings.PROBE, "car", "dog"]
    assert len(usage.events) == 2


async def test_the_model_in_this_process_finds_related_words() -> None:
    embedder = LocalEmbedder()
    cat, kitten, invoice = (await embedder.embed(["the cat", "a kitten", "unpaid invoices"])).vectors
    await embedder.close()
    assert len(cat) == 256
    assert _cosine(cat, kitten) > _cosine(cat, invoice)


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True)) / math.hypot(*one) / math.hypot(*other)


@asynccontextmanager
async def served(answer: Answer, **given: Any) -> AsyncIterator[tuple[HttpEmbedder, RawServer]]:
    async with raw_server(answer) as server:
        embedder = HttpEmbedder(server.base_url, **({"model": "m-1", "api_key": None} | given))
        yield embedder, server
        await embedder.close()


def answering(status: int, body: Any, *headers: str) -> Answer:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def answer(connection: Any) -> None:
        await connection.send(whole(status, content, *headers))

    return answer


def vectors(*pairs: tuple[int, list[float]], **usage: int) -> dict[str, Any]:
    return {"data": [{"index": index, "embedding": vector} for index, vector in pairs], "usage": usage}


async def test_vectors_come_in_the_order_of_their_texts_whatever_that_of_the_answer() -> None:
    body = vectors((1, [0.5, 1]), (0, [1, 2]), prompt_tokens=7, total_tokens=7)
    async with served(answering(200, body), api_key=SecretStr("sk-1")) as (embedder, server):
        answer = await embedder.embed(["a", "b"])
    assert answer == Embedded([[1, 2], [0.5, 1]], 7)
    assert b"POST /v1/embeddings " in server.requests[0]
    assert b"Authorization: Bearer sk-1" in server.requests[0]
    sent = json.loads(server.connections[0].bodies[0])
    assert sent == {"model": "m-1", "input": ["a", "b"], "encoding_format": "float"}


@pytest.mark.parametrize("usage", [{}, {"usage": None}, {"usage": {"prompt_tokens": None, "total_tokens": 0}}])
async def test_where_a_server_counts_no_tokens_they_are_estimated(usage: dict[str, Any]) -> None:
    body = {"data": [{"index": 0, "embedding": [1.0]}]} | usage
    async with served(answering(200, body)) as (embedder, _):
        answer = await embedder.embed(["nine char"])
    assert (answer.tokens, answer.estimated) == (3, True)


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_texts_that_a_server_never_takes_are_refused(status: int) -> None:
    async with served(answering(status, b"maximum context length is 8192")) as (embedder, _):
        with pytest.raises(TextsRefusedError, match="8192"):
            await embedder.embed(["a"])


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [(429, ["Retry-After: 7"], 7), (503, [], None), (401, [], None), (404, [], None), (500, ["Retry-After: x"], None)],
)
async def test_a_server_that_does_not_serve_now_is_asked_again_when_it_says(
    status: int, headers: list[str], seconds: float | None
) -> None:
    async with served(answering(status, b"no", *headers)) as (embedder, _):
        with pytest.raises(EmbedderUnavailableError, match=str(status)) as raised:
            await embedder.embed(["a"])
    assert raised.value.retry_after_seconds == seconds


@pytest.mark.parametrize(("status", "busy"), [(429, True), (503, False), (500, False)])
async def test_only_a_server_that_says_too_many_requests_is_busy(status: int, busy: bool) -> None:
    async with served(answering(status, b"no")) as (embedder, _):
        with pytest.raises(EmbedderUnavailableError) as raised:
            await embedder.embed(["a"])
    assert isinstance(raised.value, EmbedderBusyError) == busy


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        {"data": []},
        {"data": [{"embedding": [1.0]}]},
        {"model": "m-1"},
        vectors((0, [1.0]), (1, [1.0])),
        vectors((1, [1.0])),
        vectors((-1, [1.0])),
        b'{"data": [{"index": 0, "embedding": "AAAA"}]}',
    ],
)
async def test_an_answer_that_holds_no_vectors_says_so(body: Any) -> None:
    async with served(answering(200, body)) as (embedder, _):
        with pytest.raises(EmbedderUnavailableError, match="answered"):
            await embedder.embed(["a"])


async def test_a_server_that_counts_no_texts_gives_none_the_vector_of_another() -> None:
    body = vectors((0, [1.0]), (0, [2.0]))
    async with served(answering(200, body)) as (embedder, _):
        with pytest.raises(EmbedderUnavailableError, match="index 0 2x for 2 texts"):
            await embedder.embed(["a", "b"])


@pytest.mark.parametrize(
    "item",
    [
        b'{"index": 1, "embedding": []}',
        b'{"index": 1, "embedding": null}',
        b'{"index": 1, "embedding": [NaN, 1]}',
        b'{"index": 1, "embedding": [null, 1]}',
        b'{"index": 1, "embedding": [1, -Infinity]}',
        b'{"index": 1, "embedding": [1e400, 1]}',
        b'{"index": 1, "embedding": [1e300, 1e300]}',
        b'{"index": 1, "embedding": [0, 0.0]}',
        b'{"index": 1}',
        b'{"embedding": [1, 2]}',
        b"",
    ],
)
async def test_one_unusable_vector_of_an_answer_takes_nothing_from_the_others(item: bytes) -> None:
    items = [b'{"index": 2, "embedding": [3, 4]}', item, b'{"index": 0, "embedding": [1, 2]}']
    async with served(answering(200, b'{"data": [' + b",".join(filter(None, items)) + b"]}")) as (embedder, _):
        first, unusable, last = (await embedder.embed(["a", "b", "c"])).vectors
    assert (first, last) == ([1, 2], [3, 4])
    space = VectorSpace("m-1", 2)
    assert flaw(first, space) is None
    assert flaw(unusable, space)


async def test_a_server_that_is_away_is_named() -> None:
    async with served(answering(200, b"")) as (_, server):
        url = server.base_url
    embedder = HttpEmbedder(url, model="m", api_key=None)
    with pytest.raises(EmbedderUnavailableError, match=url):
        await embedder.embed(["a"])
    await embedder.close()
