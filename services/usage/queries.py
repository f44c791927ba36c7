"""SQL of the analytics. Pure: column names come from closed vocabularies, everything from outside is a parameter."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, cast, get_args

from schemas.http import UsageDimension, UsageSums
from services.usage.pricing.cells import CELL_SQL, Boundaries, Cell, microseconds
from services.usage.rollups import DAYS, RAW, Slot, source_of

Bucket = Literal["minute", "hour", "day", "month"]
FilterField = Literal["user_id", "thread_id", "turn_id", "agent", "model", "provider", "kind", "outcome", "tool"]

Order = Literal["tokens", "events"]

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

_BUCKETS: dict[Bucket, tuple[timedelta, str]] = {
    "minute": (timedelta(minutes=1), "%Y-%m-%dT%H:%i:00Z"),
    "hour": (timedelta(hours=1), "%Y-%m-%dT%H:00:00Z"),
    "day": (timedelta(days=1), "%Y-%m-%dT00:00:00Z"),
    "month": (timedelta(days=28), "%Y-%m-01T00:00:00Z"),
}
"""How short a bucket is, and its start as text: the engine in process drops the zone of a time that it answers with."""

CELL_COLUMNS = ("kind", "provider", "model", "tool", "billable")

_CELL_SUMS = {
    "input": "sum(source.input_tokens)",
    "cached": "sum(source.cached_input_tokens)",
    "output": "sum(source.output_tokens)",
    "reasoning": "sum(source.reasoning_tokens)",
}
_LATENCY = {"latency": "sum(source.latency_ms)"}

_ORDERS: dict[Order, str] = {"tokens": "total", "events": "events_sum"}


@dataclass(frozen=True)
class UsageQuery:
    """Sums of one tenant's usage. Times are half-open: [since, until)."""

    tenant_id: str
    group_by: Sequence[UsageDimension] = ()
    bucket: Bucket | None = None
    since: datetime | None = None
    until: datetime | None = None
    filters: dict[FilterField, str] = field(default_factory=dict[FilterField, str])
    order_by: Order = "tokens"
    limit: int = 100
    offset: int = 0
    boundaries: Boundaries = field(default_factory=Boundaries)
    from_rows: bool = False
    """Whether the rows themselves are added up, though sums would answer too."""


class UsageGroup(UsageSums):
    """The sums of a group, and its cells, from which their cost is worked out."""

    cells: list[Cell]


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


def usage_sql(query: UsageQuery, slot: Slot) -> str:
    """Reads the smallest table that answers to the digit.

    Rows are added up by cell first, then cells by group.
    """
    columns = [COLUMNS[name] for name in query.group_by]
    bucket = ["bucket"] if query.bucket is not None else []
    group = [*bucket, *columns]
    grouping = f"GROUP BY {', '.join(group)} " if group else ""
    ordering = ", ".join([*bucket, f"{_ORDERS[query.order_by]} DESC", *columns])
    return (
        f"SELECT {''.join(f'{name}, ' for name in group)}sum(events) AS events_sum, "  # noqa: S608 - closed vocabularies
        "sumIf(events, billable) AS billable_events, sum(errors) AS error_events, sum(lost) AS lost_events, "
        "sum(input) AS input_tokens_sum, sum(cached) AS cached_sum, "
        "sum(output) AS output_tokens_sum, sum(reasoning) AS reasoning_sum, "
        "sum(latency) / sum(events) AS latency_avg, sum(input + output) AS total, "
        f"groupArray(({', '.join((*CELL_COLUMNS, *CELL_SQL, 'events', *_CELL_SUMS))})) AS cells "
        f"FROM ({_cells_sql(query, columns, slot)}) {grouping}"
        f"ORDER BY {ordering} LIMIT {{limit:UInt32}} OFFSET {{offset:UInt32}}"
    )


def cell_from(row: Sequence[Any]) -> Cell:
    """A cell as `usage_sql` answers it."""
    *names, begins, size, shape, events, input_tokens, cached, output, reasoning = row
    kind, provider, model, tool, billable = names
    return Cell(
        kind=kind,
        provider=provider,
        model=model,
        tool=tool,
        billable=bool(billable),
        begins=EARLIEST + timedelta(microseconds=begins),
        size=size,
        shape=shape,
        events=events,
        input_tokens=input_tokens,
        cached_input_tokens=cached,
        output_tokens=output,
        reasoning_tokens=reasoning,
    )


def _cells_sql(query: UsageQuery, columns: Sequence[str], slot: Slot) -> str:
    named = dict.fromkeys((*columns, *CELL_COLUMNS))
    filtered = [name for name in FILTERS if name in query.filters]
    times = [time for time in (query.since, query.until) if time is not None]
    shortest, form = _BUCKETS[query.bucket] if query.bucket is not None else (DAYS.step, "")
    source = RAW if query.from_rows else source_of([*named, *filtered, "tenant_id"], times, shortest, query.boundaries)
    bucket = {"bucket": f"formatDateTime({source.time}, '{form}', 'UTC')"} if form else {}
    told_apart = {**bucket, **source.cells}
    where = ["tenant_id = {tenant_id:String}"]
    if query.since is not None:
        where.append(f"{source.time} >= {{since:DateTime64(6, 'UTC')}}")
    if query.until is not None:
        where.append(f"{source.time} < {{until:DateTime64(6, 'UTC')}}")
    where += [f"{name} = {{{name}:String}}" for name in filtered]
    outcomes = {
        name: f"sumIf({source.weight}, outcome = '{outcome}')"
        for name, outcome in (("errors", "error"), ("lost", "lost"))
    }
    added_up = {"events": f"sum({source.weight})", **outcomes, **_CELL_SUMS, **_LATENCY}
    sums = ", ".join(f"{expression} AS {name}" for name, expression in added_up.items())
    return (
        f"SELECT {', '.join(named)}, "  # noqa: S608 - closed vocabularies
        f"{', '.join(f'{expression} AS {name}' for name, expression in told_apart.items())}, {sums} "
        f"FROM {source.text(slot)} WHERE {' AND '.join(where)} GROUP BY {', '.join((*named, *told_apart))}"
    )


def parameters_of(query: UsageQuery) -> dict[str, Any]:
    """Everything in a statement that is from outside."""
    times = {name: time for name, time in (("since", query.since), ("until", query.until)) if time is not None}
    return {
        "tenant_id": query.tenant_id,
        "limit": query.limit,
        "offset": query.offset,
        "times": [microseconds(time) for time in query.boundaries.times],
        "sizes": list(query.boundaries.sizes),
        **times,
        **{name: query.filters[name] for name in FILTERS if name in query.filters},
    }
