"""Budgets that begin with what ClickHouse has: in force without the log being read, and exact, whatever happens."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from schemas.budgets import BudgetSpec
from schemas.topics import BUDGETS
from services.runtime.errors import UnavailableError
from services.runtime.registry import spec_key
from services.usage.clickhouse import ClickHouseUsageStore
from services.usage.spending import FactIds, SpendingQuery
from tests.support.budget_readings import WatchedReading, watched_readings
from tests.support.clickhouse import ClickHouseServer
from tests.support.installation import free_ports
from tests.support.usage_service import UsageInstallation, spent, usage_installation
from tests.support.waiting import eventually

pytestmark = pytest.mark.broker

NOW = datetime.now(UTC)


def used(number: int, **fields: Any) -> dict[str, Any]:
    """A token of today."""
    return spent(number, input_tokens=1, output_tokens=0, occurred_at=NOW.isoformat()) | fields


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[WatchedReading]:
    return watched_readings(monkeypatch)


@pytest.fixture
async def installation(kafka: str, prefix: str, tmp_path: Path) -> AsyncIterator[UsageInstallation]:
    async with usage_installation(kafka, prefix, tmp_path) as made:
        yield made


async def apply(installation: UsageInstallation, **fields: Any) -> None:
    spec = BudgetSpec.model_validate({"name": "b", "unit": "tokens", **fields})
    await installation.log.publish(BUDGETS.name, spec.model_dump_json().encode(), key=spec_key(spec))


async def until_spent(installation: UsageInstallation, amount: int, **wanted: Any) -> None:
    def found(event: dict[str, Any]) -> bool:
        return (
            event.get("type") == "budget.state"
            and event["spent"] == str(amount)
            and all(event.get(name) == value for name, value in wanted.items())
        )

    await installation.log.wait_for("budgets", found)


async def standing(installation: UsageInstallation, port: int) -> dict[str, str]:
    """What `turnlog budgets list` shows: whether each budget is in force."""
    async with installation.http.get(f"http://127.0.0.1:{port}/budgets") as response:
        return {each["budget"]: each["standing"] for each in (await response.json())["items"]}


async def until_in_force(installation: UsageInstallation, port: int, budget: str = "b") -> None:
    async def probe() -> bool:
        return (await standing(installation, port)).get(budget) == "in_force"

    await eventually(probe, f"{budget} to be in force")


async def test_a_budget_over_what_was_spent_already_is_in_force_without_the_log_being_read(
    installation: UsageInstallation, readings: list[WatchedReading]
) -> None:
    await installation.publish(*(used(number) for number in range(60)))
    async with installation.service() as service:
        await installation.until_counted(service.port, 60)
        await apply(installation, soft=30, hard=60)
        await until_spent(installation, 60, level="exceeded", events=60)
        await until_in_force(installation, service.port)
        assert [(each.from_the_log, each.counted()) for each in readings] == [(False, 0)]
        assert (await installation.readiness(service.port))["components"]["budgets"] == {"ready": True, "detail": ""}

        await installation.publish(used(7), used(8, input_tokens=500), used(60), used(60))
        await until_spent(installation, 61, events=61)
        await apply(installation, name="by-user", by="user", per="day", unit="cost")
        await until_in_force(installation, service.port, "by-user")
        assert sum(each.counted() for each in readings) <= 4
    assert not [
        event
        for event in await installation.log.events("budgets")
        if event.get("type") == "budget.state" and event["budget"] == "b" and int(event["spent"]) > 61
    ]


async def test_a_start_after_a_kill_reads_no_more_than_what_came_meanwhile(
    installation: UsageInstallation, readings: list[WatchedReading]
) -> None:
    await installation.publish(*(used(number) for number in range(60)))
    await apply(installation, hard=60)
    port = free_ports(3) + 2
    process = await installation.process(port)
    await installation.until_counted(port, 60)
    await until_spent(installation, 60, level="exceeded")
    process.send_signal(signal.SIGKILL)
    assert await process.wait() == -signal.SIGKILL
    await installation.publish(used(3), used(4, input_tokens=9), used(60), used(61), used(60))
    async with installation.service() as service:
        await until_spent(installation, 62, level="exceeded", events=62)
        await until_in_force(installation, service.port)
        assert [each.from_the_log for each in readings] == [False]
        assert readings[0].counted() <= 5


async def test_it_is_told_what_is_spent_before_a_budget_is_in_force(
    installation: UsageInstallation, readings: list[WatchedReading], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ids are still on their way then: usage behind the sums waits for them."""
    go_on = asyncio.Event()
    fact_ids = ClickHouseUsageStore.fact_ids

    async def late(store: ClickHouseUsageStore, query: SpendingQuery, ends: Sequence[int], generation: int) -> FactIds:
        await go_on.wait()
        return await fact_ids(store, query, ends, generation)

    monkeypatch.setattr(ClickHouseUsageStore, "fact_ids", late)
    await installation.publish(*(used(number) for number in range(20)))
    async with installation.service() as service:
        await installation.until_counted(service.port, 20)
        await apply(installation, hard=20)
        await until_spent(installation, 20, level="exceeded")
        assert await standing(installation, service.port) == {"b": "counting"}
        assert (await installation.readiness(service.port))["components"]["budgets"]["detail"] == "counting b"
        go_on.set()
        await installation.publish(used(5), used(20))
        await until_spent(installation, 21)
        await until_in_force(installation, service.port)
    assert [each.from_the_log for each in readings] == [False]


async def test_without_clickhouse_the_log_is_counted(
    installation: UsageInstallation,
    readings: list[WatchedReading],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is tried again with the next budget, when ClickHouse is back."""
    monkeypatch.setattr("services.usage.budgets.seed.HEAD_START_SECONDS", 0.2)
    server = ClickHouseServer(tmp_path / "clickhouse", port=free_ports(1))
    await installation.publish(*(used(number) for number in range(20)))
    await apply(installation, hard=20)
    with contextlib.ExitStack() as stack:
        async with installation.service(clickhouse_url=SecretStr(f"{server.url}/default")) as service:
            await until_spent(installation, 20, level="exceeded")
            await until_in_force(installation, service.port)
            assert [(each.from_the_log, each.counted()) for each in readings] == [(True, 20)]
            await asyncio.to_thread(server.start)
            stack.callback(server.kill)
            await installation.until_counted(service.port, 20)
            await apply(installation, name="later", per="day")
            await until_spent(installation, 20, budget="later")
            await until_in_force(installation, service.port, "later")
            assert [each.from_the_log for each in readings] == [True, False]


async def test_a_budget_of_the_day_does_not_wait_for_one_of_threads_that_is_read_from_the_log(
    installation: UsageInstallation, readings: list[WatchedReading]
) -> None:
    await installation.publish(*(used(number) for number in range(20)))
    async with installation.service() as service:
        await installation.until_counted(service.port, 20)
        WatchedReading.held = True
        await apply(installation, name="of-threads", per="thread")
        await eventually(lambda: _begun(readings, 1), "threads to be counted")
        await apply(installation, name="of-today", per="day", hard=20)
        await until_in_force(installation, service.port, "of-today")
        await until_spent(installation, 20, budget="of-today", level="exceeded")
        assert (await standing(installation, service.port))["of-threads"] == "counting"
        await installation.publish(used(20, thread_id="t-0"), used(0))
        await until_spent(installation, 21, budget="of-today")
        WatchedReading.held = False
        await until_in_force(installation, service.port, "of-threads")
        await until_spent(installation, 4, budget="of-threads", period="t-0")
    assert [(each.from_the_log, each.counted()) for each in readings] == [(True, 22), (False, 0)]


async def test_usage_that_was_counted_before_a_rebuild_counts_once_after_it(
    installation: UsageInstallation, readings: list[WatchedReading]
) -> None:
    await installation.publish(*(used(number) for number in range(20)))
    async with installation.service() as service:
        await installation.until_counted(service.port, 20)
        await apply(installation)
        await until_in_force(installation, service.port)
        url = f"http://127.0.0.1:{service.port}/rebuild"
        async with installation.http.post(url) as response:
            assert response.status == 202

        async def rebuilt() -> bool:
            async with installation.http.get(url) as response:
                return (await response.json())["state"] == "done"

        await eventually(rebuilt, "the rebuild to be done")
        await apply(installation, name="after")
        await until_in_force(installation, service.port, "after")
        await installation.publish(*(used(number) for number in range(25)))
        for budget in ("b", "after"):
            await until_spent(installation, 25, budget=budget, events=25)
    assert [each.from_the_log for each in readings] == [False, False]


async def test_late_usage_counts_in_the_period_that_it_is_of(
    installation: UsageInstallation, readings: list[WatchedReading]
) -> None:
    yesterday = (NOW - timedelta(days=1)).isoformat()
    await installation.publish(used(0), used(1, occurred_at=yesterday), used(2, occurred_at="2020-01-01T00:00:00Z"))
    async with installation.service() as service:
        await installation.until_counted(service.port, 3)
        await apply(installation, per="day")
        await until_in_force(installation, service.port)
        await installation.publish(used(3, occurred_at=yesterday), used(1, occurred_at=yesterday))
        await until_spent(installation, 2, period=yesterday[:10])
        await until_spent(installation, 1, period=NOW.isoformat()[:10])
    assert [each.from_the_log for each in readings] == [False]


async def test_what_the_tables_leave_out_and_the_log_of_the_period_does_not_is_counted_from_the_log(
    installation: UsageInstallation, readings: list[WatchedReading]
) -> None:
    await installation.log.publish("usage", used(0, occurred_at="2020-01-01T00:00:00Z"), key="k")
    await installation.log.publish("usage", used(0), key="k")
    async with installation.service() as service:
        await installation.until_counted(service.port, 1)
        await apply(installation)
        await until_in_force(installation, service.port)
        await until_spent(installation, 1)
    assert [(each.from_the_log, each.counted()) for each in readings] == [(True, 2)]


async def test_a_budget_that_clickhouse_cannot_tell_of_is_counted_from_the_log(
    installation: UsageInstallation, readings: list[WatchedReading], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> FactIds:
        raise UnavailableError("ClickHouse does not answer")

    monkeypatch.setattr(ClickHouseUsageStore, "fact_ids", away)
    await installation.publish(*(used(number) for number in range(20)))
    async with installation.service() as service:
        await installation.until_counted(service.port, 20)
        await apply(installation, hard=20)
        await until_in_force(installation, service.port)
        await installation.publish(used(3), used(20))
        await until_spent(installation, 21, level="exceeded", events=21)
    assert [(each.from_the_log, each.counted()) for each in readings] == [(True, 20)]


async def _begun(readings: Sequence[WatchedReading], number: int) -> bool:
    return len(readings) == number
