"""SQL of the analytics. Pure: column names come from closed vocabularies, everything from outside is a parameter."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, cast, get_args

from schemas.http import UsageDimension

Bucket = Literal["hour", "day", "month"]
FilterField = Literal["user_id", "thread_id", "turn_id", "agent", "model", "provider", "kind", "outcome", "tool"]

FILTERS: tuple[FilterField, ...] = get_args(FilterField)

EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
LATEST = datetime(2106, 1, 1, tzinfo=UTC)
"""Times from one up to the other are kept and asked for: ClickHouse's functions of time are sure of no others."""

COLUMNS: dict[UsageDimension, str] = {
    "tenant": "tenant_id",
    "user": "user_id",
    "thread": "thread_id",
    "turn": "turn_id",
    "agent": "agent",
    "agent_version": "agent_version",
    "provider": "provider",
    "model": "model",
    "tool": "tool",
    "kind": "kind",
    "outcome": "outcome",
}

_BUCKETS: dict[Bucket, str] = {
    "hour": "formatDateTime(occurred_at, '%Y-%m-%dT%H:00:00Z', 'UTC')",
    "day": "formatDateTime(occurred_at, '%Y-%m-%dT00:00:00Z', 'UTC')",
    "month": "formatDateTime(occurred_at, '%Y-%m-01T00:00:00Z', 'UTC')",
}
"""The start of a bucket as text: the engine in process drops the zone of a time that it answers with."""


@dataclass(frozen=True)
class UsageQuery:
    """Sums of one tenant's usage. Times are half-open: [since, until)."""

    tenant_id: str
    group_by: Sequence[UsageDimension] = ()
    bucket: Bucket | None = None
    since: datetime | None = None
    until: datetime | None = None
    filters: dict[FilterField, str] = field(default_factory=dict[FilterField, str])
    limit: int = 100
    offset: int = 0


def parse_dimensions(text: str) -> list[UsageDimension]:
    """`user,model` to dimensions. Raises ValueError naming what is not one."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in get_args(UsageDimension)]
    if unknown or len(set(names)) != len(names):
        known = ", ".join(get_args(UsageDimension))
        raise ValueError(f"expected different dimensions of {known}; got {text!r}")
    return cast("list[UsageDimension]", names)


def parse_time(text: str) -> datetime:
    """An ISO 8601 time or date in UTC; without an offset it is UTC. Raises ValueError, also outside 1970 to 2105."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        hint = "; write + as %2B" if " " in text else ""
        raise ValueError(f"expected a time like 2026-01-31T12:00:00Z or a date, got {text!r}{hint}") from error
    time = time.replace(tzinfo=UTC) if time.tzinfo is None else time
    if not EARLIEST <= time <= LATEST:
        raise ValueError(f"expected a time from 1970 to 2105, got {text!r}")
    return time.astimezone(UTC)


def usage_sql(query: UsageQuery) -> tuple[str, dict[str, Any]]:
    """Statement and parameters. Reads the raw rows with FINAL, so that a row written twice counts once."""
    columns = [COLUMNS[name] for name in query.group_by]
    bucket = ["bucket"] if query.bucket is not None else []
    selected = "".join(f"{column}, " for column in columns)
    if query.bucket is not None:
        selected = f"{_BUCKETS[query.bucket]} AS bucket, {selected}"
    where = ["tenant_id = {tenant_id:String}"]
    parameters: dict[str, Any] = {"tenant_id": query.tenant_id, "limit": query.limit, "offset": query.offset}
    if query.since is not None:
        where.append("occurred_at >= {since:DateTime64(6, 'UTC')}")
        parameters["since"] = query.since
    if query.until is not None:
        where.append("occurred_at < {until:DateTime64(6, 'UTC')}")
        parameters["until"] = query.until
    for name in FILTERS:
        if name in query.filters:
            where.append(f"{name} = {{{name}:String}}")
            parameters[name] = query.filters[name]
    grouping = f"GROUP BY {', '.join([*bucket, *columns])} " if bucket or columns else ""
    ordering = ", ".join([*bucket, "total DESC", *columns])
    statement = (
        f"SELECT {selected}count() AS events, countIf(billable) AS billable_events, "  # noqa: S608 - closed vocabularies
        "sum(input_tokens) AS input_tokens_sum, sum(cached_input_tokens) AS cached_sum, "
        "sum(output_tokens) AS output_tokens_sum, sum(reasoning_tokens) AS reasoning_sum, "
        "avg(latency_ms) AS latency_avg, sum(input_tokens + output_tokens) AS total "
        f"FROM usage_events FINAL WHERE {' AND '.join(where)} {grouping}"
        f"ORDER BY {ordering} LIMIT {{limit:UInt32}} OFFSET {{offset:UInt32}}"
    )
    return statement, parameters
