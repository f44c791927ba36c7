"""How long usage is kept: whole months go, rows and sums together. The log still has them, and invoices are final."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog

from services.runtime.errors import UnavailableError
from services.runtime.tasks import end_task
from services.usage.blocks import position_sql
from services.usage.placement import TIMES, Placement
from services.usage.queries import EARLIEST
from services.usage.rollups import RAW, Slot, month_number, months_sql
from services.usage.store import UsageStore

log = structlog.get_logger(__name__)

PURGE_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Retention:
    """So many whole months before the running one are kept; None: all that there are. Months are of UTC."""

    months: int | None = None

    def kept_from(self, now: datetime) -> datetime | None:
        """The time before which usage is not kept."""
        if self.months is None:
            return None
        now = now.astimezone(UTC)
        month = max(12 * EARLIEST.year, 12 * now.year + now.month - 1 - self.months)
        return datetime(month // 12, month % 12 + 1, 1, tzinfo=UTC)


def purge(client: Any, slot: Slot, kept_from: datetime, placement: Placement) -> list[int]:
    """Drops the months before a time, the oldest first, and returns them as YYYYMM. Runs where no block is inserted.

    A month stays while it alone has the last block of a partition, which says how far that was read.
    """
    dropped: list[int] = []
    for (month,) in sorted(client.query(months_sql(slot)).result_rows):
        if month >= month_number(kept_from):
            break
        if client.query(_needed_sql(slot), parameters={"month": month}).result_rows:
            continue
        for table in TIMES:
            for statement in placement.placed(f"ALTER TABLE {table}_{slot} DROP PARTITION {month}"):
                client.command(statement, settings={"max_partition_size_to_drop": 0})
        dropped.append(month)
    return dropped


def _needed_sql(slot: Slot) -> str:
    """The partitions that would be read from further back without a month."""
    position = position_sql()
    return (
        f"SELECT source_partition FROM {RAW.table}_{slot} GROUP BY source_partition "  # noqa: S608 - our own
        f"HAVING maxIf({position}, toYYYYMM(occurred_at) != {{month:UInt32}}) < max({position})"
    )


class RetentionLoop:
    """Looks once an hour for months that are not kept any more."""

    def __init__(self, store: UsageStore, retention: Retention) -> None:
        self._store = store
        self._retention = retention
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        if self._retention.months is not None:
            self._task = asyncio.create_task(self._run(), name="usage:retention")

    async def stop(self) -> None:
        await end_task(self._task)

    async def _run(self) -> None:
        while True:
            kept_from = self._retention.kept_from(datetime.now(UTC))
            assert kept_from is not None
            try:
                if dropped := await self._store.purge(kept_from):
                    log.info("usage_dropped", months=dropped, kept_from=kept_from.isoformat())
            except UnavailableError as error:
                log.warning("usage_not_dropped", reason=str(error))
            await asyncio.sleep(PURGE_SECONDS)
