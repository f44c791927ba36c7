"""The SQL of the analytics: words of ours in the text, everything from outside among the parameters."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from itertools import combinations
from typing import Any, get_args

import pytest

from schemas.analytics import UsageDimension
from schemas.usage import UsageRecorded
from services.runtime.pricing.cells import Boundaries
from services.runtime.pricing.defaults import PackagedPrices
from services.usage import sums_sql
from services.usage.migrate import migrations, statements
from services.usage.queries import (
    FILTERS,
    Bucket,
    UsageQuery,
    months_between,
    parse_dimensions,
    parse_time,
)
from services.usage.rollups import ROLLUPS, SIZES
from services.usage.sums_sql import COLUMNS, parameters_of

DIMENSIONS: tuple[UsageDimension, ...] = get_args(UsageDimension)
BUCKETS: tuple[Bucket, ...] = get_args(Bucket)
SINCE = datetime(2026, 1, 1, tzinfo=UTC)
HOSTILE = "x' OR 1=1; DROP TABLE usage_events --"


def sql_of(query: UsageQuery) -> tuple[str, dict[str, Any]]:
    """Statement and parameters, of one of the two sets of tables."""
    return sums_sql.sums_sql(query, "b"), parameters_of(query)


def clause(statement: str, begin: str, end: str) -> str:
    found = re.search(f"{begin} (.*?) ?(?:{end})", statement)
    assert found, statement
    return found[1]


def placeholders(statement: str) -> set[str]:
    return set(re.findall(r"\{(\w+):", statement))


def test_every_dimension_is_a_column_of_the_event() -> None:
    assert tuple(COLUMNS) == DIMENSIONS
    assert {*COLUMNS.values(), *FILTERS} <= UsageRecorded.model_fields.keys()


def test_without_groups_there_is_one_sum() -> None:
    statement, parameters = sql_of(UsageQuery("acme"))
    assert "GROUP BY" not in statement.rpartition(")")[2]
    assert statement.startswith("SELECT sum(events) AS events_sum")
    assert clause(statement, "WHERE", "GROUP BY") == "tenant_id = {tenant_id:String}"
    assert parameters == {"tenant_id": "acme", "limit": 100, "offset": 0, "times": [0], "sizes": [0]}


@pytest.mark.parametrize("dimensions", [*combinations(DIMENSIONS, 1), *combinations(DIMENSIONS, 2)])
def test_groups_are_selected_and_order_ties(dimensions: tuple[UsageDimension, ...]) -> None:
    statement, _ = sql_of(UsageQuery("acme", dimensions))
    columns = ", ".join(COLUMNS[name] for name in dimensions)
    assert statement.startswith(f"SELECT {columns}, sum(events) AS events_sum")
    assert clause(statement, "\\) GROUP BY", "ORDER") == columns
    assert clause(statement, "ORDER BY", "LIMIT") == f"sum(input + output) DESC, {columns}"


@pytest.mark.parametrize("bucket", BUCKETS)
def test_a_bucket_comes_first_and_orders_by_time(bucket: Bucket) -> None:
    statement, _ = sql_of(UsageQuery("acme", ["model"], bucket=bucket))
    assert statement.startswith("SELECT bucket, model, sum(events)")
    assert re.search(r"formatDateTime\(starts, '[^']+', 'UTC'\) AS bucket", statement)
    assert clause(statement, "\\) GROUP BY", "ORDER") == "bucket, model"
    assert clause(statement, "ORDER BY", "LIMIT") == "bucket, sum(input + output) DESC, model"


ODD = SINCE + timedelta(seconds=1)
MINUTE = SINCE + timedelta(minutes=1)
HOUR = SINCE + timedelta(hours=1)


@pytest.mark.parametrize(
    ("query", "table"),
    [
        (UsageQuery("acme"), "usage_days_b AS source"),
        (UsageQuery("acme", ["user", "outcome"], bucket="month", since=SINCE), "usage_days_b AS source"),
        (UsageQuery("acme", boundaries=Boundaries.at([SINCE], [32001])), "usage_days_b AS source"),
        (UsageQuery("acme", ["thread"]), "usage_minutes_b AS source"),
        (UsageQuery("acme", filters={"thread_id": "t"}), "usage_minutes_b AS source"),
        (UsageQuery("acme", bucket="hour"), "usage_hours_b AS source"),
        (UsageQuery("acme", since=HOUR), "usage_hours_b AS source"),
        (UsageQuery("acme", bucket="day", boundaries=Boundaries.at([HOUR], [])), "usage_hours_b AS source"),
        (UsageQuery("acme", ["thread"], bucket="hour"), "usage_minutes_b AS source"),
        (UsageQuery("acme", bucket="hour", until=MINUTE), "usage_minutes_b AS source"),
        (UsageQuery("acme", bucket="minute"), "usage_minutes_b AS source"),
        (UsageQuery("acme", since=MINUTE), "usage_minutes_b AS source"),
        (UsageQuery("acme", bucket="day", boundaries=Boundaries.at([MINUTE], [])), "usage_minutes_b AS source"),
        (UsageQuery("acme", ["turn"]), "usage_events_b AS source FINAL"),
        (UsageQuery("acme", filters={"turn_id": "t"}), "usage_events_b AS source FINAL"),
        (UsageQuery("acme", until=ODD), "usage_events_b AS source FINAL"),
        (UsageQuery("acme", boundaries=Boundaries.at([ODD], [])), "usage_events_b AS source FINAL"),
        (UsageQuery("acme", boundaries=Boundaries.at([], [7])), "usage_events_b AS source FINAL"),
    ],
)
def test_the_smallest_table_is_read_that_answers_to_the_digit(query: UsageQuery, table: str) -> None:
    assert f"FROM {table} WHERE tenant_id = " in sql_of(query)[0]


def test_sums_tell_apart_every_size_that_a_packaged_price_does() -> None:
    """Else every sum would be read from the rows: a later package of prices then needs a migration of the tables."""
    assert {*PackagedPrices().boundaries.sizes} <= {*SIZES}
    for rollup in ROLLUPS:
        assert rollup.answers(["tenant_id"], [], PackagedPrices().boundaries)


def test_the_views_sum_up_by_the_columns_that_a_rollup_says() -> None:
    made = [text for _, file in migrations() for text in statements(file)]
    for rollup in ROLLUPS:
        name = f"{rollup.source.table}_a"
        view = [text for text in made if f" {name}_view " in text.split("\n")[0]][-1]
        keys = {*rollup.columns, "starts", "size", "shape"}
        assert {*view.rpartition("GROUP BY ")[2].split(", ")} == keys
        assert str(list(SIZES)) in view
        assert f"{rollup.starts_of}(occurred_at, 'UTC') AS starts" in view
        tables = [text for text in made if text.split("\n")[0].endswith(f" {name}") and "ORDER BY" in text]
        order = re.findall(r"ORDER BY \((.*)\)", tables[-1])
        assert {*order[0].split(", ")} == keys


def test_cells_are_told_apart_by_parameters() -> None:
    boundaries = Boundaries.at([SINCE], [129])
    statement, parameters = sql_of(UsageQuery("acme", boundaries=boundaries))
    inner = clause(statement, "GROUP BY", "\\)")
    assert inner == "kind, provider, model, tool, billable, begins, size, shape"
    assert (parameters["times"], parameters["sizes"]) == ([0, 1767225600000000], [0, 129])


def test_times_are_half_open_parameters() -> None:
    statement, parameters = sql_of(UsageQuery("acme", ["turn"], since=SINCE, until=SINCE + timedelta(days=1)))
    where = clause(statement, "WHERE", "GROUP BY")
    assert "occurred_at >= {since:DateTime64(6, 'UTC')}" in where
    assert "occurred_at < {until:DateTime64(6, 'UTC')}" in where
    assert (parameters["since"], parameters["until"]) == (SINCE, SINCE + timedelta(days=1))


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_is_one_parameter(name: str) -> None:
    statement, parameters = sql_of(UsageQuery("acme", filters={name: "value"}))  # pyright: ignore
    assert clause(statement, "WHERE", "GROUP BY") == f"tenant_id = {{tenant_id:String}} AND {name} = {{{name}:String}}"
    assert parameters[name] == "value"


def test_nothing_from_outside_is_in_the_text() -> None:
    hostile = UsageQuery(
        HOSTILE, DIMENSIONS, "day", since=SINCE, until=SINCE, filters=dict.fromkeys(FILTERS, HOSTILE), limit=7, offset=9
    )
    harmless = UsageQuery(
        "a", DIMENSIONS, "day", since=SINCE, until=SINCE, filters=dict.fromkeys(FILTERS, "b"), limit=1, offset=0
    )
    statement, parameters = sql_of(hostile)
    assert statement == sql_of(harmless)[0]
    assert placeholders(statement) == parameters.keys()
    assert parameters["tenant_id"] == parameters["agent"] == HOSTILE


def test_a_filter_that_is_no_column_never_reaches_the_text() -> None:
    statement, parameters = sql_of(UsageQuery("acme", filters={HOSTILE: "1"}))  # pyright: ignore
    assert (statement, parameters) == sql_of(UsageQuery("acme"))


@pytest.mark.parametrize(
    ("text", "dimensions"),
    [("", []), ("user", ["user"]), (" user , model ", ["user", "model"]), ("model,,user,", ["model", "user"])],
)
def test_dimensions_are_a_comma_list(text: str, dimensions: list[str]) -> None:
    assert parse_dimensions(text) == dimensions


@pytest.mark.parametrize("text", ["user_id", "user,cost", "User", "user,user", HOSTILE, "count()"])
def test_an_unknown_or_repeated_dimension_is_named_with_the_known_ones(text: str) -> None:
    with pytest.raises(ValueError, match="expected different dimensions of tenant, user, team") as caught:
        parse_dimensions(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
        ("2026-01-31T12:00:00Z", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("2026-01-31T12:00:00.000001", datetime(2026, 1, 31, 12, 0, 0, 1, tzinfo=UTC)),
        ("2026-01-31T12:00:00+02:00", datetime(2026, 1, 31, 12, tzinfo=timezone(timedelta(hours=2)))),
        ("1970-01-01", datetime(1970, 1, 1, tzinfo=UTC)),
        ("2106-01-01", datetime(2106, 1, 1, tzinfo=UTC)),
    ],
)
def test_a_time_is_iso_8601_and_utc_where_it_says_nothing(text: str, time: datetime) -> None:
    parsed = parse_time(text)
    assert (parsed, parsed.tzinfo) == (time, UTC)


@pytest.mark.parametrize("text", ["", "2026", "1767225600", "yesterday", "2026-13-01", "2026-01-31T25:00", HOSTILE])
def test_what_is_no_time_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="expected a time like 2026-01-31T12:00:00Z or a date, got") as caught:
        parse_time(text)
    assert repr(text) in str(caught.value)


def test_a_plus_that_became_a_space_is_explained() -> None:
    with pytest.raises(ValueError, match="write \\+ as %2B"):
        parse_time("2026-01-31T12:00:00 02:00")


@pytest.mark.parametrize("text", ["1969-12-31", "0001-01-01T00:00:00+05:00", "2106-01-02", "9999-12-31T23:59:59-05:00"])
def test_a_time_that_no_row_can_have_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a time from 1970 to 2105"):
        parse_time(text)


def test_rows_are_added_up_where_that_is_asked_for_though_sums_would_do() -> None:
    asked = UsageQuery("acme", since=datetime(2026, 1, 1, tzinfo=UTC), until=datetime(2026, 2, 1, tzinfo=UTC))
    assert "usage_days_b AS source" in sql_of(asked)[0]
    assert "usage_events_b AS source FINAL" in sql_of(replace(asked, from_rows=True))[0]


@pytest.mark.parametrize(
    ("since", "until", "months"),
    [
        ("2025-03-01", "2025-05-01", 2),
        ("2025-12-15T01:02", "2026-01-15T01:02", 1),
        ("2025-03-01", "2025-05-02", None),
        ("2025-03-01", "2025-05-01T00:01", None),
        ("2025-01-31", "2025-03-31", None),
    ],
)
def test_months_lie_between_times_of_the_same_day(since: str, until: str, months: int | None) -> None:
    assert months_between(parse_time(since), parse_time(until)) == months


@pytest.mark.parametrize(
    ("since", "until", "first"),
    [("2025-03-01", "2025-05-01", "2025-01-01"), ("2025-01-15", "2026-01-15", "2024-01-15")],
)
def test_the_months_before_are_as_many(since: str, until: str, first: str) -> None:
    query = UsageQuery("acme", bucket="month", since=parse_time(since), until=parse_time(until), compare=True)
    statement, parameters = sql_of(query)
    assert query.first == parameters["since"] == parse_time(first)
    assert parameters["months"] == query.months
    assert "addMonths" in statement
    assert placeholders(statement) <= parameters.keys()
