"""Up to when an owner knows what has come: a timer that is due by then may ring, a later one waits.

A result that was on the log in time must not lose against its timer only because the owner could not read: the broker
was away, or the process stood still. So when a timer is due the owner asks where its inputs end, and lets it ring once
it has what came before these ends, however much that is.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import NamedTuple, Protocol

import structlog

from services.runtime.kafka import KafkaError

log = structlog.get_logger(__name__)

LOOK_AGAIN_SECONDS = 0.02
"""Between two looks at how far reading has come, while a timer waits for it."""

PATIENCE_SECONDS = 15.0
"""Longest wait for the inputs: one that does not get to its end (a rebalance takes its time) must not stop the timers
for good."""

SILENCE_SECONDS = 1.0
"""A broker that took longer to say where the inputs end was away, and others could not write either: it is asked once
more after as long a pause, when what they had for it is there."""

RETRY_SECONDS = 0.5
"""Between two questions to a broker that does not answer. Nothing could be committed meanwhile."""

BEFORE_ALL = datetime.min.replace(tzinfo=UTC)


class Handed(NamedTuple):
    """What an owner has of an input."""

    fed: int
    """Behind the last record that it was given."""
    ready: int
    """Behind the last one that is in its inbox."""
    stuck: bool
    """The next one waits for something that is unavailable."""


class Inputs(Protocol):
    """The input topics of a partition, as their reader has them."""

    async def ends(self, partition: int) -> Mapping[str, int]:
        """By topic, where committed records end now. Raises KafkaError."""
        ...

    async def positions(self, partition: int) -> Mapping[str, int | None]:
        """By topic, the offset before which all was handed to the owner, markers that nobody is shown included.

        None: not read before open work has ended. Without an entry: no reader has it yet. Raises KafkaError.
        """
        ...


class Horizon:
    """The time of which an owner has all inputs: `at`, which moves when it is wanted; `moved` is called then.

    Args:
        handed: what the owner has of a topic.
    """

    def __init__(
        self, partition: int, inputs: Inputs, *, handed: Callable[[str], Handed], moved: Callable[[], None]
    ) -> None:
        self.at = BEFORE_ALL
        self._partition = partition
        self._inputs = inputs
        self._handed = handed
        self._moved = moved
        self._wanted = BEFORE_ALL
        self._asked = asyncio.Event()

    def want(self, at: datetime) -> None:
        """Has the horizon move to the time that it is now, or a little behind."""
        self._wanted = at
        self._asked.set()

    async def run(self) -> None:
        """Moves as wanted until cancelled, always, unless no broker answers."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            at = self._wanted
            ends = await self._ends()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await self._until_all_has_come(ends)
            self.at = at
            self._moved()

    async def _until_all_has_come(self, ends: Mapping[str, int]) -> None:
        while True:
            positions: Mapping[str, int | None] = {}
            with contextlib.suppress(KafkaError):  # a rebalance has taken the partition from its reader
                positions = await self._inputs.positions(self._partition)
            if all(
                topic in positions and has_come(ends[topic], positions[topic], self._handed(topic)) for topic in ends
            ):
                return
            await asyncio.sleep(LOOK_AGAIN_SECONDS)

    async def _ends(self) -> Mapping[str, int]:
        loop = asyncio.get_running_loop()
        away = asked_again = False
        while True:
            began = loop.time()
            try:
                ends = await self._inputs.ends(self._partition)
            except (KafkaError, OSError) as error:
                log.warning("timers_wait", partition=self._partition, error=repr(error))
                away = True
                await asyncio.sleep(RETRY_SECONDS)
                continue
            away = away or loop.time() - began >= SILENCE_SECONDS
            if asked_again or not away:
                return ends
            asked_again = True
            await asyncio.sleep(SILENCE_SECONDS)


def has_come(end: int, position: int | None, handed: Handed) -> bool:
    """Whether all of an input before its end can be decided, but for what can't come now whatever one waits."""
    if position is None or handed.stuck:
        return True
    return position >= end and (handed.ready >= end or handed.ready == handed.fed)
