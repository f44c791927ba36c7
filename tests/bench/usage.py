"""Usage's engine in process, with nothing beside it: how fast it takes usage in, and answers from ten million rows.

Records go from JSON through the projection into the tables in blocks as a rebuild has them, but there is no Kafka. The
rows that questions are asked of are made in the engine, by INSERT ... SELECT from numbers(): three months, a hundred
tenants, four rows a thread within a minute. Questions go to the store one after the other, without HTTP and prices.
"""

import json
import os
import resource
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import clickhouse_connect

from schemas.envelope import decode_event
from schemas.ids import derived_id
from schemas.topics import USAGE
from services.runtime.garbage import collect_rarely
from services.runtime.pricing.defaults import PackagedPrices
from services.runtime.records import ProjectedRecord
from services.usage.app import BLOCK_RECORDS, UsageProjection
from services.usage.clickhouse import ClickHouseUsageStore
from services.usage.queries import UsageQuery
from services.usage.rows import row_of
from tests.bench.bench_installation import resident_megabytes
from tests.bench.report import Figure
from tests.bench.turns import percentile
from tests.bench.usage_rows import fill

PROJECTED, FILLED = 300_000, 10_000_000
READS = 20
START = datetime(2026, 1, 1, tzinfo=UTC)

FILL = {
    "tenant_id": "concat('tenant-', toString(intDiv(number, 4) % 100))",
    "occurred_at": "fromUnixTimestamp64Micro(toInt64(1767225600000000 + intDiv(number, 4) * 3110400), 'UTC')",
    "source_offset": "number + 1000000",
}

TOP_TENANTS = (
    "SELECT tenant_id, sum(input_tokens + output_tokens) AS tokens, sum(events) FROM usage_days_a "
    "GROUP BY tenant_id ORDER BY tokens DESC LIMIT 10"
)


async def measure() -> list[Figure]:
    """One store in an empty folder. Python's collector is as it is in a service."""
    collect_rarely()
    with tempfile.TemporaryDirectory(prefix="turnlog-bench-") as name:
        figures = await _project(Path(name))
        figures += _fill(Path(name))
        return figures + await _ask(Path(name))


async def _project(folder: Path) -> list[Figure]:
    values = [_value(number) for number in range(PROJECTED)]
    store = ClickHouseUsageStore(url=None, folder=folder)
    await store.open()
    began, processor = time.perf_counter(), _processor_seconds()
    projection = UsageProjection(store)
    for first in range(0, PROJECTED, BLOCK_RECORDS):
        records: list[ProjectedRecord] = []
        for offset, value in enumerate(values[first : first + BLOCK_RECORDS], first):
            event = decode_event(USAGE, value, {}, max_bytes=len(value))
            records.append(ProjectedRecord(offset, 0, None, row_of(event, 0)))
        await projection.apply(0, records, first + len(records))
    seconds, processor = time.perf_counter() - began, _processor_seconds() - processor
    await store.close()
    return [
        Figure("rows decoded and stored a second", PROJECTED / seconds, "/s"),
        Figure("rows decoded and stored a second of CPU", PROJECTED / processor, "/s"),
    ]


def _value(number: int) -> bytes:
    occurred_at = START + timedelta(seconds=number)
    return json.dumps(
        {
            "usage_id": derived_id("bench", str(number), at=occurred_at),
            "thread_id": f"t-{number // 4}",
            "user_id": f"user-{number % 50}",
            "agent": "assistant",
            "kind": "completion",
            "provider": "openai",
            "model": "gpt-4o",
            "input_tokens": number % 3000,
            "output_tokens": number % 400,
            "latency_ms": 200,
            "occurred_at": occurred_at.isoformat(),
        }
    ).encode()


def _fill(folder: Path) -> list[Figure]:
    with clickhouse_connect.get_client(interface="chdb", path=str(folder / "chdb")) as client:
        began = time.perf_counter()
        fill(client, FILLED, **FILL)
        figures = [Figure(f"{FILLED:,} rows made, and their sums", time.perf_counter() - began, "s")]
        for table in ("usage_events_a", "usage_minutes_a", "usage_hours_a", "usage_days_a"):
            client.command(f"OPTIMIZE TABLE {table} FINAL")
            ((rows, size),) = client.query(
                f"SELECT sum(rows), sum(bytes_on_disk) FROM system.parts WHERE active AND table = '{table}'"
            ).result_rows
            figures += [Figure(f"{table}: rows", rows, ""), Figure(f"{table}: on disk", size / 1e6, "MB")]
        return figures


async def _ask(folder: Path) -> list[Figure]:
    store = ClickHouseUsageStore(url=None, folder=folder)
    await store.open()
    since, until = datetime(2026, 2, 1, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC)
    boundaries = PackagedPrices().boundaries
    asked = {
        "a tenant's month by day and model": UsageQuery(
            "tenant-7", ["model"], bucket="day", boundaries=boundaries, since=since, until=until
        ),
        "a tenant's month by user": UsageQuery("tenant-7", ["user"], boundaries=boundaries, since=since, until=until),
        "a tenant's month by thread, the first hundred": UsageQuery(
            "tenant-7", ["thread"], boundaries=boundaries, since=since, until=until
        ),
        "a tenant's month by turn, from the rows": UsageQuery(
            "tenant-7", ["turn"], boundaries=boundaries, since=since, until=until
        ),
        "a tenant's three months by hour": UsageQuery("tenant-7", bucket="hour", boundaries=boundaries, limit=1000),
    }
    figures = [figure for name, query in asked.items() for figure in await _timed(name, lambda q=query: store.query(q))]
    figures.append(Figure("resident", sum((await resident_megabytes(os.getpid())).values()), "MB"))
    await store.close()
    with clickhouse_connect.get_client(interface="chdb", path=str(folder / "chdb")) as client:

        async def top() -> object:
            return client.query(TOP_TENANTS).result_rows

        figures += await _timed("the ten tenants of most tokens, of all", top)
    return figures


async def _timed(name: str, ask: Callable[[], Awaitable[object]]) -> Sequence[Figure]:
    took: list[float] = []
    for _ in range(READS):
        began = time.perf_counter()
        await ask()
        took.append((time.perf_counter() - began) * 1000)
    ordered = sorted(took)
    return [
        Figure(f"{name}: median", percentile(ordered, 50), "ms"),
        Figure(f"{name}: 95th", percentile(ordered, 95), "ms"),
    ]


def _processor_seconds() -> float:
    spent = resource.getrusage(resource.RUSAGE_SELF)
    return spent.ru_utime + spent.ru_stime
