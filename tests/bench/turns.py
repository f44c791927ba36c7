"""Turns of one tool call and two model calls, from the prompt on Kafka to the committed completion.

One at a time, many at once on threads of their own, and on threads that grow: each turn's model call has all before it.

The model answers at once: 200 characters after the tool's result. What remains is what the platform costs.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from uuid import uuid4

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from tests.bench.bench_installation import turnlog_up
from tests.bench.processor_time import cpu_seconds
from tests.bench.report import Figure

ANSWER = "word " * 40
CONTENT = f'[[tool calculate {{"expression": "6 * 7"}}]][[then]][[say {ANSWER.strip()}]]'

RUNS = {1: 200, 64: 3000, 512: 3000}
"""Turns to measure, by how many are in flight."""

GROWING, GROWN_TURNS = 64, 15
"""Threads, and the turns of each: 4 messages a turn."""

WARM_UP = 100


async def measure(*arguments: str) -> list[Figure]:
    """`arguments` of `turnlog up`, such as `--workers 1`."""
    figures: list[Figure] = []
    async with turnlog_up(*arguments) as (bench, up, _):
        client = Client(bench.bootstrap)
        await client.start()
        await client.turns(WARM_UP, in_flight=8)
        for in_flight, count in RUNS.items():
            began, spent = time.monotonic(), cpu_seconds(up)
            took = sorted(await client.turns(count, in_flight=in_flight))
            seconds = time.monotonic() - began
            worked = cpu_seconds(up)
            worked.subtract(spent)
            figures += [
                Figure(f"{in_flight} in flight: turns a second", count / seconds, "/s"),
                Figure(f"{in_flight} in flight: p50", percentile(took, 50) * 1000, "ms"),
                Figure(f"{in_flight} in flight: p99", percentile(took, 99) * 1000, "ms"),
                *(
                    Figure(f"{in_flight} in flight: CPU of {who} a turn", cpu / count * 1000, "ms")
                    for who, cpu in sorted(worked.items())
                ),
            ]
        figures += await _growing(client)
        await client.stop()
    return figures


async def _growing(client: "Client") -> list[Figure]:
    ended = await grow(client.turn)
    last = len(ended) // 3
    name = f"{GROWING} threads that grow to {GROWN_TURNS * 4} messages"
    return [
        Figure(f"{name}: turns a second", len(ended) / ended[-1], "/s"),
        Figure(f"{name}: the middle third, with 20 to 40 messages", middle_rate(ended), "/s"),
        Figure(f"{name}: the last third", last / (ended[-1] - ended[-1 - last]), "/s"),
    ]


async def grow(turn: Callable[[str], Awaitable[object]]) -> list[float]:
    """When the turns of the threads that grow have ended, in seconds from the beginning, in order."""
    ended: list[float] = []
    began = time.monotonic()

    async def one_thread() -> None:
        thread = f"bench-{uuid4().hex}"
        for _ in range(GROWN_TURNS):
            await turn(thread)
            ended.append(time.monotonic() - began)

    await asyncio.gather(*(one_thread() for _ in range(GROWING)))
    return ended


def middle_rate(ended: Sequence[float]) -> float:
    """Turns a second while the threads have grown by a third and not by two: of 20 to 40 messages, 30 in the mean."""
    third = len(ended) // 3
    return third / (ended[2 * third] - ended[third])


def percentile(ordered: Sequence[float], percent: int) -> float:
    """Nearest rank."""
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


class Client:
    """Publishes prompts and waits for their completions, read committed, with nothing but a Kafka client."""

    def __init__(self, bootstrap: str, *, content: str = CONTENT) -> None:
        self._content = content
        self._producer = AIOKafkaProducer(bootstrap_servers=bootstrap)
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=bootstrap, isolation_level="read_committed", fetch_max_wait_ms=100
        )
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._reading: asyncio.Task[None] | None = None
        self.completed: Counter[str] = Counter()
        """How many turns of a thread are."""

    async def start(self) -> None:
        await self._producer.start()
        await self._consumer.start()
        numbers = await self._producer.partitions_for("completions")
        partitions = [TopicPartition("completions", number) for number in numbers]
        self._consumer.assign(partitions)
        await self._consumer.seek_to_end(*partitions)
        self._reading = asyncio.create_task(self._read())

    async def stop(self) -> None:
        assert self._reading is not None
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._consumer.stop()
        await self._producer.stop()

    async def turns(self, count: int, *, in_flight: int) -> list[float]:
        """Seconds that each turn took, a thread a turn."""
        turn = asyncio.Semaphore(in_flight)

        async def one() -> float:
            async with turn:
                return await self.turn(f"bench-{uuid4().hex}")

        return await asyncio.gather(*(one() for _ in range(count)))

    async def turn(self, thread: str) -> float:
        """Seconds that one turn took. A thread has one at a time."""
        done = self._waiting[thread] = asyncio.get_running_loop().create_future()
        began = time.monotonic()
        await self.begin(thread, self._content)
        await asyncio.wait_for(done, 60)
        return time.monotonic() - began

    async def begin(self, thread: str, content: str) -> None:
        """Sends a prompt and doesn't wait."""
        event = {"thread_id": thread, "agent": "assistant", "content": content}
        await self._producer.send("prompts", json.dumps(event).encode(), key=thread.encode())

    async def _read(self) -> None:
        async for record in self._consumer:
            event = json.loads(record.value)
            self.completed[event["thread_id"]] += event["type"] == "turn.completed"
            waiting = self._waiting.pop(event["thread_id"], None)
            if waiting is None:
                continue
            if event["type"] == "turn.completed" and event["text"] == ANSWER.strip():
                waiting.set_result(None)
            else:
                waiting.set_exception(AssertionError(f"not the answer: {event}"))
