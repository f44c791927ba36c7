"""The usage service on a broker: in this process or in one of its own, over HTTP, with topics of one test."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from services.runtime.kafka import KafkaClients
from services.runtime.topics import apply_topics
from services.usage.app import UsageService
from services.usage.settings import UsageSettings
from tests.conftest import ROOT
from tests.support.log import Log
from tests.support.waiting import eventually

START = datetime(2026, 1, 1, tzinfo=UTC)

PROCESS = """
import asyncio
from services.runtime.service import run_service
from services.runtime.settings import load_settings
from services.usage.app import UsageService
from services.usage.settings import UsageSettings

asyncio.run(run_service(lambda: UsageService(load_settings(UsageSettings))))
"""


def spent(number: int, **fields: Any) -> dict[str, Any]:
    """An event as another system writes it."""
    return {
        "usage_id": f"u{number}",
        "thread_id": f"t-{number % 7}",
        "user_id": f"user-{number % 3}",
        "model": "small" if number % 2 else "large",
        "kind": "completion",
        "input_tokens": number,
        "output_tokens": 2 * number,
        "latency_ms": 10,
        "occurred_at": (START + timedelta(minutes=number)).isoformat(),
    } | fields


@dataclass
class UsageInstallation:
    """Topics of one test, a client of the log, and the settings of the service that reads them."""

    settings: UsageSettings
    log: Log
    http: aiohttp.ClientSession

    @contextlib.asynccontextmanager
    async def service(self, **changes: Any) -> AsyncIterator[UsageService]:
        service = UsageService(self.settings.model_copy(update=changes))
        await service.start()
        try:
            yield service
        finally:
            await service.stop()

    async def process(self, port: int, **environment: str) -> asyncio.subprocess.Process:
        settings = self.settings
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PROCESS),
            env=os.environ
            | {
                "TURNLOG_KAFKA_BOOTSTRAP": settings.bootstrap,
                "TURNLOG_TOPIC_PREFIX": settings.topic_prefix,
                "TURNLOG_DATA_DIR": str(settings.data_dir),
                "TURNLOG_HTTP_PORT": str(port - 2),
            }
            | environment,
            cwd=ROOT,
        )

    async def publish(self, *events: Mapping[str, Any]) -> None:
        await asyncio.gather(*(self.log.publish("usage", event) for event in events))

    async def usage(self, port: int, **parameters: str) -> list[dict[str, Any]]:
        async with self.http.get(f"http://127.0.0.1:{port}/usage", params=parameters) as response:
            assert response.status == 200, await response.text()
            return (await response.json())["items"]

    async def until_counted(self, port: int, events: int, *, seconds: float = 60) -> dict[str, Any]:
        """The sum over everything, once it has so many events."""

        async def counted() -> dict[str, Any] | None:
            try:
                (row,) = await self.usage(port)
            except aiohttp.ClientConnectionError:
                return None
            except AssertionError as error:  # not connected to ClickHouse yet
                return None if "unavailable" in str(error) else pytest.fail(str(error))
            assert row["events"] <= events, f"{row['events']} events counted of {events}"
            return row if row["events"] == events else None

        return await eventually(counted, f"{events} events to be counted", seconds=seconds)

    async def readiness(self, port: int) -> dict[str, Any]:
        async with self.http.get(f"http://127.0.0.1:{port}/readyz") as response:
            document = await response.json()
            assert document["ready"] == (response.status == 200)
            return document


def usage_settings(kafka: str, prefix: str, folder: Path) -> UsageSettings:
    return UsageSettings(
        _env_file=None,  # pyright: ignore
        kafka_bootstrap=kafka,
        topic_prefix=prefix,
        topic_partitions=4,
        topic_replication=1,
        data_dir=folder,
        http_port=0,
    )


@contextlib.asynccontextmanager
async def usage_installation(kafka: str, prefix: str, folder: Path) -> AsyncIterator[UsageInstallation]:
    """Topics are there, no service runs."""
    settings = usage_settings(kafka, prefix, folder)
    await apply_topics(KafkaClients(settings, client_id="test"), settings)
    async with Log(kafka, prefix=prefix) as log, aiohttp.ClientSession() as http:
        yield UsageInstallation(settings, log, http)
