"""Where the tables of a test of usage are, and what is put into them."""

import asyncio
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import clickhouse_connect

from schemas.usage import UsageRecorded
from services.usage.clickhouse import ClickHouseUsageStore
from services.usage.placement import Placement
from services.usage.queries import UsageGroup, UsageQuery
from services.usage.rows import row_of
from services.usage.store import Block

START = datetime(2026, 1, 31, 23, 30, tzinfo=UTC)

EXACT_AND_SUMMED: list[dict[str, Any]] = [
    {"since": datetime(1970, 1, 1, 0, 0, 0, 1, tzinfo=UTC)},
    {"since": datetime(1970, 1, 1, 0, 1, tzinfo=UTC)},
    {"since": datetime(1970, 1, 1, 1, 0, tzinfo=UTC)},
    {},
]
"""Questions about everything that the rows answer, the sums of minutes, those of hours, and those of days."""

CHILD = """
import asyncio, json, signal, sys
from pathlib import Path
from schemas.usage import UsageRecorded
from services.runtime.errors import ConfigurationError
from services.usage.clickhouse import ClickHouseUsageStore
from services.usage.placement import Placement
from services.usage.queries import UsageQuery
from services.usage.store import ReadBounds, TooMuchAskedError
from tests.support.usage_tables import block

url, folder, placement, what = sys.argv[1:]

async def main():
    store = ClickHouseUsageStore(url=url or None, folder=Path(folder), placement=Placement(**json.loads(placement)))
    await store.open()
    if what == "query":
        rows = await store.query(UsageQuery("default", bucket="day"))
        print(json.dumps([row.group for row in rows]), flush=True)
        await store.close()
        return
    first, size, count, *seconds = json.loads(what)
    if seconds:
        signal.setitimer(signal.ITIMER_REAL, *seconds)  # nothing handles it: it ends the process as a kill does
    for begin in range(first, first + size * count, size):
        events = [
            UsageRecorded(usage_id=f"u{offset}", kind="tool", input_tokens=1, occurred_at="2026-01-01T00:00Z")
            for offset in range(begin, begin + size)
        ]
        await store.insert(block(*events, first=begin))
        print(begin + size, flush=True)
    signal.pause()

try:
    asyncio.run(main())
except ConfigurationError as error:
    sys.exit(f"refused: {error}")
"""


@dataclass(frozen=True)
class Place:
    """Where the tables of one test are. `url` None is chDB."""

    url: str | None
    folder: Path
    placement: Placement = field(default_factory=Placement)

    def store(self, **placed: Any) -> ClickHouseUsageStore:
        """Fields of `placed` are those of another placement."""
        return ClickHouseUsageStore(url=self.url, folder=self.folder, placement=replace(self.placement, **placed))

    def run(self, client: Any, statements: Iterable[str]) -> None:
        """Statements of the migrations, or like them."""
        for statement in statements:
            for placed in self.placement.placed(statement):
                client.command(placed)

    def client(self) -> Any:
        if self.url is None:
            return clickhouse_connect.get_client(interface="chdb", path=str(self.folder / "chdb"))
        return clickhouse_connect.get_client(dsn=self.url)

    async def process(self, what: str, **environment: str) -> asyncio.subprocess.Process:
        """A process that has the same tables open."""
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", CHILD, self.url or "", str(self.folder), json.dumps(asdict(self.placement)), what),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | environment,
            cwd=Path(__file__).parents[2],
        )


def spent(number: int = 0, **fields: Any) -> UsageRecorded:
    fields = {"usage_id": f"u{number}", "kind": "completion", "input_tokens": 1, "occurred_at": START} | fields
    return UsageRecorded.model_validate(fields)


def block(*events: UsageRecorded, partition: int = 0, first: int = 0) -> Block:
    rows = [(offset, row_of(event, 0)) for offset, event in enumerate(events, first)]
    return Block(partition, first, first + len(events) - 1, rows)


async def total(store: ClickHouseUsageStore, **filters: Any) -> UsageGroup:
    (row,) = await store.query(UsageQuery("default", **filters))
    return row
