"""The rates that dashboards multiply sums with: the table `usage_rates`, which the view `usage_money` reads.

A version of it is one insert of one part, so that whoever reads finds all of it or the one before. The newest version
counts. Everything here runs on a thread of a client.
"""

import hashlib
import random
import time
from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from schemas.ids import EPOCH
from services.runtime.pricing.book import PriceBook
from services.runtime.pricing.cells import Cell
from services.usage.cell_rates import CellRates, PartRates, rates_of
from services.usage.placement import Placement
from services.usage.queries import LATEST
from services.usage.rollups import DAYS, Slot

MOST_CELLS = 20_000
"""Whose rates are told, those of most events: names of models come from outside."""

EVERYBODY = ""
"""In place of a tenant: all those who have no prices of their own."""

KEPT_VERSIONS = 2
"""A query that began before the newest was there still reads the one before."""

_PARTS = ("currency", "input", "cached_input", "output", "reasoning", "image", "call")
_COLUMNS = (
    *("tenant_id", "kind", "provider", "model", "tool", "billable", "size", "shape", "begins"),
    *(f"{figure}_{part}" for figure in ("cost", "price") for part in _PARTS),
)
_UNKNOWN = PartRates("", 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
_SECOND = timedelta(seconds=1)

_ONE_PART = {
    "async_insert": 0,
    "max_insert_block_size": 1 << 24,
    "min_insert_block_size_rows": 1 << 24,
    "min_insert_block_size_bytes": 1 << 32,
}
"""A server makes a part of what it has gathered: of everything."""

Line = tuple[Any, ...]
"""A row of the table beside its version: the values of _COLUMNS."""


@dataclass(frozen=True, slots=True)
class RatedCell:
    """A cell of the sums, from the day on that it has usage of.

    Args:
        tenant_id: whose prices it is rated by; EVERYBODY for the prices that all have.
    """

    tenant_id: str
    cell: Cell


def cells_sql(slot: Slot) -> str:
    """The cells of the sums of days, those of most events first."""
    columns = "kind, provider, model, tool, billable, source.size, source.shape"
    return (
        "SELECT if(tenant_id IN (SELECT arrayJoin({own:Array(String)})), toString(tenant_id), '') AS whose, "  # noqa: S608 - our own
        f"{columns}, toUnixTimestamp(min(source.starts)) FROM {DAYS.source.text(slot)} "
        f"GROUP BY whose, {columns} ORDER BY sum(source.events) DESC, whose, {columns} LIMIT {{limit:UInt32}}"
    )


def cells_in(client: Any, slot: Slot, own: Collection[str]) -> list[RatedCell]:
    """What there are rates to tell of. Reads all days, on one processor.

    Args:
        own: the tenants that have prices of their own.
    """
    rows = client.query(
        cells_sql(slot), parameters={"own": sorted(own), "limit": MOST_CELLS}, settings={"max_threads": 1}
    ).result_rows
    return [_cell_from(row) for row in rows]


def lines_of(rated: RatedCell, book: PriceBook) -> list[Line]:
    """The rates of a cell from each time on at which they change, in whole seconds: sums begin at none other."""
    times = book.boundaries(rated.tenant_id).times
    first = bisect_right(times, rated.cell.begins) - 1
    lines: list[Line] = []
    last: CellRates | None = None
    for begins in times[first:]:
        rates = rates_of(replace(rated.cell, begins=begins), rated.tenant_id, book)
        if rates != last and begins <= LATEST - _SECOND:
            lines.append(_line(rated, begins, rates))
        last = rates
    return lines


def own_line(tenant_id: str) -> Line:
    """Says that a tenant has prices of its own, so that nobody rates its usage by everybody's."""
    nothing = Cell("", None, None, None, False, EPOCH, 0, 0, 0, 0, 0, 0, 0)
    return _line(RatedCell(tenant_id, nothing), EPOCH, CellRates(None, None))


def write_rates(client: Any, lines: Iterable[Line], placement: Placement) -> bool:
    """Makes these the newest version, unless they are it already. Returns whether it was written.

    A process that is killed leaves the version before, or the new one whole, and older ones for the next to remove. Of
    several writers the last one counts.
    """
    ordered = sorted(lines, key=repr)
    digest = _digest(ordered)
    found = client.query("SELECT DISTINCT version, digest FROM usage_rates ORDER BY version DESC").result_rows
    newest, known = found[0] if found else (0, None)
    written = bool(ordered) and known != digest
    if written:
        newest = _version_after(newest)
        client.insert(
            "usage_rates",
            [(newest, digest, *line) for line in ordered],
            column_names=["version", "digest", *_COLUMNS],
            settings=_ONE_PART,
        )
    kept = KEPT_VERSIONS - written
    for version, _ in found[kept:]:
        for statement in placement.placed(f"ALTER TABLE usage_rates DROP PARTITION {version}"):
            client.command(statement)
    return written


def _version_after(newest: int) -> int:
    """Later than the newest, whatever the clock says, and of nobody else who writes now."""
    return max(newest, time.time_ns() // 1000 << 12) + random.randrange(1, 1 << 12)  # noqa: S311 - no secret


def _digest(lines: Sequence[Line]) -> int:
    return int.from_bytes(hashlib.sha256(repr(lines).encode()).digest()[:8], "little")


def _line(rated: RatedCell, begins: datetime, rates: CellRates) -> Line:
    cell = rated.cell
    whole = begins if not begins.microsecond else begins.replace(microsecond=0) + _SECOND
    names = (cell.kind, cell.provider, cell.model, cell.tool, cell.billable, cell.size, cell.shape)
    return rated.tenant_id, *names, whole, *astuple(rates.cost or _UNKNOWN), *astuple(rates.price or _UNKNOWN)


def _cell_from(row: Sequence[Any]) -> RatedCell:
    tenant_id, kind, provider, model, tool, billable, size, shape, begins = row
    at = datetime.fromtimestamp(begins, UTC)
    return RatedCell(tenant_id, Cell(kind, provider, model, tool, bool(billable), at, size, shape, 0, 0, 0, 0, 0))
