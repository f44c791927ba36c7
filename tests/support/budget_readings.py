"""Readings of the loop of budgets, watched and held."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import ClassVar

import pytest

from services.runtime.kafka import TopicPartition
from services.usage.budgets.reading import Reading


class WatchedReading(Reading):
    """A reading behind what is in force, which is remembered when it is over. While `held`, one from the log counts
    nothing."""

    made: ClassVar[list["WatchedReading"]] = []
    held: ClassVar[bool] = False
    from_the_log = True

    async def begin_at(self, partitions: Sequence[TopicPartition], since: datetime | None) -> None:
        await super().begin_at(partitions, since)
        self.made.append(self)

    async def begin_behind(
        self, partitions: Sequence[TopicPartition], since: datetime | None, ends: Sequence[int]
    ) -> None:
        await super().begin_behind(partitions, since, ends)
        self.from_the_log = False

    async def step(
        self, timeout_ms: int, max_records: int, *, until: Mapping[TopicPartition, int] | None = None
    ) -> None:
        if until is not None and self.from_the_log and WatchedReading.held:
            await asyncio.sleep(0.01)
            return
        await super().step(timeout_ms, max_records, until=until)


def watched_readings(monkeypatch: pytest.MonkeyPatch) -> list[WatchedReading]:
    """Those behind what is in force, in the order of their beginning; what is in force is never held for them."""
    monkeypatch.setattr("services.usage.budgets.loop.Reading", WatchedReading)
    monkeypatch.setattr("services.usage.budgets.loop.NEAR_RECORDS", 0)
    WatchedReading.made, WatchedReading.held = [], False
    return WatchedReading.made
