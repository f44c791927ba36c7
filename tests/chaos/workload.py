"""Sends the prompts of a plan, as clients do: again until they are accepted, and now and then again after that."""

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable
from itertools import cycle
from typing import Any, Self

import aiohttp
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from schemas.ids import turn_id_of
from tests.chaos.checker import Event, PromptKey
from tests.chaos.cluster import PARTITIONS, Cluster, headers_of
from tests.chaos.plan import PROMPTS_A_SECOND, Cancel, Plan, Prompt

AGAIN_SECONDS = 0.2
"""Between two tries of a client whose prompt was not accepted."""

WAIT_SECONDS = 10


class Workload:
    """What the outside world does to the installation, and what it is told."""

    def __init__(self, plan: Plan, cluster: Cluster) -> None:
        self.acknowledged: list[PromptKey] = []
        self.answers: list[Event] = []
        self._plan = plan
        self._turnlog = cluster.turnlog
        self._bootstrap = cluster.kafka.bootstrap
        self._producer = AIOKafkaProducer(bootstrap_servers=self._bootstrap, enable_idempotence=True)
        self._person: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """From now on somebody approves the calls that wait."""
        await self._producer.start()
        self._person = asyncio.create_task(self._approve())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._person is not None
        self._person.cancel()
        await asyncio.gather(self._person, return_exceptions=True)
        await self._producer.stop()

    async def run(self) -> None:
        """Returns when everything has been accepted."""
        began = time.monotonic()
        async with asyncio.TaskGroup() as clients:
            for at, action in self._actions():
                await asyncio.sleep(max(0, began + at - time.monotonic()))
                clients.create_task(action())

    async def run_on(self) -> None:
        """Sends prompts again that had their turn, for ever: what is armed late finds something to strike at."""
        for prompt in cycle(each for each in self._plan.prompts if each.prompt_id is not None and each.door == "kafka"):
            await self._submit(prompt)
            await asyncio.sleep(1 / PROMPTS_A_SECOND)

    def _actions(self) -> list[tuple[float, Callable[[], Awaitable[None]]]]:
        actions: list[tuple[float, Callable[[], Awaitable[None]]]] = []
        for prompt in self._plan.prompts:
            actions += [(at, lambda prompt=prompt: self._submit(prompt)) for at in (prompt.at, *prompt.again)]
        actions += [(cancel.at, lambda cancel=cancel: self._cancel(cancel)) for cancel in self._plan.cancels]
        return sorted(actions, key=lambda action: action[0])

    async def _submit(self, prompt: Prompt) -> None:
        if prompt.door == "kafka":
            accepted = await self._publish(_event(prompt), again=prompt.prompt_id is not None)
        else:
            await self._post(prompt)
            accepted = True
        if accepted and prompt.prompt_id is not None:
            self.acknowledged.append((prompt.tenant, prompt.thread, prompt.prompt_id))

    async def _cancel(self, cancel: Cancel) -> None:
        event: Event = {"type": "turn.cancel", "tenant_id": cancel.tenant, "thread_id": cancel.thread}
        if cancel.prompt_id is not None:
            event["turn_id"] = turn_id_of(cancel.tenant, cancel.thread, cancel.prompt_id)
        await self._publish(event, again=True)

    async def _publish(self, event: Event, *, again: bool) -> bool:
        """Whether it was accepted. What has no id can't be sent again when nobody knows what became of it."""
        while True:
            try:
                value, key = json.dumps(event).encode(), event["thread_id"].encode()
                await self._producer.send_and_wait("prompts", value, key=key)
                return True
            except KafkaError:
                if not again:
                    return False
                await asyncio.sleep(AGAIN_SECONDS)

    async def _post(self, prompt: Prompt) -> None:
        url = f"{self._turnlog.base_url}/v1/threads/{prompt.thread}/prompts"
        headers = {**headers_of(prompt.tenant), "Idempotency-Key": prompt.prompt_id or ""}
        body = {"agent": prompt.agent, "content": prompt.content}
        parameters = {"wait": str(WAIT_SECONDS)} if prompt.door == "http-wait" else {}
        while True:
            with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                async with self._turnlog.http.post(url, json=body, headers=headers, params=parameters) as response:
                    answer: Any = await response.json(content_type=None)
                    if response.status == 200:
                        self.answers.append(answer)
                    if response.status in (200, 202):
                        return
                    assert response.status == 503, answer
            await asyncio.sleep(AGAIN_SECONDS)

    async def _approve(self) -> None:
        """A person who says yes to three of four calls that wait, some of them twice."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self._bootstrap, isolation_level="read_committed")
        await consumer.start()
        try:
            consumer.assign([TopicPartition("messages", number) for number in range(PARTITIONS)])
            await consumer.seek_to_beginning()
            async for record in consumer:
                event = json.loads(record.value)
                if event["type"] == "turn.waiting":
                    for call_id in event["call_ids"]:
                        await self._decide(event, call_id)
        finally:
            await consumer.stop()

    async def _decide(self, waiting: Event, call_id: str) -> None:
        chosen = int(call_id[-2:], 16)
        said: Event = {
            "type": "tool.approval",
            "tenant_id": waiting["tenant_id"],
            "thread_id": waiting["thread_id"],
            "call_id": call_id,
            "approved": chosen % 4 != 0,
        }
        for _ in range(2 if chosen % 3 == 0 else 1):
            await self._publish(said, again=True)


def allowed_ends(plan: Plan) -> dict[PromptKey, set[str]]:
    """How each prompt with an id may end. A cancel may come too late, and one of a thread may hit any of its turns."""
    cancelled = {(cancel.tenant, cancel.thread) for cancel in plan.cancels if cancel.prompt_id is None}
    targets = {cancel.prompt_id for cancel in plan.cancels}
    allowed: dict[PromptKey, set[str]] = {}
    for prompt in plan.prompts:
        if prompt.prompt_id is not None:
            ends = {f"turn.{prompt.expected}"}
            if prompt.expected != "rejected" and (
                prompt.prompt_id in targets or (prompt.tenant, prompt.thread) in cancelled
            ):
                ends.add("turn.cancelled")
            allowed[prompt.tenant, prompt.thread, prompt.prompt_id] = ends
    return allowed


def _event(prompt: Prompt) -> Event:
    event: Event = {"tenant_id": prompt.tenant, "thread_id": prompt.thread, "content": prompt.content}
    if prompt.expected != "spoiled":
        event["agent"] = prompt.agent
    if prompt.prompt_id is not None:
        event["prompt_id"] = prompt.prompt_id
    return event
