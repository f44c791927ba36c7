"""ClickHouse through clickhouse-connect: the engine in process (chDB) or a server, the same SQL."""

import asyncio
import fcntl
import importlib.resources
import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import IO, Any, TypeVar

import clickhouse_connect

from schemas.http import UsageRow
from schemas.usage import UsageRecorded
from services.runtime.errors import ConfigurationError
from services.usage.queries import COLUMNS, UsageQuery, usage_sql
from services.usage.store import Block

R = TypeVar("R")

EVENT_COLUMNS = (
    "usage_id",
    "tenant_id",
    "thread_id",
    "turn_id",
    "prompt_id",
    "user_id",
    "agent",
    "agent_version",
    "step",
    "attempt",
    "kind",
    "provider",
    "model",
    "tool",
    "input_tokens",
    "cached_input_tokens",
    "output_tokens",
    "reasoning_tokens",
    "latency_ms",
    "first_token_ms",
    "outcome",
    "estimated",
    "billable",
    "occurred_at",
)
BLOCK_COLUMNS = ("source_partition", "source_offset", "block_first", "block_last")


class ClickHouseUsageStore:
    """Two clients, one for writes and one for reads, each on a thread of its own: a client serialises its queries.

    Args:
        url: of a server; None opens the engine in process on `folder`, which one process has open at a time.
    """

    def __init__(self, *, url: str | None, folder: Path) -> None:
        self._url = url
        self._folder = folder
        self._writing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="clickhouse-write")
        self._reading = ThreadPoolExecutor(max_workers=1, thread_name_prefix="clickhouse-read")
        self._writer: Any = None
        self._reader: Any = None
        self._lock: IO[str] | None = None

    async def open(self) -> None:
        if self._url is None:
            self._take_lock()
        self._writer = await self._run(self._writing, self._connect)
        await self._run(self._writing, self._migrate)
        self._reader = await self._run(self._reading, self._connect)

    async def close(self) -> None:
        for pool, client in ((self._reading, self._reader), (self._writing, self._writer)):
            if client is not None:
                await self._run(pool, client.close)
            pool.shutdown()
        if self._lock is not None:
            self._lock.close()

    async def positions(self) -> Mapping[int, int]:
        result = await self._run(
            self._reading,
            self._reader.query,
            "SELECT source_partition, max(block_first) FROM usage_events GROUP BY source_partition",
        )
        return dict(result.result_rows)

    async def insert(self, block: Block) -> None:
        rows = [_row(block, offset, event) for offset, event in block.events]
        await self._run(self._writing, self._insert, rows)

    async def query(self, query: UsageQuery) -> Sequence[UsageRow]:
        statement, parameters = usage_sql(query)
        result = await self._run(self._reading, self._query, statement, parameters)
        return [_usage_row(query, row) for row in result.named_results()]

    def _insert(self, rows: list[list[Any]]) -> None:
        self._writer.insert("usage_events", rows, column_names=[*EVENT_COLUMNS, *BLOCK_COLUMNS])

    def _query(self, statement: str, parameters: dict[str, Any]) -> Any:
        return self._reader.query(statement, parameters=parameters)

    def _connect(self) -> Any:
        if self._url is None:
            return clickhouse_connect.get_client(interface="chdb", path=str(self._folder / "chdb"))
        return clickhouse_connect.get_client(dsn=self._url)

    def _take_lock(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = (self._folder / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise ConfigurationError(
                f"another process has {self._folder} open: stop it or set TURNLOG_DATA_DIR"
            ) from error
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock

    def _migrate(self) -> None:
        """Applies the numbered files that are not on record, each statement by itself, then records the file."""
        client = self._writer
        client.command(
            "CREATE TABLE IF NOT EXISTS schema_version (version UInt32, applied_at DateTime DEFAULT now()) "
            "ENGINE = MergeTree ORDER BY version"
        )
        applied = {row[0] for row in client.query("SELECT version FROM schema_version").result_rows}
        for version, text in migrations():
            if version in applied:
                continue
            for statement in filter(None, (part.strip() for part in text.split(";"))):
                client.command(statement)
            client.insert("schema_version", [[version]], column_names=["version"])

    @staticmethod
    async def _run(pool: ThreadPoolExecutor, call: Callable[..., R], *arguments: Any) -> R:
        return await asyncio.get_running_loop().run_in_executor(pool, call, *arguments)


def migrations() -> list[tuple[int, str]]:
    """Number and text of every migration, in order."""
    folder = importlib.resources.files("services.usage.migrations")
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)
    return [(int(file.name.split("_")[0]), file.read_text()) for file in files]


def _row(block: Block, offset: int, event: UsageRecorded) -> list[Any]:
    values = [getattr(event, name) for name in EVENT_COLUMNS]
    return [*values, block.partition, offset, block.first, block.last]


def _usage_row(query: UsageQuery, row: Mapping[str, Any]) -> UsageRow:
    group: dict[str, str | None] = {name: row[COLUMNS[name]] for name in query.group_by}
    if query.bucket is not None:
        bucket = row["bucket"]
        group = {"bucket": bucket.isoformat() if isinstance(bucket, datetime) else str(bucket), **group}
    average = row["latency_avg"]
    return UsageRow(
        group=group,
        events=row["events"],
        billable_events=row["billable_events"],
        input_tokens=row["input_tokens_sum"],
        cached_input_tokens=row["cached_sum"],
        output_tokens=row["output_tokens_sum"],
        reasoning_tokens=row["reasoning_sum"],
        latency_ms_avg=None if math.isnan(average) else average,
    )
