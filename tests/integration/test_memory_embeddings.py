"""Embeddings on the real broker: a model behind HTTP, its usage on the log, and memory killed in between."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.integration.test_memory_service import ROOT, WORKER, Journal, journal, running
from tests.support.embedder import meaning_of
from tests.support.installation import free_ports
from tests.support.waiting import eventually
from tests.unit.memory.journal import added

__all__ = ["journal"]

pytestmark = [pytest.mark.broker, pytest.mark.timeout(180)]

COUNT = 40


@pytest.fixture
async def endpoint() -> AsyncIterator[str]:
    """The base URL of an OpenAI-compatible server that charges ten tokens a text."""

    async def embeddings(request: web.Request) -> web.Response:
        texts = (await request.json())["input"]
        data = [{"index": number, "embedding": meaning_of(text)} for number, text in enumerate(texts)]
        return web.json_response({"data": data, "usage": {"prompt_tokens": 10 * len(texts)}})

    app = web.Application()
    app.add_routes([web.post("/v1/embeddings", embeddings)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    await runner.cleanup()


def nothing_waits(port: int) -> Callable[[], Awaitable[bool]]:
    """Whether every message that memory holds has its vector, as its readiness says."""

    async def check() -> bool:
        async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}/readyz") as response:
            components = (await response.json())["components"]
            return components["connections"]["ready"] and components["embeddings"]["detail"] == ""

    return check


async def spent(journal: Journal) -> list[dict[str, Any]]:
    events = await journal.log.wait_for("usage", lambda _: True, count=COUNT)
    assert {each["kind"] for each in events} == {"embedding"}
    return events


@pytest.mark.parametrize("failpoint", ["embeddings.before_store=kill@1", "embeddings.after_store=kill@1"])
async def test_a_memory_that_is_killed_embeds_the_rest_and_bills_every_message_once(
    journal: Journal, endpoint: str, failpoint: str
) -> None:
    settings = journal.settings.model_copy(
        update={"embedding_model": "meanings", "embedding_base_url": endpoint, "http_port": free_ports(2)}
    )
    environment = {
        "TURNLOG_KAFKA_BOOTSTRAP": settings.bootstrap,
        "TURNLOG_TOPIC_PREFIX": settings.topic_prefix,
        "TURNLOG_DATA_DIR": str(settings.data_dir),
        "TURNLOG_HTTP_PORT": str(settings.http_port),
        "TURNLOG_EMBEDDING_MODEL": "meanings",
        "TURNLOG_EMBEDDING_BASE_URL": endpoint,
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
        events = await spent(journal)
    facts = {each["usage_id"]: each for each in await journal.log.events("usage")}
    assert len(facts) == COUNT
    assert all(each["input_tokens"] > 0 for each in facts.values())
    assert {each["model"] for each in events} == {"meanings"}


async def test_what_the_model_in_this_process_does_is_no_usage(journal: Journal) -> None:
    settings = journal.settings.model_copy(update={"http_port": free_ports(2)})
    async with running(settings) as memory:
        await journal.tell(*(added(f"m-{number}", f"car {number}") for number in range(COUNT)))
        await memory.until_holds("t-1", COUNT)
        await eventually(nothing_waits(settings.memory_port), "every message to have its vector", seconds=60)
    assert await journal.log.events("usage") == []
