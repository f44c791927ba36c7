"""Calls that run in a thread."""

import asyncio
import threading

import pytest

from services.runtime.tasks import run_to_end


async def test_what_a_call_returns_or_raises_is_told() -> None:
    assert await run_to_end(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await run_to_end(lambda: 1 / 0)


@pytest.mark.parametrize("fails", [False, True])
async def test_who_is_cancelled_learns_of_it_when_the_thread_is_done(fails: bool) -> None:
    go_on, made = threading.Event(), list[str]()

    def call() -> None:
        go_on.wait(30)
        made.append("something")
        if fails:
            raise ValueError

    waiting = asyncio.create_task(run_to_end(call))
    for _ in range(3):
        await asyncio.sleep(0)
        waiting.cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    assert not waiting.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert made == ["something"]
