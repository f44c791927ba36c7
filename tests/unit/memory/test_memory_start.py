"""Memory while what it depends on is away: it starts, says what it waits for, and ends when told."""

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.memory.app import MemoryService
from services.memory.qdrant_edge import EdgeMemoryStore
from services.memory.settings import MemorySettings
from services.runtime.errors import ConfigurationError
from services.runtime.settings import load_settings
from tests.support.installation import free_ports
from tests.support.waiting import eventually


def settings(folder: Path, **given: Any) -> MemorySettings:
    """Of a memory whose Kafka does not answer."""
    nobody = f"127.0.0.1:{free_ports(1)}"
    return load_settings(MemorySettings, **({"data_dir": folder, "http_port": 0, "kafka_bootstrap": nobody} | given))


async def test_memory_starts_without_kafka_and_says_what_it_waits_for(tmp_path: Path) -> None:
    given = settings(tmp_path)
    service = MemoryService(given)
    await service.start()
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}") as http:
            ready = await http.get("/readyz")
            assert ready.status_code == 503
            components = ready.json()["components"]
            assert given.bootstrap in components["connections"]["detail"]
            assert not components["projection"]["ready"]
            assert (await http.get("/threads")).json() == {"items": [], "next_cursor": None}
            before = time.monotonic()
            body = {"thread_id": "t-1", "partition": 0, "min_offset": 1, "wait_seconds": 1}
            behind = await http.post("/context", json=body)
            assert behind.status_code == 503
            assert behind.json()["detail"] == "messages[0] is at 0, asked for 1"
            assert time.monotonic() - before < 10
    finally:
        await service.stop()


async def test_memory_starts_without_its_cluster_and_says_what_it_waits_for(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_ports(1)}"
    service = MemoryService(settings(tmp_path, qdrant_url=url))
    await service.start()
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}") as http:
            detail = (await http.get("/readyz")).json()["components"]["connections"]["detail"]
            assert url in detail
            unavailable = await http.get("/threads")
            assert unavailable.status_code == 503
            assert url in unavailable.json()["detail"]
    finally:
        await service.stop()
    assert not (tmp_path / "memory").exists()


async def test_memory_keeps_trying_and_gives_up_only_when_told(tmp_path: Path) -> None:
    class Counting(EdgeMemoryStore):
        asked = 0

        async def positions(self) -> dict[int, int]:
            self.asked += 1
            return {}

    store = Counting(tmp_path)
    service = MemoryService(settings(tmp_path), store=store)
    await service.start()

    async def tried_again() -> bool:
        return store.asked >= 3

    await eventually(tried_again, "a third attempt", seconds=30)
    async with asyncio.timeout(10):
        await service.stop()


async def test_a_folder_in_use_ends_the_start_with_what_to_do(tmp_path: Path) -> None:
    store = EdgeMemoryStore(tmp_path / "memory")
    await store.open()
    service = MemoryService(settings(tmp_path))
    with pytest.raises(ConfigurationError, match="TURNLOG_DATA_DIR"):
        await service.start()
    await service.stop()
    await store.close()


async def test_a_port_in_use_ends_the_start_with_what_to_do(tmp_path: Path) -> None:
    port = free_ports(2)
    taken = await asyncio.start_server(lambda *_: None, "127.0.0.1", port + 1)
    service = MemoryService(settings(tmp_path, http_port=port))
    with pytest.raises(ConfigurationError, match="TURNLOG_HTTP_PORT"):
        await service.start()
    await service.stop()
    taken.close()
    await taken.wait_closed()


async def test_a_service_that_was_never_started_can_be_stopped(tmp_path: Path) -> None:
    await MemoryService(settings(tmp_path)).stop()
