"""The door: prompts a second that are accepted over HTTP, and the first token of an answer over SSE."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import aiohttp

from tests.bench.bench_installation import Bench, turnlog_up
from tests.bench.report import Figure
from tests.bench.turns import percentile

PROMPTS, CLIENTS = 3000, 64

TOKENS = 200
"""Answers, of ours and of the model server's in turn."""

STREAMED = "[[slow 0.01]][[say one two three four five six]]"


async def measure_prompts() -> list[Figure]:
    """No agents: what is measured ends with the prompt on the log, acknowledged."""
    async with _up("--no-agents") as (bench, _, http):
        left = iter(range(PROMPTS))
        took: list[float] = []

        async def caller() -> None:
            for _ in left:
                began = time.monotonic()
                async with http.post(_prompts(bench), json={"agent": "assistant", "content": "hello"}) as response:
                    assert response.status == 202, await response.text()
                took.append(time.monotonic() - began)

        began = time.monotonic()
        await asyncio.gather(*(caller() for _ in range(CLIENTS)))
        seconds = time.monotonic() - began
    return [
        Figure(f"{CLIENTS} callers: prompts accepted a second", PROMPTS / seconds, "/s"),
        Figure("p50", percentile(sorted(took), 50) * 1000, "ms"),
        Figure("p99", percentile(sorted(took), 99) * 1000, "ms"),
    ]


async def measure_first_token() -> list[Figure]:
    """From the request to the first piece of text, one request at a time."""
    took: dict[str, list[float]] = {"the model server itself": [], "through Turnlog": []}
    async with _up("--workers", "1") as (bench, model_url, http):
        asked = {"model": "scripted", "stream": True, "messages": [{"role": "user", "content": STREAMED}]}
        prompt = {"agent": "assistant", "content": STREAMED}
        for _ in range(TOKENS):
            seconds = await _until_text(http, f"{model_url}/chat/completions", asked, b'"content": "one"')
            took["the model server itself"].append(seconds)
            took["through Turnlog"].append(await _until_text(http, _prompts(bench), prompt, b"text.delta"))
    figures = [
        Figure(f"{name}: p{percent}", percentile(sorted(values), percent) * 1000, "ms")
        for name, values in took.items()
        for percent in (50, 99)
    ]
    alone, through = (percentile(sorted(values), 50) for values in took.values())
    return [*figures, Figure("what Turnlog adds: p50", (through - alone) * 1000, "ms")]


async def _until_text(http: aiohttp.ClientSession, url: str, body: object, text: bytes) -> float:
    """Seconds until a line has it. The rest is read too, so that the next request finds nobody at work."""
    began, seconds = time.monotonic(), None
    async with http.post(url, json=body, headers={"Accept": "text/event-stream"}) as response:
        assert response.status == 200, await response.text()
        async for line in response.content:
            if seconds is None and text in line:
                seconds = time.monotonic() - began
    assert seconds is not None, f"no {text!r} from {url}"
    return seconds


def _prompts(bench: Bench) -> str:
    return f"http://127.0.0.1:{bench.environment['TURNLOG_HTTP_PORT']}/v1/threads/t-{uuid4().hex}/prompts"


@asynccontextmanager
async def _up(*arguments: str) -> AsyncIterator[tuple[Bench, str, aiohttp.ClientSession]]:
    """`turnlog up`, the model's URL, a client."""
    async with turnlog_up(*arguments) as (bench, _, url), aiohttp.ClientSession() as http:
        yield bench, url, http
