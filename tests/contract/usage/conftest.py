"""Usage's store on chDB in process and on a server over HTTP.

The server is TURNLOG_TEST_CLICKHOUSE_URL (without a database; each test makes its own), else the stand-in of
`tests.support.clickhouse`. chDB takes one folder a process at a time and another one after it was closed, so each test
has a folder of its own here; what needs a second process, or one to kill, starts it.
"""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import clickhouse_connect
import pytest

from services.usage.clickhouse import ClickHouseUsageStore
from tests.support.clickhouse import ClickHouseServer
from tests.support.installation import free_ports
from tests.support.usage_tables import Place


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if given := os.environ.get("TURNLOG_TEST_CLICKHOUSE_URL"):
        yield given.rstrip("/")
        return
    stand_in = ClickHouseServer(tmp_path_factory.mktemp("clickhouse"), port=free_ports(1))
    stand_in.start()
    yield stand_in.url
    stand_in.kill()


@pytest.fixture(params=["chdb", "server"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "chdb":
        yield Place(None, tmp_path / "usage")
        return
    url, name = request.getfixturevalue("server"), f"test_{uuid4().hex[:12]}"
    with clickhouse_connect.get_client(dsn=url) as admin:
        admin.command(f"CREATE DATABASE {name}")
        yield Place(f"{url}/{name}", tmp_path / "usage")
        admin.command(f"DROP DATABASE {name}")


@pytest.fixture
async def store(place: Place) -> AsyncIterator[ClickHouseUsageStore]:
    opened = place.store()
    await opened.open()
    yield opened
    await opened.close()
