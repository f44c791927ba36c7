"""Grafana's dashboards of usage: every query runs on the tables as migrations make them, and finds what it shows."""

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from clickhouse_connect.driver.exceptions import ClickHouseError

from services.usage.rates_loop import RatesLoop
from tests.support.prices import book_of, price
from tests.support.usage_tables import START, Place, block, spent

GRAFANA = Path(__file__).parents[3] / "infra" / "grafana"
DASHBOARDS: dict[str, Any] = {path.stem: json.loads(path.read_text()) for path in GRAFANA.glob("dashboards/*.json")}
PANELS = [(name, panel) for name, each in DASHBOARDS.items() for panel in each["panels"]]

SINCE, UNTIL = int(START.timestamp()) - 3600, int(START.timestamp()) + 3600

MACROS = {
    r"\$__timeFilter\((\w+)\)": rf"\1 >= toDateTime({SINCE}) AND \1 <= toDateTime({UNTIL})",
    r"\$__timeInterval\((\w+)\)": r"toStartOfInterval(toDateTime(\1), INTERVAL 60 second)",
    r"\$\{tenant:sqlstring\}": "'default','o''brien'",
}
"""What the data source makes of its macros and Grafana of its variables."""


def expanded(sql: str) -> str:
    for macro, text in MACROS.items():
        sql = re.sub(macro, text, sql)
    assert "$" not in sql, f"a macro or variable that is not known here: {sql}"
    return sql


@pytest.fixture
async def filled(place: Place) -> AsyncIterator[Any]:
    """A client of tables in which every panel finds something, in the second set of them."""
    store = place.store()
    await store.open()
    both = {
        "user_id": "ann",
        "team_id": "blue",
        "thread_id": "t-1",
        "agent": "assistant",
        "provider": "p",
        "model": "m",
    }
    events = [
        spent(
            0,
            **both,
            first_token_ms=5,
            latency_ms=9,
            cached_input_tokens=1,
            output_tokens=2,
            reasoning_tokens=1,
            completes_turn=True,
        ),
        spent(1, **both, outcome="error", attempt=2, billable=False),
        spent(2, **both, outcome="lost", billable=False),
        spent(3, kind="tool", tool="calculate", thread_id="t-1", user_id="ann", input_tokens=0),
    ]
    build = await store.begin_build()
    await build.insert(block(*events, spent(3, kind="tool", tool="another")))
    await store.switch()
    book = book_of(
        price("cost", kind="completion", provider="p", rates={"input": "1000000", "output": "2000000"}),
        price("ours", figure="price", markup="0.5"),
    )
    await RatesLoop(store, lambda: book).refresh()
    await store.close()
    with place.client() as client:
        yield client


async def test_every_query_runs_and_finds_what_its_panel_shows(filled: Any) -> None:
    for name, panel in PANELS:
        where = f"{name}: {panel['title']}"
        for target in panel["targets"]:
            try:
                result = filled.query(expanded(target["rawSql"]))
            except ClickHouseError as error:
                pytest.fail(f"{where}: {error}")
            assert result.result_rows, f"{where} is empty"
            types = dict(zip(result.column_names, (kind.name for kind in result.column_types), strict=True))
            if panel["type"] == "timeseries":
                assert result.column_names[0] == "time", where
                assert types["time"].startswith("DateTime"), where
                assert target["format"] == 0, where
            else:
                assert target["format"] == 1, where
            if panel["type"] == "stat":
                assert (len(types), result.row_count) == (1, 1), where
                assert result.result_rows[0][0] not in (0, None), f"{where} shows nothing of what is there"
    for name, dashboard in DASHBOARDS.items():
        for variable in dashboard["templating"]["list"]:
            assert filled.query(expanded(variable["query"])).result_rows == [("default",)], name


async def test_panels_of_money_show_what_is_spent_and_paid_and_what_is_unpriced(filled: Any) -> None:
    """Three attempts of a token in, of which one has two out and is billable; a tool has no price."""
    shown = {
        (name, panel["title"]): filled.query(expanded(panel["targets"][0]["rawSql"])).result_rows
        for name, panel in PANELS
        if "usage_money" in panel["targets"][0]["rawSql"]
    }
    assert [row[1:] for row in shown["cost", "Cost by day"]] == [("USD", 7)]
    assert [row[1:] for row in shown["cost", "Cost by model"]] == [("m USD", 7)]
    assert shown["cost", "Unpriced events"] == [(1,)]
    assert shown["cost", "Cost by model and tool"] == [("m", "", "USD", 7, 3, 0), ("", "calculate", None, None, 1, 1)]
    assert shown["cost", "Cost by provider"] == [("p", "completion", "USD", 7, 3, 0), ("", "tool", None, None, 1, 1)]
    assert shown["cost", "Cost by agent"] == [("assistant", "", "USD", 7, 3, 0), ("", "", None, None, 1, 1)]
    assert shown["cost", "Cost by tenant"] == [("default", "USD", 7, 3, 0), ("default", None, None, 1, 1)]
    assert shown["cost", "Cost against price by tenant"] == [
        ("default", "USD", 7, "USD", 7.5, 0.5, pytest.approx(0.5 / 7.5), 0),
        ("default", None, None, None, None, None, None, 1),
    ]
    assert shown["cost", "What is unpriced"] == [("tool", "", "", "calculate", 1)]
    assert [row[1:] for row in shown["tenant", "Cost"]] == [("USD", 7)]
    assert [row[1:] for row in shown["tenant", "Price"]] == [("USD", 7.5)]
    assert shown["tenant", "Users of most cost"] == [
        ("ann", "USD", 7, "USD", 7.5, 3, 0),
        ("ann", None, None, None, None, 1, 1),
    ]
    assert shown["tenant", "Agents of most cost"] == [
        ("assistant", "USD", 7, "USD", 7.5, 3, 0),
        ("", None, None, None, None, 1, 1),
    ]
    assert len(shown) == 13


async def test_a_column_that_is_not_there_would_be_found(filled: Any) -> None:
    with pytest.raises(ClickHouseError, match="no_such_column"):
        filled.query(expanded("SELECT sum(no_such_column) FROM usage_minutes WHERE $__timeFilter(starts)"))


async def test_the_views_show_the_live_tables_alone(filled: Any) -> None:
    for view, count in (("usage_events", 4), ("usage_conflicts", 1)):
        assert filled.query(f"SELECT count() FROM {view}").result_rows == [(count,)]
    for view in ("usage_minutes", "usage_hours", "usage_days"):
        assert filled.query(f"SELECT sum(events), min(toUnixTimestamp(starts)) > 0 FROM {view}").result_rows == [(4, 1)]
        live = filled.query(f"DESCRIBE TABLE {view}_b").result_rows
        assert [row[0] for row in filled.query(f"DESCRIBE TABLE {view}").result_rows] == [row[0] for row in live]


def test_a_macro_that_is_misspelt_would_be_found() -> None:
    with pytest.raises(AssertionError, match="not known here"):
        expanded("SELECT 1 FROM usage_days WHERE $__timeFilters(starts)")


def test_dashboards_hang_together() -> None:
    assert DASHBOARDS.keys() == {"tenant", "cost", "quality", "operations"}
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/turnlog.yaml").read_text())["datasources"]
    used = {"type": source["type"], "uid": source["uid"]}
    assert len({each["uid"] for each in DASHBOARDS.values()}) == len(DASHBOARDS)
    for name, dashboard in DASHBOARDS.items():
        panels = dashboard["panels"]
        assert [panel["id"] for panel in panels] == list(range(1, len(panels) + 1)), name
        cells = [
            (x, y)
            for panel in panels
            for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
            for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
        ]
        assert len({*cells}) == len(cells), f"{name}: panels lie on each other"
        assert max(x for x, _ in cells) < 24
        for panel in panels:
            assert panel["datasource"] == used
            assert all(target["datasource"] == used for target in panel["targets"])
        tenants = [variable["name"] for variable in dashboard["templating"]["list"]]
        for panel in panels:
            assert ("${tenant:sqlstring}" in panel["targets"][0]["rawSql"]) == bool(tenants), panel["title"]


def test_the_container_has_what_the_provisioning_asks_for() -> None:
    grafana = yaml.safe_load((GRAFANA / "compose.yaml").read_text())["services"]["grafana"]
    source = (GRAFANA / "provisioning/datasources/turnlog.yaml").read_text()
    assert {*re.findall(r"\$\{(\w+)\}", source)} <= grafana["environment"].keys()
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/turnlog.yaml").read_text())["providers"]
    mounted = dict(volume.removesuffix(":ro").split(":") for volume in grafana["volumes"])
    assert mounted == {
        "./grafana/provisioning": "/etc/grafana/provisioning",
        "./grafana/dashboards": provider["options"]["path"],
    }
