"""One model call, without Kafka: what the lean client costs and what the `openai` client does.

The two answers of a one-tool turn, from the scripted model in a process of its own: a tool call, and 200 characters in
some 40 chunks.
"""

import asyncio
import time
from collections.abc import Sequence
from itertools import product
from typing import get_args

from services.agents.chat_completions import ChatCompletions
from services.agents.model import ModelAnswer, ModelRequest
from services.agents.providers import Client, providers_from
from services.agents.settings import AgentsSettings
from tests.bench.bench_installation import scripted_model
from tests.bench.report import Figure
from tests.bench.turns import ANSWER

ANSWERS = {
    "a tool call": '[[tool calculate {"expression": "6 * 7"}]]',
    "200 characters": f"[[say {ANSWER.strip()}]]",
}

IN_FLIGHT = (1, 64)

CALLS, WARM_UP = 1000, 100

ROUNDS = 3
"""Of the clients in turn, so that what else the machine does meets both; the median counts."""


class Silent:
    """Wants no deltas."""

    def model(self, name: str) -> None: ...

    def text(self, piece: str) -> None: ...

    def reasoning(self, piece: str) -> None: ...

    def tool_arguments(self, index: int, name: str, piece: str) -> None: ...


async def measure() -> list[Figure]:
    figures: list[Figure] = []
    async with scripted_model() as url:
        for (what, content), in_flight in product(ANSWERS.items(), IN_FLIGHT):
            runs: dict[Client, list[tuple[float, float]]] = {client: [] for client in get_args(Client)}
            for _ in range(ROUNDS):
                for client, taken in runs.items():
                    taken.append(await _run(url, client, content, in_flight=in_flight))
            for client, taken in runs.items():
                cpu, wall = _medians(taken)
                figures += [
                    Figure(f"{client}, {what}, {in_flight} in flight: CPU a call", cpu, "µs"),
                    Figure(f"{client}, {what}, {in_flight} in flight: wall clock a call", wall, "µs"),
                ]
    return figures


async def _run(url: str, client: Client, content: str, *, in_flight: int) -> tuple[float, float]:
    """Microseconds of this process's CPU and of the clock, a call."""
    models = ChatCompletions(providers_from(AgentsSettings(model_base_url=url, model_client=client), {}))
    await models.start()
    try:
        await _calls(models, content, WARM_UP, in_flight)
        cpu, wall = time.process_time(), time.monotonic()
        await _calls(models, content, CALLS, in_flight)
        return (time.process_time() - cpu) * 1e6 / CALLS, (time.monotonic() - wall) * 1e6 / CALLS
    finally:
        await models.stop()


async def _calls(models: ChatCompletions, content: str, count: int, in_flight: int) -> None:
    request = ModelRequest(model="scripted", messages=[{"role": "user", "content": content}])
    left = iter(range(count))

    async def caller() -> None:
        for _ in left:
            answer = await models.attempt(request, Silent())
            assert isinstance(answer, ModelAnswer), answer

    await asyncio.gather(*(caller() for _ in range(in_flight)))


def _medians(runs: Sequence[tuple[float, float]]) -> tuple[float, ...]:
    return tuple(sorted(values)[len(runs) // 2] for values in zip(*runs, strict=True))
