"""ClickHouse through clickhouse-connect: the engine in process (chDB) or a server, the same SQL."""

import asyncio
import contextlib
import fcntl
import os
import re
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit

import clickhouse_connect
from clickhouse_connect.driver.exceptions import ClickHouseError, OperationalError

from schemas.analytics import UsageQuality
from schemas.http import UsageConflict, UsageDigest, UsageImbalance
from services.runtime.disk import require_room
from services.runtime.errors import ConfigurationError, UnavailableError
from services.runtime.metrics import USAGE_CONFLICTS
from services.usage.blocks import BlockWriter, empty, go_live, live_writer, positions_sql
from services.usage.fingerprint import BUCKET, values_sql
from services.usage.migrate import migrate, place
from services.usage.placement import Placement
from services.usage.quality_sql import quality_from, quality_parameters, quality_sql
from services.usage.queries import EARLIEST, UsageGroup, UsageQuery
from services.usage.rates_table import Line, RatedCell, cells_in, write_rates
from services.usage.reconcile import conflict_from, conflicts_sql, digests_sql, imbalances
from services.usage.retention import purge
from services.usage.rollups import RAW, Slot
from services.usage.spending import FactIds, Spending, SpendingQuery
from services.usage.spending_sql import read_fact_ids, spending_of_rows, spending_of_sums
from services.usage.store import Block, Bounds, ReadBounds, TooMuchAskedError
from services.usage.sums_sql import group_from, parameters_of, sums_sql

R = TypeVar("R")

EXPORT_BLOCK, EXPORT_GROUPS = 8192, 1000
"""Groups that an export has in hand as the engine gives them, and as they are written."""

CONNECT_SECONDS = 5
ANSWER_SECONDS = 60
"""Most that a server may take; a server that hangs would hold up every query behind it."""

REBUILT = "usage was rebuilt meanwhile: ask again"

TOO_MUCH = {158, 159, 160, 241, 307}
"""ClickHouse's numbers of too many rows, too long, too slow, too much memory, too many bytes."""


class ClickHouseUsageStore:
    """Two clients, one for writes and one for reads, each on a thread of its own: a client serialises its queries.

    Args:
        url: of a server; None opens the engine in process on `folder`, which one process has open at a time.
        bounds: of a question of usage; an audit reads all that there is.
        placement: of the tables; on one server, in its own storage, unless it says otherwise.
    """

    def __init__(
        self,
        *,
        url: str | None,
        folder: Path,
        bounds: ReadBounds | None = None,
        placement: Placement | None = None,
    ) -> None:
        self._url = url
        self._folder = folder
        self._bounds = bounds or ReadBounds()
        self._placement = placement or Placement()
        self._name = _without_password(url) if url else str(folder)
        self._writing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="clickhouse-write")
        self._reading = ThreadPoolExecutor(max_workers=1, thread_name_prefix="clickhouse-read")
        self._exporting = ThreadPoolExecutor(max_workers=1, thread_name_prefix="clickhouse-export")
        self._rating = ThreadPoolExecutor(max_workers=1, thread_name_prefix="clickhouse-rates")
        self._counting = ThreadPoolExecutor(max_workers=1, thread_name_prefix="clickhouse-count")
        self._live = BlockWriter("a", 1)
        self._built: BlockWriter | None = None
        self._writer: Any = None
        self._reader: Any = None
        self._lock: IO[str] | None = None

    async def open(self) -> None:
        if self._url is None and self._lock is None:
            self._lock = _locked(self._folder)
        try:
            self._writer = self._writer or await self._run(self._writing, self._connect)
            self._live = await self._run(self._writing, self._prepare)
            self._reader = self._reader or await self._run(self._reading, self._connect)
        except ClickHouseError as error:
            raise ConfigurationError(f"ClickHouse at {self._name} cannot be used: {_first_line(error)}") from error

    async def close(self) -> None:
        for pool, client in ((self._reading, self._reader), (self._writing, self._writer)):
            if client is not None:
                await self._run(pool, client.close)
            pool.shutdown()
        self._exporting.shutdown()
        self._rating.shutdown()
        self._counting.shutdown()
        self._reader = self._writer = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    async def positions(self) -> Mapping[int, int]:
        result = await self._read(positions_sql)
        return dict(result.result_rows)

    async def unsettled(self) -> Bounds | None:
        last = self._live.last
        return last.bounds if last is not None else None

    async def insert(self, block: Block) -> None:
        await self.insert_with(self._live, block)

    async def insert_with(self, writer: BlockWriter, block: Block) -> None:
        """Inserts a block into the live tables or the others. Raises UnavailableError while the disk is full."""
        if self._url is None:
            require_room(self._folder)
        conflicts = await self._run(self._writing, lambda: writer.insert(_opened(self._writer), block))
        USAGE_CONFLICTS.inc(conflicts)

    async def begin_build(self) -> "UsageSlot":
        await self.clean()
        self._built = self._live.following()
        return UsageSlot(self, self._built)

    async def switch(self) -> None:
        """Reads that began before have ended when it returns, so that their tables may go."""
        built = self._built
        if built is None:
            raise ConfigurationError("there is nothing to switch to: begin a build first")
        await self._run(self._writing, lambda: go_live(_opened(self._writer), built))
        self._live, self._built = built, None
        await self._run(self._reading, lambda: None)

    async def clean(self) -> None:
        await self._run(self._writing, lambda: self._empty(self._live))

    async def purge(self, kept_from: datetime) -> Sequence[int]:
        def drop() -> list[int]:
            return purge(_opened(self._writer), self._live.slot, kept_from, self._placement)

        try:
            return await self._run(self._writing, drop)
        except ClickHouseError as error:
            raise UnavailableError(f"ClickHouse at {self._name} does not drop a month: {_first_line(error)}") from error

    async def rated_cells(self, own: Collection[str]) -> Sequence[RatedCell]:
        live = self._live
        return await self._beside(self._rating, live, lambda client: cells_in(client, live.slot, own))

    async def write_rates(self, lines: Sequence[Line]) -> bool:
        return await self._beside(self._rating, self._live, lambda client: write_rates(client, lines, self._placement))

    async def digests(self, ends: Sequence[int], kept_from: datetime = EARLIEST) -> Sequence[UsageDigest]:
        result = await self._read(digests_sql, {"ends": list(ends), "kept_from": kept_from})
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

    async def conflicts(self, *, limit: int) -> Sequence[UsageConflict]:
        result = await self._read(conflicts_sql, {"limit": limit})
        return [conflict_from(row) for row in result.result_rows]

    async def imbalances(self, *, limit: int, kept_from: datetime = EARLIEST) -> Sequence[UsageImbalance]:
        return await self._run(
            self._writing, lambda: imbalances(_opened(self._writer), self._live.slot, limit, kept_from)
        )

    async def query(self, query: UsageQuery) -> Sequence[UsageGroup]:
        result = await self._ask(lambda slot: sums_sql(query, slot), parameters_of(query))
        return [group_from(query, row) for row in result.named_results()]

    async def quality(self, query: UsageQuery) -> Sequence[UsageQuality]:
        result = await self._ask(lambda slot: quality_sql(query, slot), quality_parameters(query))
        return [quality_from(query, row) for row in result.named_results()]

    async def spending_of_sums(self, query: SpendingQuery, ends: Sequence[int]) -> Spending | None:
        live = self._live
        return await self._beside(
            self._counting, live, lambda client: spending_of_sums(client, live.slot, live.generation, query, ends)
        )

    async def spending_of_rows(self, query: SpendingQuery, ends: Sequence[int]) -> Spending:
        live = self._live
        return await self._beside(
            self._counting, live, lambda client: spending_of_rows(client, live.slot, live.generation, query, ends)
        )

    async def fact_ids(self, query: SpendingQuery, ends: Sequence[int], generation: int) -> FactIds:
        live = self._live
        if live.generation != generation:
            raise UnavailableError(REBUILT)
        return await self._beside(self._counting, live, lambda client: read_fact_ids(client, live.slot, query, ends))

    async def _beside(self, pool: ThreadPoolExecutor, live: BlockWriter, call: Callable[[Any], R]) -> R:
        """On a client and a thread of its own: it may take long, and no question or insert waits for it.

        Raises UnavailableError, also when usage was rebuilt meanwhile.
        """
        _opened(self._reader)

        def called() -> R:
            with self._connect() as client:
                return call(client)

        try:
            answer = await self._run(pool, called)
        except ClickHouseError as error:
            raise UnavailableError(f"ClickHouse at {self._name} does not do as asked: {_first_line(error)}") from error
        if self._live is not live:
            raise UnavailableError(REBUILT)
        return answer

    async def export(self, query: UsageQuery, take: Callable[[Sequence[UsageGroup]], None]) -> None:
        live = self._live
        _opened(self._reader)
        with self._bounded(self._bounds.export_seconds) as bounds:
            await self._run(self._exporting, lambda: self._stream(query, live.slot, bounds, take))
        if self._live is not live:
            raise UnavailableError(REBUILT)

    def _stream(
        self, query: UsageQuery, slot: Slot, bounds: dict[str, Any], take: Callable[[Sequence[UsageGroup]], None]
    ) -> None:
        """On a client of its own: one that streams answers nothing else."""
        client = self._connect()
        try:
            settings = {**bounds, "max_block_size": EXPORT_BLOCK}
            with client.query_row_block_stream(
                sums_sql(query, slot), parameters=parameters_of(query), settings=settings
            ) as blocks:
                names = blocks.source.column_names
                for rows in blocks:
                    for first in range(0, len(rows), EXPORT_GROUPS):
                        part = rows[first : first + EXPORT_GROUPS]
                        take([group_from(query, dict(zip(names, row, strict=True))) for row in part])
        finally:
            client.close()

    async def _ask(self, statement_of: Callable[[Slot], str], parameters: dict[str, Any]) -> Any:
        """A question from outside, within the bounds of one. Raises TooMuchAskedError."""
        with self._bounded(self._bounds.seconds) as bounds:
            return await self._read(statement_of, parameters, bounds)

    @contextlib.contextmanager
    def _bounded(self, seconds: int) -> Generator[dict[str, Any]]:
        """The settings that hold a question within its bounds. Raises TooMuchAskedError where one has reached them."""
        try:
            yield {
                "max_execution_time": seconds,
                "timeout_overflow_mode": "throw",
                "max_memory_usage": self._bounds.memory_bytes,
                "max_rows_to_read": self._bounds.rows,
                "read_overflow_mode": "throw",
            }
        except ClickHouseError as error:
            if _code(error) not in TOO_MUCH:
                raise
            raise TooMuchAskedError(
                f"it would read more than {self._bounds.rows:,} rows, take more than {seconds} s or "
                f"{self._bounds.memory_bytes >> 20:,} MB: ask "
                "for a shorter time, for whole days, or without the thread and the turn"
            ) from error

    async def _texts(self, condition: str, parameters: dict[str, Any]) -> Sequence[list[str | None]]:
        result = await self._read(
            lambda slot: f"SELECT {', '.join(values_sql())} FROM {RAW.text(slot)} WHERE {condition}",  # noqa: S608 - our own
            parameters,
        )
        return [list(row) for row in result.result_rows]

    async def _read(
        self,
        statement_of: Callable[[Slot], str],
        parameters: dict[str, Any] | None = None,
        settings: dict[str, Any] | None = None,
    ) -> Any:
        """Asks the tables that are live when its turn comes."""
        return await self._run(
            self._reading,
            lambda: _opened(self._reader).query(
                statement_of(self._live.slot), parameters=parameters or {}, settings=settings
            ),
        )

    def _connect(self) -> Any:
        if self._url is None:
            return clickhouse_connect.get_client(interface="chdb", path=str(self._folder / "chdb"))
        return clickhouse_connect.get_client(
            dsn=self._url,
            connect_timeout=CONNECT_SECONDS,
            send_receive_timeout=ANSWER_SECONDS,
            settings=self._placement.settings(),
            autogenerate_session_id=False,  # a session stays locked by a query whose client has given up
        )

    def _prepare(self) -> BlockWriter:
        """Migrates, and finds the live tables; what a rebuild has left in the others goes."""
        migrate(self._writer, self._name, self._placement)
        place(self._writer, self._placement)
        live = live_writer(self._writer)
        self._empty(live)
        return live

    def _empty(self, live: BlockWriter) -> None:
        """What is beside the live tables goes."""
        empty(_opened(self._writer), live.following().slot, self._placement)

    async def _run(self, pool: ThreadPoolExecutor, call: Callable[..., R], *arguments: Any) -> R:
        """Runs a call of the client on its thread. Raises UnavailableError when ClickHouse does not answer it."""
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, call, *arguments)
        except OperationalError as error:
            if _code(error) in TOO_MUCH:
                raise  # so ends a stream that has reached a bound: it was answered
            raise UnavailableError(f"ClickHouse at {self._name} does not answer: {_first_line(error)}") from error


class UsageSlot:
    """The tables that are filled beside the live ones."""

    def __init__(self, store: ClickHouseUsageStore, writer: BlockWriter) -> None:
        self._store = store
        self._writer = writer

    async def positions(self) -> Mapping[int, int]:
        """Nothing is read on into a build: one that was not finished is begun anew."""
        return {}

    async def insert(self, block: Block) -> None:
        await self._store.insert_with(self._writer, block)


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


def _code(error: ClickHouseError) -> int | None:
    """ClickHouse's own number of an error, which only the text has."""
    found = re.search(r"\b[Cc]ode: (\d+)", str(error))
    return int(found[1]) if found else None
