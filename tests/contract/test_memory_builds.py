"""A store that is built beside the live one, whatever ends it."""

import asyncio
import os
import shutil
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from services.memory.qdrant_edge import EdgeMemoryStore
from services.memory.qdrant_shard import MemoryShard
from services.memory.store import Changes
from services.runtime.errors import UnavailableError
from tests.contract.test_memory_store import message, messages, positions_of


class Slow:
    """A function that is called in a thread and goes on when it is told to.

    Put in the place of `name` until `go_on`.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        self._began, self._told = threading.Event(), threading.Event()
        self._monkeypatch = monkeypatch
        call: Callable[..., Any] = getattr(owner, name)

        def wait_and_call(*args: Any, **options: Any) -> Any:
            self._began.set()
            assert self._told.wait(30)
            return call(*args, **options)

        static = isinstance(vars(owner)[name], staticmethod)
        monkeypatch.setattr(owner, name, staticmethod(wait_and_call) if static else wait_and_call)

    async def cancel(self, caller: Coroutine[Any, Any, Any]) -> None:
        """Cancels somebody who has called, who ends when the function has."""
        task = asyncio.create_task(caller)
        assert await asyncio.to_thread(self._began.wait, 30)
        task.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
        assert not task.done()
        self._told.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        self._monkeypatch.undo()


def shards(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.glob("shard*"))


async def build_and_switch(edge: EdgeMemoryStore) -> None:
    build = await edge.begin_build()
    await build.write(0, Changes([message(7)]), 8)
    await edge.switch()
    await edge.clean()
    assert await positions_of(edge, messages()) == [7]


async def test_a_build_that_is_cancelled_while_it_is_made_leaves_nothing(
    edge: EdgeMemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await Slow(monkeypatch, MemoryShard, "create").cancel(edge.begin_build())
    await edge.clean()
    assert shards(tmp_path / "memory") == ["shard-1"]
    await build_and_switch(edge)


async def test_a_build_that_is_cancelled_once_it_is_optimised_leaves_nothing(
    edge: EdgeMemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await edge.begin_build()
    await Slow(monkeypatch, MemoryShard, "load").cancel(edge.optimise_build())
    await edge.clean()
    assert shards(tmp_path / "memory") == ["shard-1"]
    await build_and_switch(edge)


async def test_a_build_is_not_begun_before_the_last_one_is_removed(
    edge: EdgeMemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await edge.begin_build()
    await Slow(monkeypatch, shutil, "rmtree").cancel(edge.clean())
    assert shards(tmp_path / "memory") == ["shard-1"]
    await build_and_switch(edge)


async def test_a_switch_that_is_cancelled_is_finished(
    edge: EdgeMemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the folder says and what the process reads is the same shard."""
    build = await edge.begin_build()
    await build.write(0, Changes([message(7)]), 8)
    await Slow(monkeypatch, os, "fsync").cancel(edge.switch())
    assert await positions_of(edge, messages()) == [7]
    await edge.close()
    assert shards(tmp_path / "memory") == ["shard-2"]
    await edge.open()
    assert await positions_of(edge, messages()) == [7]


async def test_a_build_that_cannot_be_made_is_not_switched_to(
    edge: EdgeMemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await edge.write(0, Changes([message(1)]), 2)

    def half(folder: Path) -> None:
        folder.mkdir()
        raise OSError("it broke")

    monkeypatch.setattr(MemoryShard, "create", staticmethod(half))
    with pytest.raises(UnavailableError, match="it broke"):
        await edge.begin_build()
    assert shards(tmp_path / "memory") == ["shard-1"]
    with pytest.raises(UnavailableError, match="nothing was built"):
        await edge.switch()
