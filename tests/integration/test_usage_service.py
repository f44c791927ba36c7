"""The usage service on the real broker: from records on the log to sums over HTTP, through restarts and kills."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import clickhouse_connect
import httpx
import pytest

from services.cli.audit.usage import audit_usage
from services.runtime.connections import RETRY_SECONDS
from services.runtime.errors import ConfigurationError
from services.runtime.kafka import KafkaClients
from services.runtime.topics import apply_topics
from services.usage.app import UsageService
from services.usage.settings import UsageSettings
from tests.support.clickhouse import ClickHouseServer
from tests.support.installation import free_ports
from tests.support.usage_service import START, UsageInstallation, spent, usage_installation, usage_settings
from tests.support.waiting import eventually

pytestmark = pytest.mark.broker


@pytest.fixture
async def installation(kafka: str, prefix: str, tmp_path: Path) -> AsyncIterator[UsageInstallation]:
    async with usage_installation(kafka, prefix, tmp_path) as made:
        yield made


async def test_the_sums_are_those_of_the_log(installation: UsageInstallation) -> None:
    events = [spent(number) for number in range(200)]
    await installation.publish(*events[:100])
    async with installation.service() as service:
        await installation.until_counted(service.port, 100)
        await installation.publish(*events[100:])
        whole = await installation.until_counted(service.port, 200)
        assert whole["input_tokens"] == sum(event["input_tokens"] for event in events)
        assert whole["output_tokens"] == sum(event["output_tokens"] for event in events)
        rows = await installation.usage(service.port, group_by="user,model")
        assert {(row["group"]["user"], row["group"]["model"]): row["input_tokens"] for row in rows} == {
            (user, model): sum(
                event["input_tokens"] for event in events if (event["user_id"], event["model"]) == (user, model)
            )
            for user in ("user-0", "user-1", "user-2")
            for model in ("small", "large")
        }
        (hour,) = await installation.usage(
            service.port, bucket="hour", **{"from": "2026-01-01T01:00:00Z", "to": "2026-01-01T02:00:00Z"}
        )
        assert (hour["group"], hour["events"]) == ({"bucket": "2026-01-01T01:00:00Z"}, 60)
        assert (await installation.readiness(service.port))["ready"]


async def test_what_is_no_usage_is_a_dead_letter_and_the_rest_is_counted(installation: UsageInstallation) -> None:
    # All on one partition, so that each good one has a bad one before it.
    bad: list[bytes | dict[str, Any]] = [
        b"no json",
        {"kind": "completion"},
        spent(900, input_tokens=-1),
        spent(901, input_tokens=10**30),
        spent(902, step=-1),
        spent(903, occurred_at="9999-01-01T00:00:00Z"),
        spent(904, occurred_at=(datetime.now(UTC) + timedelta(hours=2)).isoformat()),
    ]
    async with installation.service() as service:
        for number, value in enumerate(bad):
            await installation.log.publish("usage", value, key="t-1")
            await installation.log.publish("usage", spent(number), key="t-1")
        await installation.until_counted(service.port, len(bad))
        letters = await installation.log.wait_for("dead-letters", lambda _: True, count=len(bad))
        assert [letter["reason"] for letter in letters] == ["not_json"] + ["not_an_event"] * 6
        assert {letter["source"] for letter in letters} == {"turnlog-usage"}
        assert [letter["message"].partition(":")[0] for letter in letters[2:]] == [
            "input_tokens",
            "input_tokens",
            "step",
            "occurred_at",
            "occurred_at",
        ]
        assert (await installation.readiness(service.port))["ready"]


async def test_a_fact_that_was_written_twice_counts_once(installation: UsageInstallation) -> None:
    async with installation.service() as service:
        await installation.publish(spent(1), spent(2), spent(1))
        await installation.until_counted(service.port, 2)
        await installation.publish(spent(2), spent(2, thread_id="t-other"), spent(3))
        row = await installation.until_counted(service.port, 3)
        assert row["input_tokens"] == 1 + 2 + 3


async def test_usage_of_another_system_counts_in_the_period_that_it_is_of_and_the_first_of_two_counts(
    installation: UsageInstallation,
) -> None:
    """Without a tenant it is the default one's, without a known model it is unpriced; late usage is in its month."""
    ours = {"usage_id": "theirs-1", "kind": "completion", "model": "nobody's", "input_tokens": 5}
    async with installation.service() as service:
        await installation.log.publish("usage", ours | {"occurred_at": "2019-05-31T23:59:59.999999Z"}, key="k")
        await installation.log.publish("usage", ours | {"occurred_at": "2019-05-31T23:59:59.999999Z"}, key="k")
        await installation.log.publish("usage", ours | {"occurred_at": "2020-01-01T00:00:00Z"}, key="k")
        await installation.log.publish("usage", spent(3), key="k")
        row = await installation.until_counted(service.port, 2)
        assert row["unpriced_events"] == 2
        months = await installation.usage(service.port, bucket="month", tenant_id="default")
        assert [(each["group"]["bucket"][:7], each["events"]) for each in months] == [("2019-05", 1), ("2026-01", 1)]
        async with installation.http.get(f"http://127.0.0.1:{service.port}/audit/conflicts") as response:
            (conflict,) = (await response.json())["items"]
        assert (conflict["usage_id"], conflict["fields"]) == ("theirs-1", ["occurred_at"])


async def test_a_service_that_starts_again_goes_on_where_it_was(installation: UsageInstallation) -> None:
    await installation.publish(*(spent(number) for number in range(50)))
    async with installation.service() as service:
        await installation.until_counted(service.port, 50)
    await installation.publish(*(spent(number) for number in range(50, 80)))
    async with installation.service() as service:
        row = await installation.until_counted(service.port, 80)
        assert row["input_tokens"] == sum(range(80))


async def test_months_that_are_not_kept_go_and_the_audit_compares_the_rest(installation: UsageInstallation) -> None:
    now = datetime.now(UTC)
    past = (now - timedelta(days=100)).isoformat()
    await installation.publish(*(spent(number, occurred_at=past) for number in range(40)))
    await installation.publish(*(spent(number, occurred_at=now.isoformat()) for number in range(40, 80)))
    settings = installation.settings.model_copy(update={"http_port": free_ports(3)})

    async def missing() -> int:
        findings = await audit_usage(settings)
        assert {each.problem for each in findings.differences} <= {"missing"}
        return findings.total

    async with installation.service(http_port=settings.http_port) as service:
        await installation.until_counted(service.port, 80)
        assert await missing() == 0
    async with installation.service(http_port=settings.http_port, usage_keep_months=1) as service:

        async def dropped() -> bool:
            (row,) = await installation.usage(service.port)
            return row["events"] == 40

        await eventually(dropped, "the old month to go")
        assert await missing() == 0
        await installation.publish(*(spent(number, occurred_at=now.isoformat()) for number in range(80, 90)))
        await installation.until_counted(service.port, 50)
    async with installation.service(http_port=settings.http_port) as service:
        await installation.until_counted(service.port, 50)
        assert await missing() == 40


def applied(name: str, version: str, **fields: Any) -> tuple[dict[str, Any], str]:
    """A price as it is written to the log, with its key."""
    return {"name": name, "effective_from": START.isoformat(), **fields}, f"{name}@{version}"


async def test_usage_is_rated_by_the_prices_on_the_log(installation: UsageInstallation) -> None:
    """Past usage too, whenever a price comes; the one applied last counts; what is no price changes nothing."""

    async def apply(value: Mapping[str, Any], key: str) -> None:
        await installation.log.publish("prices", b"no json", key="nonsense")
        await installation.log.publish("prices", value, key=key)

    dear = applied("small", "1", model="small", rates={"input": "2", "output": "2"})
    cheap = applied("small", "2", model="small", rates={"input": "1", "output": "1"})
    markup = applied("all", "1", figure="price", markup="1")

    async def until(port: int, cost: dict[str, str], price: dict[str, str]) -> dict[str, Any]:
        async def rated() -> dict[str, Any] | None:
            (row,) = await installation.usage(port)
            return row if (row["cost"], row["price"]) == (cost, price) else None

        return await eventually(rated, f"a cost of {cost} and a price of {price}")

    await installation.publish(spent(1), spent(2), spent(3))
    async with installation.service() as service:
        assert (await installation.until_counted(service.port, 3))["unpriced_events"] == 3
        await apply(*dear)
        row = await until(service.port, {"USD": "0.000024"}, {"USD": "0.000024"})
        assert row["unpriced_events"] == 1  # nobody knows what the large model costs
        await apply(*cheap)
        await until(service.port, {"USD": "0.000012"}, {"USD": "0.000012"})
        await apply(*dear)
        await apply(*markup)
        await until(service.port, {"USD": "0.000024"}, {"USD": "0.000048"})
    async with installation.service() as service:
        (row,) = await installation.usage(service.port)
        assert (row["cost"], row["price"]) == ({"USD": "0.000024"}, {"USD": "0.000048"})


@pytest.mark.parametrize("point", ["projection.before_store", "projection.after_store"])
async def test_a_kill_around_an_insert_loses_and_doubles_nothing(installation: UsageInstallation, point: str) -> None:
    port = free_ports(3) + 2
    await installation.publish(*(spent(number) for number in range(60)))
    killed = await installation.process(port, TURNLOG_FAILPOINTS=f"{point}=kill@2")
    assert await asyncio.wait_for(killed.wait(), 60) == -signal.SIGKILL
    await installation.publish(*(spent(number) for number in range(60, 90)))
    again = await installation.process(port)
    try:
        row = await installation.until_counted(port, 90)
        assert row["input_tokens"] == sum(range(90))
        async with installation.http.get(f"http://127.0.0.1:{port}/audit/imbalances") as response:
            assert await response.json() == {"items": []}
    finally:
        again.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(again.wait(), 30) == 0


async def test_a_second_service_on_the_folder_does_not_start(installation: UsageInstallation) -> None:
    port = free_ports(3) + 2
    first = await installation.process(port)
    try:
        await installation.until_counted(port, 0)
        second = UsageService(installation.settings)
        with pytest.raises(ConfigurationError, match=rf"another process \({first.pid}\) has .* open: stop it"):
            await second.start()
        await second.stop()
    finally:
        first.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(first.wait(), 30) == 0


async def test_a_server_that_is_away_is_waited_for_and_nothing_is_lost(
    installation: UsageInstallation, tmp_path: Path
) -> None:
    server = ClickHouseServer(tmp_path / "clickhouse", port=free_ports(1))
    url = UsageSettings(_env_file=None, clickhouse_url=f"{server.url}/default").clickhouse_url  # pyright: ignore
    await installation.publish(*(spent(number) for number in range(20)))
    async with installation.service(clickhouse_url=url) as service:
        waiting = await installation.readiness(service.port)
        assert not waiting["ready"]
        assert "does not answer" in waiting["components"]["connections"]["detail"]
        assert "secret" not in json.dumps(waiting)
        async with installation.http.get(f"http://127.0.0.1:{service.port}/usage") as response:
            assert (response.status, response.content_type) == (503, "application/problem+json")

        server.start()
        try:
            await installation.until_counted(service.port, 20)
            server.kill()
            await installation.publish(*(spent(number) for number in range(20, 40)))

            async def says_so() -> bool:
                projection = (await installation.readiness(service.port))["components"]["projection"]
                return not projection["ready"] and "does not answer" in projection["detail"]

            await eventually(says_so, "readiness to say that ClickHouse is away")
            server.start()
            row = await installation.until_counted(service.port, 40)
            assert row["input_tokens"] == sum(range(40))

            async def ready() -> bool:
                return (await installation.readiness(service.port))["ready"]

            await eventually(ready, "the service to be ready again")
        finally:
            server.kill()


async def test_dashboards_find_the_prices_on_the_log_also_after_clickhouse_was_away(
    installation: UsageInstallation, tmp_path: Path
) -> None:
    server = ClickHouseServer(tmp_path / "clickhouse", port=free_ports(1))
    url = UsageSettings(_env_file=None, clickhouse_url=f"{server.url}/default").clickhouse_url  # pyright: ignore
    server.start()

    async def until(cost: float) -> None:
        def shown() -> Any:
            with clickhouse_connect.get_client(dsn=f"{server.url}/default") as client:
                return client.query("SELECT sum(cost), sum(unpriced_events) FROM usage_money").result_rows

        async def found() -> bool:
            return await asyncio.to_thread(shown) == [(pytest.approx(cost), 1)]

        await eventually(found, f"a cost of {cost} on dashboards")

    await installation.publish(spent(1), spent(2), spent(3))
    try:
        async with installation.service(clickhouse_url=url) as service:
            await installation.until_counted(service.port, 3)
            small = {"model": "small", "rates": {"input": "2", "output": "2"}}
            value, key = applied("small", "1", **small)
            await installation.log.publish("prices", value, key=key)
            await until(0.000024)
            server.kill()
            value, key = applied("small", "2", **small | {"rates": {"input": "1", "output": "1"}})
            await installation.log.publish("prices", value, key=key)

            async def says_so() -> bool:
                rates = (await installation.readiness(service.port))["components"]["rates"]
                return rates["ready"] and "does not answer" in rates["detail"]

            await eventually(says_so, "readiness to say what rates wait for")
            server.start()
            await until(0.000012)
            assert (await installation.readiness(service.port))["components"]["rates"] == {"ready": True, "detail": ""}
    finally:
        server.kill()


async def test_a_start_before_the_topics_are_there_answers_nothing_wrong_and_logs_little(
    kafka: str, prefix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = usage_settings(kafka, prefix, tmp_path)
    service = UsageService(settings)
    starting = asyncio.create_task(service.start())
    try:
        await eventually(lambda: _missing_topics(service), "readiness to say which topic is missing")
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}") as http:
            assert (await http.get("/healthz")).status_code == 200
            for path in ("/usage", "/invoices", "/credits", "/invoices/draft?period=2026-01"):
                response = await http.get(path)
                assert (response.status_code, response.headers.get("retry-after")) == (503, "1")
            await asyncio.sleep(2 * RETRY_SECONDS)
            assert not [each for each in caplog.records if "not found" in each.getMessage()]
            await apply_topics(KafkaClients(settings, client_id="test"), settings)
            await asyncio.wait_for(starting, 30)
            assert (await http.get("/invoices")).json()["items"] == []
            assert (await http.get("/usage")).status_code == 200
            assert (await http.get("/invoices/draft?period=2026-01")).json()["type"].endswith(":no-plan")
            assert (await http.get("/budgets")).json() == {"items": [], "next_cursor": None}
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await service.stop()


async def _missing_topics(service: UsageService) -> bool:
    topics = (await service.readiness())["topics"]
    return not topics.ready and "run `turnlog topics apply`" in topics.detail
