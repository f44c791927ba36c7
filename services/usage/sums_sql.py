"""The SQL of sums: column names come from closed vocabularies, everything from outside is a parameter. Pure.

Rows are added up by cell first, then cells by group.
"""

import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from schemas.analytics import UsageDimension, UsageUnit
from schemas.ids import microseconds
from services.runtime.pricing.cells import Cell
from services.usage.fingerprint import hash_sql
from services.usage.queries import EARLIEST, FILTERS, Bucket, FilterField, PeriodSums, UsageGroup, UsageQuery, Weights
from services.usage.rollups import CELL_SQL, DAYS, RAW, Slot, Source, source_of

COLUMNS: dict[UsageDimension, str] = {
    "tenant": "tenant_id",
    "user": "user_id",
    "team": "team_id",
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

UNITS: dict[UsageUnit, str] = {"thread": "thread_id", "completed_turn": "completes_turn", "user": "user_id"}

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
_CELL = ", ".join((*CELL_COLUMNS, *CELL_SQL, "events", *_CELL_SUMS, "pictures"))

_CELL_HASH = hash_sql(
    ["kind", "provider", "model", "tool", "toString(toUInt8(billable))"] + [f"toString({name})" for name in CELL_SQL]
)
_WEIGHED = {
    "input": "toFloat64(input - cached)",
    "cached": "toFloat64(cached)",
    "output": "toFloat64(output - reasoning)",
    "reasoning": "toFloat64(reasoning)",
    "images": "toFloat64(pictures)",
    "events": "toFloat64(events)",
}
"""The counts that an amount is linear in, as they are named in `Weights`."""

_PREVIOUS = "previous_"


def sums_sql(query: UsageQuery, slot: Slot) -> str:
    """Reads the smallest table that answers to the digit."""
    columns = [COLUMNS[name] for name in query.group_by]
    bucket = ["bucket"] if query.bucket is not None else []
    group = [*bucket, *columns]
    figures = _figures("", "NOT earlier" if query.compare else "", query.per)
    if query.compare:
        figures |= _figures(_PREVIOUS, "earlier", query.per)
    selected = ", ".join([*group, *(f"{expression} AS {name}" for name, expression in figures.items())])
    grouping = f"GROUP BY {', '.join(group)} " if group else ""
    page = "" if query.limit is None else " LIMIT {limit:UInt32} OFFSET {offset:UInt32}"
    ordering = ", ".join([*bucket, f"{_order(query)} DESC", *columns])
    return (
        f"SELECT {selected} FROM ({_cells_sql(query, columns, slot)}) "  # noqa: S608 - closed vocabularies
        f"{grouping}ORDER BY {ordering}{page}"
    )


def parameters_of(query: UsageQuery) -> dict[str, Any]:
    """Everything in a statement that is from outside."""
    return {
        **source_parameters(query),
        "limit": query.limit,
        "offset": query.offset,
        "times": [microseconds(time) for time in query.boundaries.times],
        "sizes": list(query.boundaries.sizes),
        **({**_shift_parameter(query), "split": query.since} if query.compare else {}),
        **(_weight_parameters(query.order_by) if isinstance(query.order_by, Weights) else {}),
    }


def group_from(query: UsageQuery, row: Mapping[str, Any]) -> UsageGroup:
    """A group as `sums_sql` answers it."""
    sums = _period_from(row, "", query.per)
    return UsageGroup(
        **{name: getattr(sums, name) for name in PeriodSums.model_fields},
        group=labels_of(query, row),
        previous=_period_from(row, _PREVIOUS, query.per) if query.compare else None,
    )


def cell_from(row: Sequence[Any]) -> Cell:
    """A cell as `sums_sql` answers it."""
    *names, begins, size, shape, events, input_tokens, cached, output, reasoning, images = row
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
        images=images,
    )


def labels_of(query: UsageQuery, row: Mapping[str, Any]) -> dict[str, str | None]:
    """What a group is called: its bucket, where one was asked for, then its dimensions in their order."""
    named: dict[str, str | None] = {name: row[COLUMNS[name]] for name in query.group_by}
    return named if query.bucket is None else {"bucket": row["bucket"], **named}


def bucket_sql(query: UsageQuery, time: str) -> dict[str, str]:
    """The expression of a bucket's start, by its name; in a comparison the earlier ones are called as the later."""
    if query.bucket is None:
        return {}
    if query.months:
        time = f"addMonths(toDateTime64({time}, 6, 'UTC'), if({_earlier(time)}, {{months:Int32}}, 0))"
    elif query.compare:
        time = f"addMicroseconds(toDateTime64({time}, 6, 'UTC'), if({_earlier(time)}, {{length:Int64}}, 0))"
    return {"bucket": f"formatDateTime({time}, '{_BUCKETS[query.bucket][1]}', 'UTC')"}


def where_sql(query: UsageQuery, source: Source) -> str:
    """Which rows: those of the tenant, in the time, that the filters let through."""
    where = ["tenant_id = {tenant_id:String}"]
    if query.first is not None:
        where.append(f"{source.time} >= {{since:DateTime64(6, 'UTC')}}")
    if query.until is not None:
        where.append(f"{source.time} < {{until:DateTime64(6, 'UTC')}}")
    where += [f"{name} = {{{name}:String}}" for name in _filtered(query)]
    return " AND ".join(where)


def source_parameters(query: UsageQuery) -> dict[str, Any]:
    """What `where_sql` is about."""
    times = {name: time for name, time in (("since", query.first), ("until", query.until)) if time is not None}
    return {"tenant_id": query.tenant_id, **times, **{name: query.filters[name] for name in _filtered(query)}}


def _shift_parameter(query: UsageQuery) -> dict[str, int]:
    """By how much the period before is earlier."""
    return {"months": query.months} if query.months else {"length": query.length // timedelta(microseconds=1)}


def _figures(prefix: str, when: str, per: Sequence[UsageUnit]) -> dict[str, str]:
    """The sums of one period by their names; `when` says which cells are of it, and is empty where all are."""

    def total(expression: str, condition: str = "") -> str:
        conditions = " AND ".join(filter(None, (condition, when)))
        return f"sumIf({expression}, {conditions})" if conditions else f"sum({expression})"

    of_period = f"If({{}}, {when})" if when else "({})"
    return {
        f"{prefix}{name}": expression
        for name, expression in {
            "events_sum": total("events"),
            "billable_events": total("events", "billable"),
            "error_events": total("errors"),
            "lost_events": total("lost"),
            "input_tokens_sum": total("input"),
            "cached_sum": total("cached"),
            "output_tokens_sum": total("output"),
            "reasoning_sum": total("reasoning"),
            "images_sum": total("pictures"),
            "latency_avg": f"{total('latency')} / {total('events')}",
            "cells": f"groupArray{of_period.format(f'({_CELL})')}",
            **{
                f"{unit}s": total("completed_turn_states")
                if unit == "completed_turn"
                else f"uniqExactMerge{of_period.format(f'{unit}_states')}"
                for unit in per
            },
        }.items()
    }


def _order(query: UsageQuery) -> str:
    if isinstance(query.order_by, Weights):
        weighed = " + ".join(
            f"transform(cell_hash, {{weighed:Array(UInt64)}}, {{{name}_weights:Array(Float64)}}, 0.) * {count}"
            for name, count in _WEIGHED.items()
        )
    else:
        weighed = {"tokens": "input + output", "events": "events"}[query.order_by]
    return f"sumIf({weighed}, NOT earlier)" if query.compare else f"sum({weighed})"


def _weight_parameters(weights: Weights) -> dict[str, Any]:
    return {
        "weighed": list(weights.cells) or [0],
        **{f"{name}_weights": list(getattr(weights, name)) or [0.0] for name in _WEIGHED},
    }


def _period_from(row: Mapping[str, Any], prefix: str, per: Sequence[UsageUnit]) -> PeriodSums:
    average = row[f"{prefix}latency_avg"]
    return PeriodSums(
        events=row[f"{prefix}events_sum"],
        billable_events=row[f"{prefix}billable_events"],
        error_events=row[f"{prefix}error_events"],
        lost_events=row[f"{prefix}lost_events"],
        input_tokens=row[f"{prefix}input_tokens_sum"],
        cached_input_tokens=row[f"{prefix}cached_sum"],
        output_tokens=row[f"{prefix}output_tokens_sum"],
        reasoning_tokens=row[f"{prefix}reasoning_sum"],
        images=row[f"{prefix}images_sum"],
        latency_ms_avg=None if math.isnan(average) else average,
        cells=[cell_from(cell) for cell in row[f"{prefix}cells"]],
        units={unit: row[f"{prefix}{unit}s"] for unit in per},
    )


def _cells_sql(query: UsageQuery, columns: Sequence[str], slot: Slot) -> str:
    named = dict.fromkeys((*columns, *CELL_COLUMNS))
    units = {unit: UNITS[unit] for unit in query.per}
    source = RAW if query.from_rows else _smallest(query, [*named, *units.values()])
    earlier = {"earlier": _earlier(source.time)} if query.compare else {}
    told_apart = {**bucket_sql(query, source.time), **earlier, **source.cells}
    outcomes = {
        name: f"sumIf({source.weight}, outcome = '{outcome}')"
        for name, outcome in (("errors", "error"), ("lost", "lost"))
    }
    states = {
        f"{unit}_states": f"sumIf({source.weight}, completes_turn)"
        if unit == "completed_turn"
        else f"uniqExactState({column})"
        for unit, column in units.items()
    }
    hashed = {"cell_hash": _CELL_HASH} if isinstance(query.order_by, Weights) else {}
    added_up = {
        "events": f"sum({source.weight})",
        **outcomes,
        **_CELL_SUMS,
        "pictures": f"sum(source.images * {source.weight})",
        "latency": "sum(source.latency_ms)",
        **states,
        **hashed,
    }
    sums = ", ".join(f"{expression} AS {name}" for name, expression in added_up.items())
    return (
        f"SELECT {', '.join(named)}, "  # noqa: S608 - closed vocabularies
        f"{', '.join(f'{expression} AS {name}' for name, expression in told_apart.items())}, {sums} "
        f"FROM {source.text(slot)} WHERE {where_sql(query, source)} GROUP BY {', '.join((*named, *told_apart))}"
    )


def _smallest(query: UsageQuery, columns: Sequence[str]) -> Source:
    """The smallest table that has these columns, and the filters' and the times'."""
    return source_of(
        [*columns, *_filtered(query), "tenant_id"],
        [time for time in (query.first, query.since, query.until) if time is not None],
        DAYS.step if query.bucket is None else _BUCKETS[query.bucket][0],
        query.boundaries,
    )


def _earlier(time: str) -> str:
    return f"{time} < {{split:DateTime64(6, 'UTC')}}"


def _filtered(query: UsageQuery) -> list[FilterField]:
    return [name for name in FILTERS if name in query.filters]
