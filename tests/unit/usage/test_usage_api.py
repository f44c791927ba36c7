"""`GET /usage` over a store that answers from a list and remembers what it was asked."""

import csv
import io
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import httpx
import pyarrow.parquet
import pytest

from schemas.analytics import Quantiles, UsageQuality, UsageUnit
from schemas.http import ComponentHealth
from schemas.usage import EXAMPLES, UsageRecorded
from services.runtime.errors import UnavailableError
from services.runtime.pricing.cells import cell_of
from services.runtime.web import PROBLEM_JSON
from services.usage.api import MOST_CELLS, build_api
from services.usage.queries import FILTERS, PeriodSums, UsageGroup, UsageQuery, Weights
from services.usage.store import Block, TooMuchAskedError, UsageStore
from tests.support.prices import book_of, price

BOOK = book_of(price(rates={"input": "0.1", "output": "1"}), price(tenant_id="acme", figure="price", markup="0.5"))


QUALITY = UsageQuality(
    group={},
    events=1,
    error_share=0.5,
    lost_share=0,
    retry_share=0,
    cached_input_share=None,
    tool_calls=0,
    tool_success_share=None,
    latency_ms=Quantiles(p50=1, p90=2, p99=3),
    first_token_ms=None,
)


class ListStore(UsageStore):
    """Rows of users, cut as a query says."""

    def __init__(self) -> None:
        self.users = 0
        self.events: list[UsageRecorded] = []
        self.user: str | None = None
        self.units: dict[UsageUnit, int] = {}
        self.asked: list[UsageQuery] = []
        self.trouble: Exception | None = None

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def positions(self) -> Mapping[int, int]:
        return {}

    async def insert(self, block: Block) -> None: ...

    async def query(self, query: UsageQuery) -> Sequence[UsageGroup]:
        self.asked.append(query)
        if self.trouble is not None:
            raise self.trouble
        counts: dict[str, Any] = dict.fromkeys(
            ("billable_events", "input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens"), 0
        )
        cells = [cell_of(event, query.boundaries) for event in self.events]
        sums = {"events": 1, "cells": cells, "units": self.units, **counts}
        previous = PeriodSums(**sums) if query.compare else None
        rows = [
            UsageGroup(group={"user": self.user or f"u-{number}"}, previous=previous, **sums)
            for number in range(self.users)
        ]
        assert query.limit is not None
        return rows[query.offset : query.offset + query.limit]

    async def quality(self, query: UsageQuery) -> Sequence[UsageQuality]:
        self.asked.append(query)
        if self.trouble is not None:
            raise self.trouble
        return [QUALITY.model_copy(update={"events": number}) for number in range(self.users)][
            query.offset : query.offset + (query.limit or 0)
        ]

    async def export(self, query: UsageQuery, take: Callable[[Sequence[UsageGroup]], None]) -> None:
        for first in range(0, self.users, 3):
            take(await self.query(replace(query, offset=first, limit=3)))


@pytest.fixture
def store() -> ListStore:
    return ListStore()


@pytest.fixture
async def http(store: ListStore) -> AsyncIterator[httpx.AsyncClient]:
    async def check() -> dict[str, ComponentHealth]:
        return {"projection": ComponentHealth(ready=store.trouble is None)}

    transport = httpx.ASGITransport(build_api(store, lambda: BOOK, check))
    async with httpx.AsyncClient(transport=transport, base_url="http://usage") as client:
        yield client


def problem(response: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    document: dict[str, Any] = response.json()
    assert (response.status_code, response.headers["content-type"]) == (status, PROBLEM_JSON)
    assert (document["status"], document["type"]) == (status, f"urn:turnlog:problem:{slug}")
    return document


async def test_a_question_is_asked_of_the_store_as_it_was_put(http: httpx.AsyncClient, store: ListStore) -> None:
    filters = {name: f"some {name}" for name in FILTERS}
    response = await http.get(
        "/usage",
        params=filters
        | {
            "tenant_id": "acme",
            "group_by": "user,model",
            "bucket": "hour",
            "order_by": "events",
            "compare": "previous",
            "per": "user,thread",
            "from": "2026-01-01",
            "to": "2026-01-02T03:04:05.000006+02:00",
            "limit": "20",
        },
    )
    assert response.json() == {"items": [], "next_cursor": None}
    assert store.asked == [
        UsageQuery(
            tenant_id="acme",
            group_by=["user", "model"],
            bucket="hour",
            since=datetime(2026, 1, 1, tzinfo=UTC),
            until=datetime(2026, 1, 2, 1, 4, 5, 6, tzinfo=UTC),
            filters=filters,  # pyright: ignore
            compare=True,
            per=["user", "thread"],
            order_by="events",
            limit=21,
            offset=0,
            boundaries=BOOK.boundaries("acme"),
        )
    ]


async def test_without_parameters_it_sums_up_the_default_tenant(http: httpx.AsyncClient, store: ListStore) -> None:
    assert (await http.get("/usage")).status_code == 200
    assert store.asked == [UsageQuery("default", [], per=[], limit=101, boundaries=BOOK.boundaries("default"))]


@pytest.mark.parametrize(("users", "limit"), [(0, 10), (10, 10), (11, 10), (25, 10), (3, 1)])
async def test_pages_follow_until_all_is_told(
    http: httpx.AsyncClient, store: ListStore, users: int, limit: int
) -> None:
    store.users = users
    parameters, told = {"limit": str(limit)}, []
    while True:
        page = (await http.get("/usage", params=parameters)).json()
        assert len(page["items"]) <= limit
        told += [row["group"]["user"] for row in page["items"]]
        if page["next_cursor"] is None:
            break
        parameters["cursor"] = page["next_cursor"]
    assert told == [f"u-{number}" for number in range(users)]
    assert len(store.asked) == max(1, -(-users // limit))


@pytest.mark.parametrize("cursor", ["", "x", "-", "LTU", "MS41", "OTk5OTk5OTk5OTk5", "é", "' OR 1=1", "A" * 5000])
async def test_a_cursor_of_somebody_else_is_refused(http: httpx.AsyncClient, store: ListStore, cursor: str) -> None:
    document = problem(await http.get("/usage", params={"cursor": cursor}), 400, "bad-cursor")
    assert "leave it out" in document["detail"]
    assert store.asked == []


@pytest.mark.parametrize("group_by", ["cost", "user,user", "user_id;DROP TABLE usage_events"])
async def test_an_unknown_dimension_is_refused_with_the_known_ones(
    http: httpx.AsyncClient, store: ListStore, group_by: str
) -> None:
    document = problem(await http.get("/usage", params={"group_by": group_by}), 400, "bad-group-by")
    assert "tenant, user, team, thread, turn, agent" in document["detail"]
    assert group_by in document["detail"]
    assert store.asked == []


async def test_an_unknown_unit_is_refused_with_the_known_ones(http: httpx.AsyncClient, store: ListStore) -> None:
    document = problem(await http.get("/usage", params={"per": "user,tool"}), 400, "bad-per")
    assert document["detail"] == "expected different units of thread, completed_turn, user; got 'user,tool'"
    assert store.asked == []


@pytest.mark.parametrize(
    ("parameters", "location", "message"),
    [
        ({"from": "yesterday"}, "query.from", "expected a time like 2026-01-31T12:00:00Z or a date, got 'yesterday'"),
        ({"to": "2026"}, "query.to", "expected a time like 2026-01-31T12:00:00Z or a date, got '2026'"),
        ({"to": "3000-01-01"}, "query.to", "expected a time from 1970 to 2105, got '3000-01-01'"),
        ({"from": "2026-01-02", "to": "2026-01-01"}, "query", "expected from at or before to"),
        ({"compare": "previous", "from": "2026-01-02"}, "query", "expected from and to beside compare"),
        (
            {"compare": "previous", "bucket": "month", "from": "2026-01-15", "to": "2026-02-16"},
            "query",
            "expected from and to whole months apart beside compare and bucket=month",
        ),
        (
            {"compare": "previous", "bucket": "month", "from": "2026-01-31", "to": "2026-03-31"},
            "query",
            "no 29th to 31st",
        ),
        ({"compare": "year"}, "query.compare", "Input should be 'previous'"),
        ({"format": "csv", "cursor": "MQ"}, "query", "a file has every group, or the first of them by limit"),
        ({"format": "xml"}, "query.format", "Input should be 'json', 'csv' or 'parquet'"),
        ({"limit": "0"}, "query.limit", "greater than or equal to 1"),
        ({"limit": "1001"}, "query.limit", "less than or equal to 1000"),
        ({"bucket": "week"}, "query.bucket", "'hour', 'day' or 'month'"),
        ({"usr_id": "u-1"}, "query.usr_id", "Extra inputs are not permitted"),
        ({"since": "2026-01-01"}, "query.since", "Extra inputs are not permitted"),
    ],
)
async def test_a_parameter_that_cannot_be_is_named(
    http: httpx.AsyncClient, store: ListStore, parameters: dict[str, str], location: str, message: str
) -> None:
    document = problem(await http.get("/usage", params=parameters), 422, "invalid-request")
    (error,) = document["errors"]
    assert error["location"] == location
    assert message in error["message"]
    assert store.asked == []


async def test_what_was_used_has_a_cost_a_price_and_a_count_of_what_has_none(
    http: httpx.AsyncClient, store: ListStore
) -> None:
    store.users = 1
    store.events = [EXAMPLES[0], EXAMPLES[0].model_copy(update={"cached_input_tokens": 99})]
    for tenant, paid in (("default", "0.0000042"), ("acme", "0.0000063")):
        (row,) = (await http.get("/usage", params={"tenant_id": tenant})).json()["items"]
        assert (row["cost"], row["price"], row["unpriced_events"]) == ({"USD": "0.0000042"}, {"USD": paid}, 1)
        assert "cells" not in row


async def test_for_an_order_of_money_it_is_asked_first_what_there_is(http: httpx.AsyncClient, store: ListStore) -> None:
    store.users = 1
    store.events = [EXAMPLES[0]]
    response = await http.get("/usage", params={"order_by": "cost", "group_by": "user", "agent": "a", "bucket": "day"})
    assert response.status_code == 200
    whole, ordered = store.asked
    assert (whole.group_by, whole.bucket, whole.filters) == ((), None, {"agent": "a"})
    assert isinstance(ordered.order_by, Weights)
    assert len(ordered.order_by.cells) == 1


async def test_an_order_of_money_has_a_bound(http: httpx.AsyncClient, store: ListStore) -> None:
    store.users = 1
    store.events = [EXAMPLES[0]] * (MOST_CELLS + 1)
    document = problem(await http.get("/usage", params={"order_by": "price"}), 422, "too-much-asked")
    assert "5,001 cells of prices, an order by price takes 5,000" in document["detail"]


async def test_a_group_is_told_with_the_period_before_and_what_one_unit_comes_to(
    http: httpx.AsyncClient, store: ListStore
) -> None:
    store.users, store.events, store.units = 1, [EXAMPLES[0]], {"thread": 7, "user": 0}
    response = await http.get("/usage", params={"compare": "previous", "from": "2026-01-02", "to": "2026-01-03"})
    (row,) = response.json()["items"]
    assert row["per"] == {
        "thread": {"count": 7, "cost": {"USD": "0.0000006"}, "price": {"USD": "0.0000006"}},
        "user": {"count": 0, "cost": {}, "price": {}},
    }
    assert row["previous"]["cost"] == {"USD": "0.0000042"}
    assert "group" not in row["previous"]


async def test_quality_takes_the_same_groups_filters_and_pages(http: httpx.AsyncClient, store: ListStore) -> None:
    store.users = 3
    asked = {"group_by": "model", "bucket": "day", "from": "2026-01-01", "kind": "completion", "limit": "2"}
    page = (await http.get("/usage/quality", params=asked)).json()
    assert page["items"][0]["latency_ms"] == {"p50": 1, "p90": 2, "p99": 3}
    (query,) = store.asked
    assert (query.group_by, query.bucket, query.filters, query.limit) == (["model"], "day", {"kind": "completion"}, 3)
    page = (await http.get("/usage/quality", params={**asked, "cursor": page["next_cursor"]})).json()
    assert ([item["events"] for item in page["items"]], page["next_cursor"]) == ([2], None)


@pytest.mark.parametrize("parameters", [{"compare": "previous"}, {"order_by": "cost"}, {"format": "csv"}, {"usr": "u"}])
async def test_what_quality_does_not_take_is_refused(http: httpx.AsyncClient, parameters: dict[str, str]) -> None:
    problem(await http.get("/usage/quality", params=parameters), 422, "invalid-request")


EXPORTED = {"group_by": "user", "compare": "previous", "from": "2026-01-02", "to": "2026-01-03", "per": "user"}


async def test_an_export_is_a_csv_of_every_group_with_its_money_by_currency(
    http: httpx.AsyncClient, store: ListStore
) -> None:
    store.users, store.events, store.units = 7, [EXAMPLES[0]], {"user": 4}
    response = await http.get("/usage", params={**EXPORTED, "format": "csv"})
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    assert response.headers["content-disposition"] == 'attachment; filename="usage.csv"'
    assert int(response.headers["content-length"]) == len(response.content)
    header, *lines = response.text.split("\r\n")
    counts = "billable_events,error_events,lost_events,input_tokens,cached_input_tokens,output_tokens,reasoning_tokens"
    money = "images,latency_ms_avg,cost_USD,price_USD,unpriced_events,users,cost_USD_per_user,price_USD_per_user"
    figures = f"events,{counts},{money}"
    assert header == f"user,{figures},previous_" + figures.replace(",", ",previous_")
    assert lines[:-1] == [
        f"u-{number}"
        + ",1,0,0,0,0,0,0,0,0,,0.0000042,0.0000042,0,4,0.00000105,0.00000105"
        + ",1,0,0,0,0,0,0,0,0,,0.0000042,0.0000042,0,4,0.00000105,0.00000105"
        for number in range(7)
    ]
    assert lines[-1] == ""


async def test_an_export_is_a_parquet_file_with_exact_amounts(http: httpx.AsyncClient, store: ListStore) -> None:
    store.users, store.events, store.units = 7, [EXAMPLES[0]], {"user": 3}
    response = await http.get("/usage", params={**EXPORTED, "format": "parquet"})
    table = pyarrow.parquet.read_table(io.BytesIO(response.content))
    assert table.num_rows == 7
    assert table.column("user").to_pylist() == [f"u-{number}" for number in range(7)]
    assert table.column("cost_USD").to_pylist() == [Decimal("0.0000042")] * 7
    assert table.column("previous_cost_USD_per_user").to_pylist() == [Decimal("0.0000014")] * 7
    assert str(table.schema.field("events").type) == "int64"
    assert table.column("latency_ms_avg").to_pylist() == [None] * 7


async def test_an_export_of_nothing_is_its_header(http: httpx.AsyncClient) -> None:
    assert (await http.get("/usage", params={"format": "csv"})).text.startswith("events,billable_events,")
    response = await http.get("/usage", params={"format": "parquet"})
    assert pyarrow.parquet.read_table(io.BytesIO(response.content)).num_rows == 0


async def test_text_of_a_group_is_one_field_whatever_it_holds(http: httpx.AsyncClient, store: ListStore) -> None:
    store.users, store.user = 1, 'a "b",\r\nü'
    response = await http.get("/usage", params={"group_by": "user", "format": "csv"})
    (row,) = csv.DictReader(io.StringIO(response.text, newline=""))
    assert row["user"] == store.user


async def test_an_export_that_cannot_be_is_a_problem_document(http: httpx.AsyncClient, store: ListStore) -> None:
    store.users, store.trouble = 1, TooMuchAskedError("it would read more than 7 rows")
    problem(await http.get("/usage", params={"format": "csv"}), 422, "too-much-asked")
    store.trouble = UnavailableError("usage was rebuilt while it was exported: ask again")
    problem(await http.get("/usage", params={"format": "parquet"}), 503, "unavailable")


async def test_an_empty_span_of_time_is_a_question_like_any_other(http: httpx.AsyncClient) -> None:
    response = await http.get("/usage", params={"from": "2026-01-01", "to": "2026-01-01T00:00:00Z"})
    assert response.status_code == 200


async def test_while_clickhouse_is_down_the_answer_says_so(http: httpx.AsyncClient, store: ListStore) -> None:
    store.trouble = UnavailableError("ClickHouse at http://clickhouse:8123 does not answer: refused")
    response = await http.get("/usage")
    assert problem(response, 503, "unavailable")["detail"] == str(store.trouble)
    assert response.headers["retry-after"] == "1"
    assert (await http.get("/readyz")).status_code == 503
    assert (await http.get("/healthz")).status_code == 200


async def test_a_question_that_asks_too_much_is_told_what_to_ask_instead(
    http: httpx.AsyncClient, store: ListStore
) -> None:
    store.trouble = TooMuchAskedError("it would read more than 7 rows: ask for a shorter time")
    assert problem(await http.get("/usage"), 422, "too-much-asked")["detail"] == str(store.trouble)


async def test_what_is_not_there_is_a_problem_document(http: httpx.AsyncClient) -> None:
    problem(await http.get("/usages"), 404, "not-found")
    problem(await http.post("/usage"), 405, "method-not-allowed")


@pytest.mark.parametrize("user", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\uff1d1"])
async def test_text_from_outside_is_no_formula_in_a_csv(http: httpx.AsyncClient, store: ListStore, user: str) -> None:
    store.users, store.user = 1, user
    asked = {"group_by": "user", "format": "csv"}
    (row,) = csv.DictReader(io.StringIO((await http.get("/usage", params=asked)).text, newline=""))
    assert (row["user"], row["events"]) == (f"'{user}", "1")
    parquet = (await http.get("/usage", params=asked | {"format": "parquet"})).content
    assert pyarrow.parquet.read_table(io.BytesIO(parquet)).column("user").to_pylist() == [user]
