"""What every peer does, and how the bench talks to it. Only the standard library and what all peers have.

A peer is a script. It is given the addresses of the model and of the stores in its environment, says on its output
that it is ready, and answers commands, a line of JSON each:

    {"do": "turns", "count": 100, "in_flight": 8, "content": "..."}     runs them, answers with the seconds of each
    {"do": "grow", "threads": 8, "turns": 3, "content": "..."}          the same on threads that go on: when each ended
    {"do": "begin", "turn": "t-1", "content": "..."}                    starts one and doesn't wait
    {"do": "answers", "turn": "t-1"}                                    how many answers of it are kept by now
    {"do": "resume", "turn": "t-1"}                                     what a caller does who knows that it was cut off

A peer that works off a log has two processes: `client` takes the commands, `worker` only works.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any, Protocol
from uuid import uuid4

TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "calculate",
            "description": "Works out an expression.",
            "parameters": {
                "type": "object",
                "properties": {"expression": {"type": "string"}},
                "required": ["expression"],
            },
        },
    }
]

MODEL_URL = os.environ.get("BENCH_MODEL_URL", "")
KAFKA = os.environ.get("BENCH_KAFKA", "")
POSTGRES = os.environ.get("BENCH_POSTGRES", "")
FOLDER = os.environ.get("BENCH_FOLDER", "")

IN_FLIGHT = 64
"""At once, where a peer must be told."""


def calculate(expression: str) -> str:
    """Works out a product, such as 6 * 7."""
    left, right = expression.split("*")
    return str(int(left) * int(right))


class Peer(Protocol):
    async def turn(self, turn: str, content: str) -> str:
        """One turn to its end: the answer, when it is as durable as the peer makes it."""
        ...

    async def answers(self, turn: str) -> int:
        """How many answers of a turn are kept."""
        ...

    async def resume(self, turn: str) -> None:
        """Goes on with a turn that was cut off, if the peer has a way to."""
        ...


async def take_commands(peer: Peer, *packages: str) -> None:
    """Until the input ends."""
    begun: set[asyncio.Task[str]] = set()

    async def begin(turn: str, content: str) -> dict[str, Any]:
        begun.add(asyncio.create_task(peer.turn(turn, content)))
        return {}

    async def turns(count: int, in_flight: int, content: str) -> dict[str, Any]:
        return await _turns(peer, count, in_flight, content)

    async def grow(threads: int, turns: int, content: str) -> dict[str, Any]:
        return {"ended": await _grow(peer, threads, turns, content)}

    async def answers(turn: str) -> dict[str, Any]:
        return {"answers": await peer.answers(turn)}

    async def resume(turn: str) -> dict[str, Any]:
        await peer.resume(turn)
        return {}

    commands: dict[str, Callable[..., Awaitable[dict[str, Any]]]] = {
        each.__name__: each for each in (begin, turns, grow, answers, resume)
    }
    say_ready(*packages)
    while line := await asyncio.to_thread(sys.stdin.readline):
        command = json.loads(line)
        _say(await commands[command.pop("do")](**command))


def say_ready(*packages: str) -> None:
    """The last thing before the first turn, with the versions of what is compared."""
    _say({"ready": {each: version(each) for each in packages}})


async def _turns(peer: Peer, count: int, in_flight: int, content: str) -> dict[str, Any]:
    left = iter(range(count))
    seconds: list[float] = []

    async def caller() -> None:
        for _ in left:
            began = time.monotonic()
            answer = await peer.turn(f"t-{uuid4().hex}", content)
            seconds.append(time.monotonic() - began)
            assert len(answer) >= 199, answer

    began = time.monotonic()
    await asyncio.gather(*(caller() for _ in range(in_flight)))
    return {"seconds": seconds, "elapsed": time.monotonic() - began}


async def _grow(peer: Peer, threads: int, turns: int, content: str) -> list[float]:
    ended: list[float] = []
    began = time.monotonic()

    async def one_thread() -> None:
        thread = f"t-{uuid4().hex}"
        for _ in range(turns):
            assert len(await peer.turn(thread, content)) >= 199
            ended.append(time.monotonic() - began)

    await asyncio.gather(*(one_thread() for _ in range(threads)))
    return ended


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)
