"""Usage's store on chDB in process, on a server over HTTP, and spread over the shards of a cluster.

The server is TURNLOG_TEST_CLICKHOUSE_URL (without a database; each test makes its own), and its cluster
TURNLOG_TEST_CLICKHOUSE_CLUSTER; else both are the stand-in's of `tests.support.clickhouse`. chDB takes one folder a
process at a time and another one after it was closed, so each test has a folder of its own here; what needs a second
process, or one to kill, starts it.
"""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import clickhouse_connect
import pytest

from services.usage.clickhouse import ClickHouseUsageStore
from services.usage.placement import Placement
from tests.support.clickhouse import CLUSTER, ClickHouseServer
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


@pytest.fixture(scope="session")
def cluster() -> str:
    if os.environ.get("TURNLOG_TEST_CLICKHOUSE_URL"):
        return os.environ.get("TURNLOG_TEST_CLICKHOUSE_CLUSTER") or pytest.skip("a server without a cluster")
    return CLUSTER


@pytest.fixture(params=["chdb", "server", "sharded"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "chdb":
        yield Place(None, tmp_path / "usage")
        return
    url, name = request.getfixturevalue("server"), f"test_{uuid4().hex[:12]}"
    placement, where = Placement(), ""
    if request.param == "sharded":
        cluster = request.getfixturevalue("cluster")
        placement, where = Placement(cluster=cluster, sharded=True, database=name), f" ON CLUSTER `{cluster}`"
    with clickhouse_connect.get_client(dsn=url) as admin:
        admin.command(f"CREATE DATABASE {name}{where}")
        yield Place(f"{url}/{name}", tmp_path / "usage", placement)
        admin.command(f"DROP DATABASE {name}{where}")


@pytest.fixture
async def store(place: Place) -> AsyncIterator[ClickHouseUsageStore]:
    opened = place.store()
    await opened.open()
    yield opened
    await opened.close()
