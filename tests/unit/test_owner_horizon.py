"""When a timer that is due may ring: after all that came before, and always at some time."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.kafka import KafkaError
from services.runtime.owner import horizon
from services.runtime.owner.horizon import Handed, Horizon, has_come
from tests.support.waiting import until

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@given(st.lists(st.booleans(), max_size=12), st.integers(0, 12), st.lists(st.booleans(), max_size=40))
def test_nothing_before_the_end_is_missing_when_it_has_come_and_it_always_comes(
    shown: list[bool], asked: int, steps: list[bool]
) -> None:
    """A log of records and of markers that nobody is shown, read and prepared in any order of steps."""
    end = min(asked, len(shown))
    position = fed = ready = 0
    arrivals: list[int] = []

    def come() -> bool:
        return has_come(end, position, Handed(fed, ready, stuck=False))

    for reads in [*steps, *[True, False] * len(shown)]:
        if reads and position < len(shown):
            if shown[position]:
                arrivals.append(position)
                fed = position + 1
            position += 1
        elif not reads and arrivals:
            ready = arrivals.pop(0) + 1
        unready = [offset for offset in range(end) if shown[offset] and offset >= ready]
        assert not come() or (position >= end and not unready)
    assert come(), "once all is read and prepared nothing keeps a timer"


def test_what_can_not_come_now_is_not_waited_for() -> None:
    assert has_come(9, None, Handed(5, 5, stuck=False)), "open work must end before the rest is read"
    assert has_come(9, 7, Handed(7, 5, stuck=True)), "what preparing needs is away"
    assert not has_come(9, 7, Handed(7, 5, stuck=False))


class Log:
    """One input, whose broker may be away, and whose reader may be behind or gone."""

    def __init__(self, *ends: int | Exception, position: int | None = 0, read: bool = True) -> None:
        self.answers = list(ends)
        self.position = position
        self.read = read
        self.asked = 0

    async def ends(self, partition: int) -> Mapping[str, int]:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return {"results": answer}

    async def positions(self, partition: int) -> Mapping[str, int | None]:
        return {"results": self.position} if self.read else {}


@asynccontextmanager
async def moving(log: Log, moved: Callable[[], None] = lambda: None) -> AsyncIterator[Horizon]:
    def handed(topic: str) -> Handed:
        return Handed(log.position or 0, log.position or 0, stuck=False)

    made = Horizon(0, log, handed=handed, moved=moved)
    running = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def test_it_moves_when_reading_has_come_to_the_end_as_it_was_asked() -> None:
    log = Log(5)
    moved = asyncio.Event()
    async with moving(log, moved.set) as ahead:
        ahead.want(NOON)
        await until(lambda: log.asked == 1, "the question")
        assert ahead.at < NOON
        assert not moved.is_set()
        log.answers.append(1_000)
        log.position = 5
        await moved.wait()
        assert ahead.at == NOON


async def test_it_moves_again_to_a_later_time() -> None:
    async with moving(Log(0)) as ahead:
        for minutes in range(3):
            at = NOON + timedelta(minutes=minutes)
            ahead.want(at)
            await until(lambda at=at: ahead.at == at, "the time")


async def test_a_broker_that_was_away_is_asked_twice_so_that_what_others_had_for_it_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(horizon, "RETRY_SECONDS", 0)
    monkeypatch.setattr(horizon, "SILENCE_SECONDS", 0.01)
    log = Log(KafkaError("away"), KafkaError("away"), 3, 5)
    async with moving(log) as ahead:
        ahead.want(NOON)
        await until(lambda: log.asked == 4, "the second answer")
        assert ahead.at < NOON
        log.position = 5
        await until(lambda: ahead.at == NOON, "the time")


@pytest.mark.parametrize("log", [Log(5, read=False), Log(5, position=0)], ids=["no reader", "a reader that hangs"])
async def test_an_input_that_nobody_reads_stops_no_timer_for_good(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(horizon, "PATIENCE_SECONDS", 0.05)
    async with moving(log) as ahead:
        ahead.want(NOON)
        await until(lambda: ahead.at == NOON, "the time")
