"""The tables that usage is summed up in as it arrives, and which of them can answer a query to the digit. Pure.

Materialized views fill them: `usage_minutes` by every column but the turn, `usage_hours` and `usage_days` without the
thread too.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from schemas.ids import EPOCH
from services.runtime.pricing.cells import BAD_COUNTS, Boundaries

Slot = Literal["a", "b"]
"""There are two sets of tables: one is live, and the other one is filled while usage is rebuilt."""

TableName = Literal["usage_events", "usage_minutes", "usage_hours", "usage_days"]

SUMMED = ("input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens", "latency_ms")

SIZES = (0, 32001, 100001, 128001, 200000, 200001, 256001, 272001, 512001, 524289)
"""Sizes of the input that a rollup tells apart: where packaged prices have tiers. The views say the same."""

_COLUMNS = (
    "tenant_id",
    "user_id",
    "agent",
    "agent_version",
    "kind",
    "provider",
    "model",
    "tool",
    "outcome",
    "billable",
    "team_id",
    "completes_turn",
    "images",
)


@dataclass(frozen=True)
class Source:
    """A table to read usage from, and how it says what a query needs."""

    table: TableName
    time: str
    weight: str
    """How many events a row stands for."""
    cells: Mapping[str, str]
    final: bool = False

    def text(self, slot: Slot) -> str:
        """As it stands after FROM."""
        return f"{self.table}_{slot} AS source{' FINAL' if self.final else ''}"


@dataclass(frozen=True)
class Rollup:
    """A table of sums: its columns beside the time, and how long the stretch of a row is."""

    source: Source
    columns: tuple[str, ...]
    step: timedelta
    starts_of: str
    """The function of a time that gives the start of its stretch."""

    def answers(self, columns: Collection[str], times: Sequence[datetime], boundaries: Boundaries) -> bool:
        """Whether sums by these columns between these times, in the cells of these boundaries, are exact."""
        return (
            {*columns} <= {*self.columns}
            and {*boundaries.sizes} <= {*SIZES}
            and not any((time - EPOCH) % self.step for time in (*times, *boundaries.times))
        )


SHAPE_SQL = (
    f"if(cached_input_tokens > input_tokens OR reasoning_tokens > output_tokens, {BAD_COUNTS}, "
    "(input_tokens > cached_input_tokens) + 2 * (cached_input_tokens > 0) "
    "+ 4 * (output_tokens > reasoning_tokens) + 8 * (reasoning_tokens > 0) + 32 * (images > 0))"
)

CELL_SQL = {
    "begins": "roundDown(toUnixTimestamp64Micro(occurred_at), {times:Array(Int64)})",
    "size": "roundDown(input_tokens, {sizes:Array(UInt64)})",
    "shape": SHAPE_SQL,
}
"""How ClickHouse tells the cells of raw rows apart, beside the columns that they are named by."""

RAW = Source("usage_events", "occurred_at", "1", CELL_SQL, final=True)

_ROLLUP_CELLS = {
    "begins": "roundDown(toInt64(toUnixTimestamp(starts)) * 1000000, {times:Array(Int64)})",
    "size": "roundDown(source.size, {sizes:Array(UInt64)})",
    "shape": "source.shape",
}

MINUTES = Rollup(
    Source("usage_minutes", "starts", "source.events", _ROLLUP_CELLS),
    (*_COLUMNS, "thread_id"),
    timedelta(minutes=1),
    "toStartOfMinute",
)
HOURS = Rollup(
    Source("usage_hours", "starts", "source.events", _ROLLUP_CELLS), _COLUMNS, timedelta(hours=1), "toStartOfHour"
)
DAYS = Rollup(
    Source("usage_days", "starts", "source.events", _ROLLUP_CELLS), _COLUMNS, timedelta(days=1), "toStartOfDay"
)
ROLLUPS = (DAYS, HOURS, MINUTES)
"""The coarsest first."""


def source_of(columns: Collection[str], times: Sequence[datetime], finest: timedelta, boundaries: Boundaries) -> Source:
    """The smallest table that answers to the digit. `finest`: the shortest bucket; a day where there is none."""
    for rollup in ROLLUPS:
        if rollup.step <= finest and rollup.answers(columns, times, boundaries):
            return rollup.source
    return RAW


def unequal_sql(rollup: Rollup, slot: Slot) -> str:
    """Rows in which a month of a rollup is not what the raw rows add up to, and by how much: rollup less raw."""
    columns = ", ".join(rollup.columns)
    keys = f"{columns}, starts, size, shape"
    raw = ", ".join(f"-toInt128(source.{name}) AS n_{name}" for name in SUMMED)
    summed = ", ".join(f"toInt128(source.{name}) AS n_{name}" for name in SUMMED)
    totals = ", ".join(f"sum(n_{name}) AS {name}_off" for name in SUMMED)
    off = " OR ".join(f"{name}_off != 0" for name in ("events", *SUMMED))
    return (
        f"SELECT tenant_id, toString(starts), toString(({keys})), sum(n) AS events_off, {totals} FROM ("  # noqa: S608 - our own
        f"SELECT {columns}, {rollup.starts_of}(occurred_at, 'UTC') AS starts, "
        f"toUInt64(roundDown(source.input_tokens, {list(SIZES)})) AS size, toUInt8({SHAPE_SQL}) AS shape, "
        f"-toInt128(1) AS n, {raw} FROM {RAW.text(slot)} WHERE toYYYYMM(occurred_at) = {{month:UInt32}} "
        f"UNION ALL SELECT {keys}, toInt128(source.events) AS n, {summed} FROM {rollup.source.text(slot)} "
        f"WHERE toYYYYMM(starts) = {{month:UInt32}}) GROUP BY {keys} HAVING {off} "
        "ORDER BY tenant_id, starts LIMIT {limit:UInt32}"
    )


def month_number(time: datetime) -> int:
    """The month of a time in UTC, as `months_sql` answers it."""
    return 100 * time.year + time.month


def months_sql(slot: Slot) -> str:
    """The months of which there is anything."""
    tables = [(RAW.table, RAW.time), *((each.source.table, each.source.time) for each in ROLLUPS)]
    return " UNION DISTINCT ".join(f"SELECT DISTINCT toYYYYMM({time}) FROM {table}_{slot}" for table, time in tables)  # noqa: S608 - our own
