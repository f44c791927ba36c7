"""Waiting for a condition, with a deadline instead of a guess."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def eventually(probe: Callable[[], Awaitable[T | None]], what: str, *, seconds: float = 30) -> T:
    """The first answer of a probe that is neither None nor False. Fails after `seconds`, saying what was awaited."""
    deadline = time.monotonic() + seconds
    while True:
        answer = await probe()
        if answer is not None and answer is not False:
            return answer
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}; last answer: {answer!r}"
        await asyncio.sleep(0.02)


async def until(condition: Callable[[], bool], what: str, *, seconds: float = 30) -> None:
    """Returns when a condition holds. Fails after `seconds`."""

    async def probe() -> bool:
        return condition()

    await eventually(probe, what, seconds=seconds)
