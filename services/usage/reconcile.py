"""What an audit asks the tables: hashes of rows, conflicts, and whether the sums are those of the rows."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from schemas.http import UsageConflict, UsageImbalance
from services.usage.blocks import CONFLICT_COLUMNS
from services.usage.fingerprint import BUCKET, hash_sql, values_sql
from services.usage.rollups import RAW, ROLLUPS, SUMMED, Slot, month_number, months_sql, unequal_sql


def digests_sql(slot: Slot) -> str:
    """A partition that the log does not have ends at 0: an array answers so beyond its end. Of what is kept."""
    return (
        f"SELECT source_partition, intDiv(source_offset, {BUCKET}) AS bucket, "  # noqa: S608 - our own
        "source_offset >= {ends:Array(UInt64)}[source_partition + 1] AS beyond, "
        f"count(), groupBitXor({hash_sql(values_sql())}) FROM {RAW.text(slot)} "
        "WHERE occurred_at >= {kept_from:DateTime64(6, 'UTC')} "
        "GROUP BY source_partition, bucket, beyond ORDER BY source_partition, bucket, beyond"
    )


def conflicts_sql(slot: Slot) -> str:
    return (
        f"SELECT {', '.join(CONFLICT_COLUMNS)} FROM usage_conflicts_{slot} FINAL "  # noqa: S608 - our own
        "ORDER BY tenant_id, usage_id, source_partition, source_offset LIMIT {limit:UInt32}"
    )


def conflict_from(row: Sequence[Any]) -> UsageConflict:
    """A row as `conflicts_sql` answers it."""
    tenant_id, usage_id, partition, offset, kept_partition, kept_offset, fields, kept, refused = row
    return UsageConflict(
        tenant_id=tenant_id,
        usage_id=usage_id,
        kept_at=(kept_partition, kept_offset),
        refused_at=(partition, offset),
        fields=list(fields),
        kept=list(kept),
        refused=list(refused),
    )


def imbalances(client: Any, slot: Slot, limit: int, kept_from: datetime) -> list[UsageImbalance]:
    """Compares a month at a time, which bounds what the engine has to hold. Runs where no block is inserted."""
    found: list[UsageImbalance] = []
    for (month,) in sorted(client.query(months_sql(slot)).result_rows):
        if month < month_number(kept_from):
            continue
        for rollup in ROLLUPS:
            rows = client.query(
                unequal_sql(rollup, slot), parameters={"month": month, "limit": limit - len(found)}
            ).result_rows
            found += [
                UsageImbalance(
                    table=rollup.source.table,
                    tenant_id=tenant_id,
                    starts=starts,
                    group=group,
                    **dict(zip(("events", *SUMMED), sums, strict=True)),
                )
                for tenant_id, starts, group, *sums in rows
            ]
            if len(found) >= limit:
                return found
    return found
