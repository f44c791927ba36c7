"""The SQL of how well the work went. Pure.

It reads the rows: quantiles are of all values, and sums do not have those. Measured in chDB on two busy cores, five
million rows of one tenant in a month take 0.24 s with FINAL, exact, and as long with approximate digests.

ClickHouse's exact quantile is the value behind the share: of 100 values the median is the 51st. Of the negated values
it is the one up to which the share goes: the 50th.
"""

from collections.abc import Mapping
from typing import Any

from schemas.analytics import Quantiles, UsageQuality
from services.usage.queries import UsageQuery
from services.usage.rollups import RAW, Slot
from services.usage.sums_sql import COLUMNS, bucket_sql, labels_of, source_parameters, where_sql

_FIGURES = {
    "events_count": "count()",
    "errors": "countIf(outcome = 'error')",
    "lost": "countIf(outcome = 'lost')",
    "retries": "countIf(attempt > 1)",
    "input": "sum(source.input_tokens)",
    "cached": "sum(source.cached_input_tokens)",
    "calls": "countIf(kind = 'tool')",
    "calls_ok": "countIf(kind = 'tool' AND outcome = 'ok')",
    "answered": "countIf(outcome = 'ok')",
    "latencies": "quantilesExactIf(0.5, 0.1, 0.01)(-toInt64(source.latency_ms), outcome = 'ok')",
    "streamed": "count(source.first_token_ms)",
    "first_tokens": "quantilesExact(0.5, 0.1, 0.01)(-toInt64(source.first_token_ms))",
}


def quality_sql(query: UsageQuery, slot: Slot) -> str:
    """Groups of most events first, those of one bucket together."""
    columns = [COLUMNS[name] for name in query.group_by]
    bucket = bucket_sql(query, RAW.time)
    group = [*bucket, *columns]
    grouping = f"GROUP BY {', '.join(group)} " if group else ""
    selected = [f"{expression} AS {name}" for name, expression in (*bucket.items(), *_FIGURES.items())]
    ordering = ", ".join([*bucket, "events_count DESC", *columns])
    return (
        f"SELECT {', '.join([*columns, *selected])} FROM {RAW.text(slot)} "  # noqa: S608 - closed vocabularies
        f"WHERE {where_sql(query, RAW)} {grouping}"
        f"ORDER BY {ordering} LIMIT {{limit:UInt32}} OFFSET {{offset:UInt32}}"
    )


def quality_parameters(query: UsageQuery) -> dict[str, Any]:
    return {**source_parameters(query), "limit": query.limit, "offset": query.offset}


def quality_from(query: UsageQuery, row: Mapping[str, Any]) -> UsageQuality:
    """A group as `quality_sql` answers it."""
    events = row["events_count"]
    return UsageQuality(
        group=labels_of(query, row),
        events=events,
        error_share=_share(row["errors"], events),
        lost_share=_share(row["lost"], events),
        retry_share=_share(row["retries"], events),
        cached_input_share=_share(row["cached"], row["input"]),
        tool_calls=row["calls"],
        tool_success_share=_share(row["calls_ok"], row["calls"]),
        latency_ms=_quantiles(row["latencies"], row["answered"]),
        first_token_ms=_quantiles(row["first_tokens"], row["streamed"]),
    )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _quantiles(values: list[int], count: int) -> Quantiles | None:
    return Quantiles(p50=-values[0], p90=-values[1], p99=-values[2]) if count else None
