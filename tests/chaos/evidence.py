"""Gathers what a run has left: the topics by a plain Kafka client, the projections over HTTP."""

import asyncio
import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from tests.chaos.checker import Event, Evidence, Thread
from tests.chaos.history import describe
from tests.support.log import Log
from tests.support.waiting import eventually

TOPICS = {
    "prompts": "prompts",
    "messages": "messages",
    "completions": "completions",
    "usage": "usage",
    "tool_calls": "tool-calls",
    "tool_results": "tool-results",
    "dead_letters": "dead-letters",
}

SETTLE_SECONDS = 120
"""For everything that is open to end once nothing is killed any more."""

CATCH_UP_SECONDS = 60
AT_ONCE = 8
PAGE = 50


async def until_settled(log: Log, *, minutes: float) -> None:
    """Returns when every prompt on the log has ended. Says nothing of how: that is the checker's business."""
    evidence = Evidence(prompts=await log.events("prompts"))
    waiting = {thread: len(prompts) for thread, prompts in evidence.submitted.items()}
    deadline = time.monotonic() + SETTLE_SECONDS * max(1, minutes / 4)
    while True:
        ended: dict[Thread, set[str]] = {}
        for event in await log.events("completions"):
            ended.setdefault((event.get("tenant_id", "default"), event["thread_id"]), set()).add(event["turn_id"])
        missing = {
            thread: count - len(ended.get(thread, ()))
            for thread, count in waiting.items()
            if len(ended.get(thread, ())) < count
        }
        if not missing:
            return
        if time.monotonic() > deadline:
            seen = Evidence(messages=await log.events("messages"))
            shown = "\n".join(
                f"{thread}:\n{describe(seen.journals.get(thread, [])[-8:])}" for thread in list(missing)[:5]
            )
            raise AssertionError(f"{sum(missing.values())} prompts of {len(missing)} threads never ended:\n{shown}")
        await asyncio.sleep(1)


async def gather(log: Log, gateway: "Gateway", executions: Path) -> Evidence:
    """Topics first: the projections must then have what they say."""
    topics: dict[str, Sequence[Event]] = {name: await log.events(topic) for name, topic in TOPICS.items()}
    evidence = Evidence(**topics)
    evidence.turns = latest(await log.events("turns"))
    lines = executions.read_text().splitlines() if executions.exists() else []
    evidence.executions = [json.loads(line) for line in lines]
    evidence.remembered = await gateway.threads(list(evidence.journals))
    tenants = sorted({tenant for tenant, _ in evidence.submitted})
    expected = len({event["usage_id"] for event in evidence.usage})
    evidence.metered = await gateway.usage(tenants, expected=expected)
    return evidence


def latest(records: Sequence[Event]) -> dict[str, Event]:
    """The last value of each key; a record without a value takes its key away."""
    values: dict[str, Event] = {}
    for record in records:
        key = record["record_key"]
        if "type" in record:
            values[key] = record
        else:
            values.pop(key, None)
    return values


class Gateway:
    """Reads what a client of the public HTTP interface can read, page by page."""

    def __init__(self, http: aiohttp.ClientSession, base_url: str) -> None:
        self._http = http
        self._base_url = base_url
        self._turn = asyncio.Semaphore(AT_ONCE)

    async def threads(self, threads: Sequence[Thread]) -> dict[Thread, Sequence[Event]]:
        """The messages of each thread. The gateway itself waits until memory has what the gateway has seen."""
        messages = await asyncio.gather(*(self._messages(*thread) for thread in threads))
        return dict(zip(threads, messages, strict=True))

    async def usage(self, tenants: Sequence[str], *, expected: int) -> list[Event]:
        """Usage by turn, as soon as ClickHouse counts as many events as there are, or at the end of the time."""
        rows: list[Event] = []

        async def complete() -> bool:
            rows[:] = [row for tenant in tenants for row in await self._usage(tenant)]
            return sum(row["events"] for row in rows) >= expected

        with contextlib.suppress(AssertionError):  # the checker says what is missing
            await eventually(complete, "usage to catch up", seconds=CATCH_UP_SECONDS)
        return rows

    async def _messages(self, tenant: str, thread_id: str) -> Sequence[Event]:
        async with self._turn:
            return await self._pages(f"/v1/threads/{thread_id}/messages", tenant, {"limit": str(PAGE)})

    async def _usage(self, tenant: str) -> list[Event]:
        parameters = {"group_by": "thread,turn,kind,tool,outcome", "limit": "1000"}
        return [{**row, "tenant_id": tenant} for row in await self._pages("/v1/usage", tenant, parameters)]

    async def _pages(self, path: str, tenant: str, parameters: Mapping[str, str]) -> list[Event]:
        items: list[Event] = []
        cursor: str | None = None
        while True:
            asked = {**parameters, **({"cursor": cursor} if cursor else {})}

            async def page(asked: Mapping[str, str] = asked) -> Any:
                headers = {"X-Tenant-Id": tenant}
                async with self._http.get(self._base_url + path, params=asked, headers=headers) as response:
                    body = await response.json(content_type=None)
                    assert response.status in (200, 503), body  # 503: memory is behind what the gateway has seen
                    return body if response.status == 200 else None

            answer = await eventually(page, f"an answer to {path}", seconds=CATCH_UP_SECONDS)
            items += answer["items"]
            cursor = answer["next_cursor"]
            if cursor is None:
                return items
