"""Budgets counted by the usage service on the real broker, through restarts and kills."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from schemas.budgets import BudgetSpec
from schemas.topics import BUDGETS
from services.runtime.failpoints import Failpoints
from services.runtime.kafka import KafkaClients
from services.runtime.pricing.book import PriceBook
from services.runtime.registry import spec_key
from services.runtime.settings import RuntimeSettings
from services.runtime.topics import apply_topics
from services.usage.budgets.loop import BudgetLoop
from tests.support.budget_readings import WatchedReading, watched_readings
from tests.support.installation import free_ports
from tests.support.log import Log
from tests.support.prices import book_of, price
from tests.support.waiting import eventually

pytestmark = pytest.mark.broker

MONEY = book_of(price(model="small"))


class Installation:
    """Topics of one test, and the loop on them."""

    def __init__(self, settings: RuntimeSettings, log: Log) -> None:
        self.settings = settings
        self.log = log
        self.book = MONEY
        self.now = datetime.now(UTC)
        self._number = 0

    def prices(self) -> PriceBook:
        return self.book

    @contextlib.asynccontextmanager
    async def counting(self) -> AsyncIterator[BudgetLoop]:
        clients = KafkaClients(self.settings, client_id="test")
        loop = BudgetLoop(clients, self.settings, self.prices, Failpoints())
        await loop.start()
        try:
            yield loop
        finally:
            await loop.stop()

    async def process(self, **environment: str) -> asyncio.subprocess.Process:
        """The whole service, as it is run."""
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.cli.app", "run", "usage"),
            env=os.environ
            | {
                "TURNLOG_KAFKA_BOOTSTRAP": self.settings.bootstrap,
                "TURNLOG_TOPIC_PREFIX": self.settings.topic_prefix,
                "TURNLOG_DATA_DIR": str(self.settings.data_dir),
                "TURNLOG_HTTP_PORT": str(free_ports(3)),
            }
            | environment,
        )

    async def apply(self, **fields: Any) -> None:
        spec = BudgetSpec.model_validate({"name": "b", "unit": "tokens", **fields})
        await self.log.publish(BUDGETS.name, spec.model_dump_json().encode(), key=spec_key(spec))

    def usage(self, tokens: int, **fields: Any) -> dict[str, Any]:
        self._number += 1
        return {
            "usage_id": f"u{self._number}",
            "thread_id": f"t-{self._number % 5}",
            "agent": "assistant",
            "kind": "completion",
            "provider": "house",
            "model": "small",
            "input_tokens": tokens,
            "occurred_at": self.now.isoformat(),
        } | fields

    async def spend(self, *tokens: int, **fields: Any) -> None:
        await asyncio.gather(*(self.log.publish("usage", self.usage(each, **fields)) for each in tokens))

    async def until_spent(self, amount: str, **wanted: Any) -> dict[str, Any]:
        def found(event: dict[str, Any]) -> bool:
            return (
                event.get("type") == "budget.state"
                and event["spent"] == amount
                and all(event.get(name) == value for name, value in wanted.items())
            )

        return (await self.log.wait_for("budgets", found))[-1]

    async def warnings(self) -> list[dict[str, Any]]:
        return [each for each in await self.log.events("budgets") if each.get("type") == "budget.warned"]


@pytest.fixture
async def installation(kafka: str, prefix: str, tmp_path: Path) -> AsyncIterator[Installation]:
    settings = RuntimeSettings(
        _env_file=None,  # pyright: ignore
        kafka_bootstrap=kafka,
        topic_prefix=prefix,
        topic_partitions=4,
        topic_replication=1,
        data_dir=tmp_path,
    )
    await apply_topics(KafkaClients(settings, client_id="test"), settings)
    async with Log(kafka, prefix=prefix) as log:
        yield Installation(settings, log)


async def test_what_is_spent_is_told_and_a_soft_cap_warns_once(installation: Installation) -> None:
    await installation.spend(30, 20)
    async with installation.counting():
        await installation.apply(soft=60, hard=100)
        assert (await installation.until_spent("50"))["level"] == "ok"
        await installation.spend(30)
        assert (await installation.until_spent("80"))["level"] == "warned"
        await installation.spend(30)
        assert (await installation.until_spent("110"))["level"] == "exceeded"
        await installation.apply(soft=60, hard=200)
        await installation.until_spent("110", level="warned", hard="200")
    (warned,) = await installation.warnings()
    assert (warned["budget"], warned["soft"], warned["period"]) == ("b", "60", f"{installation.now:%Y-%m}")


async def test_a_start_counts_again_and_comes_to_the_same(installation: Installation) -> None:
    """What it finds told already it tells no more; what came meanwhile it adds; what came twice it counts once."""
    await installation.apply(by="user", per="day", soft=1)
    again = installation.usage(5, user_id="ann")
    await installation.log.publish("usage", again)
    async with installation.counting():
        await installation.until_spent("5", who="ann")
    told = len(await installation.log.events("budgets"))
    await installation.spend(7, user_id="bob")
    await installation.log.publish("usage", again)
    await installation.log.publish("usage", b"no usage at all")
    async with installation.counting():
        assert (await installation.until_spent("7", who="bob"))["events"] == 1
    added = (await installation.log.events("budgets"))[told:]
    assert sorted((each["type"], each["who"]) for each in added) == [("budget.state", "bob"), ("budget.warned", "bob")]


async def test_a_loop_that_is_cut_off_anywhere_loses_and_doubles_nothing(installation: Installation) -> None:
    await installation.apply(by="user", soft=50)
    for number in range(6):
        async with installation.counting():
            told = len(await installation.log.events("budgets"))
            await asyncio.gather(
                *(installation.spend(5, user_id=user) for user in ("ann", "bob", "cem") for _ in range(4))
            )
            await installation.log.wait_for("budgets", lambda _: True, count=told + number % 3)
    spent: dict[str, int] = {}
    for event in await installation.log.events("usage"):
        spent[event["user_id"]] = spent.get(event["user_id"], 0) + event["input_tokens"]
    async with installation.counting():
        for user, tokens in spent.items():
            await installation.until_spent(str(tokens), who=user)
    identities = [each["record_key"] for each in await installation.warnings()]
    assert len(set(identities)) == sum(tokens >= 50 for tokens in spent.values())


@pytest.mark.parametrize("failpoint", ["budgets.before_write=kill@2", "budgets.after_write=kill@2"])
async def test_a_kill_around_a_write_loses_and_doubles_nothing(installation: Installation, failpoint: str) -> None:
    await installation.apply(soft=20)
    await installation.spend(5, 6)
    killed = await installation.process(TURNLOG_FAILPOINTS=failpoint)
    await installation.until_spent("11")
    await installation.spend(7, 8)
    assert await asyncio.wait_for(killed.wait(), 60) == -signal.SIGKILL
    await installation.spend(9)
    again = await installation.process()
    try:
        assert (await installation.until_spent("35"))["events"] == 5
    finally:
        again.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(again.wait(), 30) == 0
    assert len({each["record_key"] for each in await installation.warnings()}) == 1


async def test_a_budget_that_adds_up_something_else_begins_anew_from_the_log(installation: Installation) -> None:
    await installation.spend(1_000_000, user_id="ann")
    async with installation.counting():
        await installation.apply(by="tenant")
        await installation.until_spent("1000000", by="tenant")
        await installation.apply(by="user", unit="cost")
        assert (await installation.until_spent("2.5", by="user"))["who"] == "ann"
        gone = await installation.log.wait_for("budgets", lambda event: "type" not in event)
        assert gone[0]["record_key"].startswith("state//b/default/")


async def test_a_price_for_the_past_changes_what_was_spent(installation: Installation) -> None:
    await installation.apply(unit="cost")
    await installation.spend(1_000_000)
    async with installation.counting():
        await installation.until_spent("2.5")
        installation.book = book_of(price(model="small", rates={"input": "3"}))
        await installation.until_spent("3")


async def test_a_period_that_is_over_leaves_the_topic(installation: Installation) -> None:
    await installation.apply(per="day")
    old = {"type": "budget.state", "budget": "b", "budget_version": "v", "tenant_id": "default", "period": "2020-01-01"}
    told = {"by": "tenant", "per": "day", "unit": "tokens", "currency": "USD", "spent": "9", "level": "ok"}
    await installation.log.publish("budgets", old | told, key="state//b/default/2020-01-01/")
    await installation.spend(3, occurred_at=(installation.now - timedelta(days=40)).isoformat())
    async with installation.counting():
        gone = await installation.log.wait_for("budgets", lambda event: "type" not in event)
        await installation.spend(4)
        await installation.until_spent("4")
    assert [each["record_key"] for each in gone] == ["state//b/default/2020-01-01/"]


async def test_budgets_that_stand_are_counted_while_another_one_is_read_from_the_log(
    installation: Installation,
) -> None:
    """One after the other is applied, each before the last one has been counted; usage goes on."""
    await installation.spend(*[1] * 50, user_id="ann")
    async with installation.counting():
        await installation.apply()
        await installation.until_spent("50")
        for number in range(4):
            await installation.apply(name=f"b{number}", by="user")
            await installation.spend(1, user_id="ann")
        for budget in ("b", "b0", "b1", "b2", "b3"):
            await installation.until_spent("54", budget=budget)
    sums = [int(each["spent"]) for each in await installation.log.events("budgets") if each.get("budget") == "b"]
    assert sums == sorted(sums), "a sum went back"


async def in_force(loop: BudgetLoop, budget: str) -> bool:
    return any(each.budget == budget and each.standing == "in_force" for each in loop.progress())


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[WatchedReading]:
    return watched_readings(monkeypatch)


async def test_a_budget_of_the_day_does_not_wait_for_one_of_threads_to_be_read_from_the_beginning(
    installation: Installation, readings: list[WatchedReading]
) -> None:
    long_ago = int((installation.now - timedelta(days=40)).timestamp() * 1000)
    producer = KafkaClients(installation.settings, client_id="test").producer()
    await producer.start()
    topic = installation.settings.topic("usage")
    for _ in range(300):
        value = json.dumps(installation.usage(1, occurred_at="2020-01-01T00:00:00Z")).encode()
        await producer.send_and_wait(topic, value, timestamp_ms=long_ago)
    await producer.stop()
    await installation.spend(*[1] * 20)
    async with installation.counting() as loop:
        await installation.apply(name="of-threads", per="thread")
        await eventually(lambda: in_force(loop, "of-threads"), "the budget of threads to be in force")
        await installation.apply(name="of-today", per="day", hard=20)
        await installation.until_spent("20", budget="of-today", level="exceeded")
    assert [each.counted() for each in readings] == [320, 20]


async def test_a_budget_that_is_not_counted_yet_is_shown_and_others_go_on_meanwhile(
    installation: Installation, readings: list[WatchedReading]
) -> None:
    async with installation.counting() as loop:
        await installation.apply(name="old", unit="cost")
        await eventually(lambda: in_force(loop, "old"), "the first budget to be in force")
        assert (loop.health().ready, loop.health().detail) == (True, "")
        await installation.spend(1_000_000)
        await installation.until_spent("2.5", budget="old")

        WatchedReading.held = True
        await installation.apply(name="new", by="user", hard=20)
        await eventually(lambda: _is_begun(readings, 2), "the new budget to be counted")
        await installation.spend(1_000_000, user_id="ann")
        await installation.until_spent("5", budget="old")
        counting = {each.budget: (each.standing, each.counted) for each in loop.progress()}
        assert counting == {"old": ("in_force", None), "new": ("counting", 0)}
        health = loop.health()
        assert (health.ready, health.detail) == (True, "counting new: 0 of 2 records")

        WatchedReading.held = False
        await installation.until_spent("1000000", budget="new", who="ann", level="exceeded")
        assert await in_force(loop, "new")
        assert loop.health().detail == ""
    assert len(readings) == 2, "the first budget was not counted anew"


async def _is_begun(readings: Sequence[WatchedReading], number: int) -> bool:
    return len(readings) == number
