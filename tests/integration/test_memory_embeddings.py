"""Embeddings on the real broker: a model behind HTTP, its usage on the log, and memory killed in between."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import aiohttp
import pytest
from aiohttp import web

from services.memory.embeddings import PROBE
from services.memory.settings import MemorySettings
from tests.integration.test_memory_service import ROOT, WORKER, Journal, journal, running
from tests.support.embedder import meaning_of
from tests.support.installation import free_ports
from tests.support.waiting import eventually
from tests.unit.memory.journal import added

__all__ = ["journal"]

pytestmark = pytest.mark.broker

COUNT = 40


@dataclass
class Provider:
    """An OpenAI-compatible server that charges ten tokens a text. `away`: models that it has not got now.

    A text with the word `blank` gets an empty vector. `charged`: tokens, without those for the word of nobody's.
    """

    url: str = ""
    away: set[str] = field(default_factory=set)
    charged: int = 0

    async def embeddings(self, request: web.Request) -> web.Response:
        asked = await request.json()
        if asked["model"] in self.away:
            return web.json_response({"error": "no such model"}, status=404)
        vectors = [[] if "blank" in text else meaning_of(text) for text in asked["input"]]
        if asked["input"] != [PROBE]:
            self.charged += 10 * len(vectors)
        data = [{"index": number, "embedding": vector} for number, vector in enumerate(vectors)]
        return web.json_response({"data": data, "usage": {"prompt_tokens": 10 * len(vectors)}})


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    provider = Provider()
    app = web.Application()
    app.add_routes([web.post("/v1/embeddings", provider.embeddings)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    provider.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    yield provider
    await runner.cleanup()


def nothing_waits(port: int) -> Callable[[], Awaitable[bool]]:
    """Whether every message that memory holds has its vector, as its readiness says."""

    async def check() -> bool:
        async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}/readyz") as response:
            components = (await response.json())["components"]
            return components["connections"]["ready"] and components["embeddings"]["detail"] == ""

    return check


@pytest.mark.parametrize("failpoint", ["embeddings.before_store=kill@1", "embeddings.after_store=kill@1"])
async def test_a_memory_that_is_killed_embeds_the_rest_and_bills_every_payment_once(
    journal: Journal, provider: Provider, failpoint: str
) -> None:
    settings = journal.settings.model_copy(
        update={"embedding_model": "meanings", "embedding_base_url": provider.url, "http_port": free_ports(2)}
    )
    environment = {
        "TURNLOG_KAFKA_BOOTSTRAP": settings.bootstrap,
        "TURNLOG_TOPIC_PREFIX": settings.topic_prefix,
        "TURNLOG_DATA_DIR": str(settings.data_dir),
        "TURNLOG_HTTP_PORT": str(settings.http_port),
        "TURNLOG_EMBEDDING_MODEL": "meanings",
        "TURNLOG_EMBEDDING_BASE_URL": provider.url,
        "TURNLOG_FAILPOINTS": failpoint,
    }
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", WORKER, cwd=ROOT, env=os.environ | environment)
    try:
        await journal.tell(*(added(f"m-{number}", f"car {number}") for number in range(COUNT)))
        async with asyncio.timeout(60):
            assert await process.wait() == -9
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    async with running(settings) as memory:
        await memory.until_holds("t-1", COUNT)
        await eventually(nothing_waits(settings.memory_port), "every message to have its vector", seconds=60)
    events = await journal.log.events("usage")
    assert {(each["kind"], each["model"]) for each in events} == {("embedding", "meanings")}
    facts = {each["usage_id"]: each["input_tokens"] for each in events}
    assert len({(each["usage_id"], each["input_tokens"], each["occurred_at"]) for each in events}) == len(facts)
    assert sum(facts.values()) in {10 * COUNT, provider.charged}


async def test_what_the_model_in_this_process_does_is_no_usage(journal: Journal) -> None:
    settings = journal.settings.model_copy(update={"http_port": free_ports(2)})
    async with running(settings) as memory:
        await journal.tell(*(added(f"m-{number}", f"car {number}") for number in range(COUNT)))
        await memory.until_holds("t-1", COUNT)
        await eventually(nothing_waits(settings.memory_port), "every message to have its vector", seconds=60)
    assert await journal.log.events("usage") == []


async def test_one_vector_that_cannot_be_used_keeps_none_from_the_other_messages(
    journal: Journal, provider: Provider
) -> None:
    settings = journal.settings.model_copy(
        update={"embedding_model": "meanings", "embedding_base_url": provider.url, "http_port": free_ports(2)}
    )
    await journal.tell(added("m-0", "car"), added("m-1", "a blank car"), added("m-0", "car", thread_id="t-2"))
    async with running(settings) as memory:

        async def refused() -> bool:
            detail = (await memory.readiness())["components"].get("embeddings", {}).get("detail", "")
            return detail == "1 are found by text alone"

        await eventually(refused, "readiness to say that one message has no vector", seconds=60)

        async def the_others() -> bool:
            return await found(settings, "automobile") == ["t-1 m-0", "t-2 m-0"]

        await eventually(the_others, "the vectors of the other messages", seconds=60)


async def test_meaning_is_searched_by_the_former_model_until_the_new_one_is_done(
    journal: Journal, provider: Provider
) -> None:
    settings = journal.settings.model_copy(
        update={"embedding_model": "old", "embedding_base_url": provider.url, "http_port": free_ports(2)}
    )
    await journal.tell(*(added(f"m-{number}", f"car {number}") for number in range(COUNT)))
    every = sorted(f"t-1 m-{number}" for number in range(COUNT))
    async with running(settings) as memory:
        await memory.until_holds("t-1", COUNT)
        await eventually(nothing_waits(settings.memory_port), "every message to have its vector", seconds=60)
        assert await found(settings, "automobile") == every
    provider.away.add("new")
    changed = settings.model_copy(update={"embedding_model": "new", "embedding_former_model": "old"})
    async with running(changed) as memory:

        async def counted() -> bool:
            detail = (await memory.readiness())["components"].get("embeddings", {}).get("detail", "")
            return detail.startswith(f"at most {COUNT} messages wait for a vector; ") and "no such model" in detail

        await eventually(counted, "readiness to say how many messages wait and why", seconds=60)
        assert await waiting_as_measured(changed) == COUNT
        assert await found(changed, "automobile") == every
        provider.away = set()
        await eventually(nothing_waits(changed.memory_port), "every message to have its new vector", seconds=60)
        assert await waiting_as_measured(changed) == 0
        provider.away = {"old"}
        assert await found(changed, "vehicle") == every


async def found(settings: MemorySettings, query: str) -> list[str]:
    """Messages that are found by meaning alone; none where it cannot be asked."""
    url = f"http://127.0.0.1:{settings.memory_port}/search"
    parameters = {"q": query, "mode": "vector", "score_threshold": "0.5", "limit": "1000"}
    async with aiohttp.ClientSession() as http, http.get(url, params=parameters) as response:
        items = (await response.json()).get("items", [])
    return sorted(f"{each['message']['thread_id']} {each['message']['message_id']}" for each in items)


async def waiting_as_measured(settings: MemorySettings) -> int:
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"http://127.0.0.1:{settings.memory_port}/metrics") as response,
    ):
        lines = (await response.text()).splitlines()
    [value] = [line.split()[1] for line in lines if line.startswith("turnlog_embeddings_waiting ")]
    return int(float(value))
