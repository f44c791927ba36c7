"""ClickHouse through clickhouse-connect: the engine in process (chDB) or a server, the same SQL."""

import asyncio
import fcntl
import importlib.resources
import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit

import clickhouse_connect
from clickhouse_connect.driver.exceptions import ClickHouseError, OperationalError

from schemas.http import UsageDigest
from services.runtime.disk import require_room
from services.runtime.errors import ConfigurationError, UnavailableError
from services.usage.fingerprint import BUCKET, hash_sql, values_sql
from services.usage.queries import COLUMNS, UsageGroup, UsageQuery, cell_from, usage_sql
from services.usage.rows import BLOCK_COLUMNS, EVENT_COLUMNS, rows_of
from services.usage.store import Block

R = TypeVar("R")

CONNECT_SECONDS = 5
ANSWER_SECONDS = 60
"""Most that a server may take; a server that hangs would hold up every query behind it."""

INSERT_SETTINGS = {"max_partitions_per_insert_block": 0}
"""A block read again after years spans more months than the 100 that ClickHouse allows by itself."""


LIVE = "usage_events"
BUILD = "usage_events_build"
"""The table that is filled while usage is rebuilt, and after the switch the old one until it is dropped."""

DROP_BUILD = f"DROP TABLE IF EXISTS {BUILD} SYNC"

DIGESTS = (
    f"SELECT source_partition, intDiv(source_offset, {BUCKET}) AS bucket, "  # noqa: S608 - our own
    "source_offset >= {ends:Array(UInt64)}[source_partition + 1] AS beyond, "
    f"count(), groupBitXor({hash_sql()}) FROM {LIVE} FINAL "
    "GROUP BY source_partition, bucket, beyond ORDER BY source_partition, bucket, beyond"
)
"""A partition that the log does not have ends at 0: an array answers so beyond its end."""


class ClickHouseUsageStore:
    """Two clients, one for writes and one for reads, each on a thread of its own: a client serialises its queries.

    Args:
        url: of a server; None opens the engine in process on `folder`, which one process has open at a time.
    """

    def __init__(self, *, url: str | None, folder: Path) -> None:
        self._url = url
        self._folder = folder
        self._name = _without_password(url) if url else str(folder)
        self._writing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="clickhouse-write")
        self._reading = ThreadPoolExecutor(max_workers=1, thread_name_prefix="clickhouse-read")
        self._writer: Any = None
        self._reader: Any = None
        self._lock: IO[str] | None = None

    async def open(self) -> None:
        if self._url is None and self._lock is None:
            self._lock = _locked(self._folder)
        try:
            self._writer = self._writer or await self._run(self._writing, self._connect)
            await self._run(self._writing, self._migrate)
            self._reader = self._reader or await self._run(self._reading, self._connect)
        except ClickHouseError as error:
            raise ConfigurationError(f"ClickHouse at {self._name} cannot be used: {_first_line(error)}") from error

    async def close(self) -> None:
        for pool, client in ((self._reading, self._reader), (self._writing, self._writer)):
            if client is not None:
                await self._run(pool, client.close)
            pool.shutdown()
        self._reader = self._writer = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    async def positions(self) -> Mapping[int, int]:
        statement = "SELECT source_partition, max(block_first) FROM usage_events GROUP BY source_partition"
        result = await self._run(self._reading, self._query, statement, {})
        return dict(result.result_rows)

    async def insert(self, block: Block) -> None:
        await self.insert_into(LIVE, block)

    async def begin_build(self) -> "UsageTable":
        await self.clean()
        await self._command(f"CREATE TABLE {BUILD} AS {LIVE}")
        return UsageTable(self, BUILD)

    async def switch(self) -> None:
        await self._command(f"EXCHANGE TABLES {LIVE} AND {BUILD}")

    async def clean(self) -> None:
        await self._command(DROP_BUILD)

    async def digests(self, ends: Sequence[int]) -> Sequence[UsageDigest]:
        result = await self._run(self._reading, self._query, DIGESTS, {"ends": list(ends)})
        return [
            UsageDigest(partition=partition, first=bucket * BUCKET, beyond=bool(beyond), rows=rows, hash=xor)
            for partition, bucket, beyond, rows, xor in result.result_rows
        ]

    async def rows(self, partition: int, first: int, end: int, *, limit: int) -> Sequence[list[str | None]]:
        parameters = {"partition": partition, "first": first, "end": end, "limit": limit}
        return await self._texts(
            "source_partition = {partition:UInt32} AND source_offset >= {first:UInt64} AND "
            "source_offset < {end:UInt64} ORDER BY source_offset, tenant_id, usage_id LIMIT {limit:UInt32}",
            parameters,
        )

    async def facts(self, facts: Sequence[tuple[str, str]]) -> Sequence[list[str | None]]:
        parameters = {"tenants": [tenant for tenant, _ in facts], "ids": [usage_id for _, usage_id in facts]}
        return await self._texts(
            "(tenant_id, usage_id) IN (SELECT arrayJoin(arrayZip({tenants:Array(String)}, {ids:Array(String)})))",
            parameters,
        )

    async def _texts(self, condition: str, parameters: dict[str, Any]) -> Sequence[list[str | None]]:
        statement = f"SELECT {', '.join(values_sql())} FROM {LIVE} FINAL WHERE {condition}"  # noqa: S608 - our own
        result = await self._run(self._reading, self._query, statement, parameters)
        return [list(row) for row in result.result_rows]

    async def insert_into(self, table: str, block: Block) -> None:
        """Inserts a block into the live table or another one. Raises UnavailableError while the disk is full."""
        if self._url is None:
            require_room(self._folder)
        await self._run(self._writing, self._insert, table, block)

    async def _command(self, statement: str) -> None:
        await self._run(self._writing, lambda: _opened(self._writer).command(statement))

    async def query(self, query: UsageQuery) -> Sequence[UsageGroup]:
        statement, parameters = usage_sql(query)
        result = await self._run(self._reading, self._query, statement, parameters)
        return [_usage_group(query, row) for row in result.named_results()]

    def _insert(self, table: str, block: Block) -> None:
        columns = [*EVENT_COLUMNS, *BLOCK_COLUMNS]
        _opened(self._writer).insert(table, rows_of(block), column_names=columns, settings=INSERT_SETTINGS)

    def _query(self, statement: str, parameters: dict[str, Any]) -> Any:
        return _opened(self._reader).query(statement, parameters=parameters)

    def _connect(self) -> Any:
        if self._url is None:
            return clickhouse_connect.get_client(interface="chdb", path=str(self._folder / "chdb"))
        return clickhouse_connect.get_client(
            dsn=self._url,
            connect_timeout=CONNECT_SECONDS,
            send_receive_timeout=ANSWER_SECONDS,
            autogenerate_session_id=False,  # a session stays locked by a query whose client has given up
        )

    def _migrate(self) -> None:
        """Applies the numbered files that are not on record, each statement by itself, then records the file."""
        client = self._writer
        client.command(DROP_BUILD)
        client.command(
            "CREATE TABLE IF NOT EXISTS schema_version (version UInt32, applied_at DateTime DEFAULT now()) "
            "ENGINE = MergeTree ORDER BY version"
        )
        applied = {row[0] for row in client.query("SELECT version FROM schema_version").result_rows}
        known = migrations()
        newest = max(version for version, _ in known)
        if max(applied, default=0) > newest:
            raise ConfigurationError(
                f"the usage tables at {self._name} have version {max(applied)}, this release of Turnlog knows "
                f"{newest}: run the release that made them, or a later one"
            )
        for version, text in known:
            if version in applied:
                continue
            for statement in filter(None, (part.strip() for part in text.split(";"))):
                client.command(statement)
            client.insert("schema_version", [[version]], column_names=["version"])

    async def _run(self, pool: ThreadPoolExecutor, call: Callable[..., R], *arguments: Any) -> R:
        """Runs a call of the client on its thread. Raises UnavailableError when ClickHouse does not answer it."""
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, call, *arguments)
        except OperationalError as error:
            raise UnavailableError(f"ClickHouse at {self._name} does not answer: {_first_line(error)}") from error


class UsageTable:
    """A table that is filled beside the live one."""

    def __init__(self, store: ClickHouseUsageStore, table: str) -> None:
        self._store = store
        self._table = table

    async def positions(self) -> Mapping[int, int]:
        """Nothing is read on into a build: one that was not finished is begun anew."""
        return {}

    async def insert(self, block: Block) -> None:
        await self._store.insert_into(self._table, block)


def migrations() -> list[tuple[int, str]]:
    """Number and text of every migration, in order."""
    folder = importlib.resources.files("services.usage.migrations")
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)
    return [(int(file.name.split("_")[0]), file.read_text()) for file in files]


def _locked(folder: Path) -> IO[str]:
    """The lock on a folder; its file says which process holds it. chDB's own error would say neither."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a+")
    except OSError as error:
        raise ConfigurationError(f"cannot write to {folder}: {error.strerror}; set TURNLOG_DATA_DIR") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.seek(0)
        holder = lock.read().strip()
        lock.close()
        raise ConfigurationError(
            f"another process{f' ({holder})' if holder else ''} has {folder} open: stop it or set TURNLOG_DATA_DIR"
        ) from error
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _opened(client: Any) -> Any:
    if client is None:
        raise UnavailableError("ClickHouse is not connected yet")
    return client


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _usage_group(query: UsageQuery, row: Mapping[str, Any]) -> UsageGroup:
    group: dict[str, str | None] = {name: row[COLUMNS[name]] for name in query.group_by}
    if query.bucket is not None:
        group = {"bucket": row["bucket"], **group}
    average = row["latency_avg"]
    return UsageGroup(
        group=group,
        events=row["events_sum"],
        billable_events=row["billable_events"],
        input_tokens=row["input_tokens_sum"],
        cached_input_tokens=row["cached_sum"],
        output_tokens=row["output_tokens_sum"],
        reasoning_tokens=row["reasoning_sum"],
        latency_ms_avg=None if math.isnan(average) else average,
        cells=[cell_from(cell) for cell in row["cells"]],
    )
