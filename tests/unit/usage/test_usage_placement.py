"""The same SQL on one server and on a cluster, and what the settings of storage make of a table."""

import pytest

from services.runtime.errors import ConfigurationError
from services.runtime.settings import load_settings
from services.usage.migrate import migrations, statements
from services.usage.placement import Placement
from services.usage.settings import UsageSettings

ALL = [statement for _, text in migrations() for statement in statements(text)]
CLUSTER = Placement(cluster="main")
PLAIN = {"engine_full": "MergeTree ORDER BY x SETTINGS index_granularity = 8192", "storage_policy": "default"}


def test_without_a_cluster_a_statement_is_as_it_is_written() -> None:
    assert [Placement().placed(statement) for statement in ALL] == ALL
    assert Placement().settings() == {}


@pytest.mark.parametrize("statement", ALL, ids=lambda statement: statement.split("\n")[0][:60])
def test_on_a_cluster_every_table_is_made_on_every_node_and_replicated(statement: str) -> None:
    placed = CLUSTER.placed(statement)
    verb = statement.split(maxsplit=1)[0]
    if verb == "INSERT":
        assert placed == statement, "the engine carries it to the others"
        return
    assert verb in ("CREATE", "ALTER", "DROP", "TRUNCATE")
    assert placed.count(" ON CLUSTER `main`") == 1
    assert (
        placed.count("MergeTree")
        == placed.count("ENGINE = Replicated")
        == statement.count("ENGINE = ") - (statement.count("ENGINE = Memory"))
    )
    assert "non_replicated_deduplication_window" not in placed
    assert placed.count("replicated_deduplication_window = 1000") == statement.count("deduplication_window = 1000")


def test_what_is_acknowledged_on_a_cluster_is_on_most_nodes_and_read_from_any() -> None:
    settings = CLUSTER.settings()
    assert (settings["insert_quorum"], settings["insert_quorum_parallel"]) == ("auto", 0)
    assert settings["select_sequential_consistency"] == 1


def test_a_table_is_moved_to_its_policy_and_old_parts_to_the_cold_volume() -> None:
    tiered = Placement(storage_policy="tiered", cold_days=90)
    move = "toDateTime(starts) + toIntervalDay(90) TO VOLUME 'cold'"
    assert tiered.storage("usage_days_a", "starts", PLAIN) == [
        "ALTER TABLE usage_days_a MODIFY SETTING storage_policy = 'tiered'",
        f"ALTER TABLE usage_days_a MODIFY TTL {move}",
    ]
    done = {"engine_full": f"MergeTree ORDER BY x TTL {move} SETTINGS a = 1", "storage_policy": "tiered"}
    assert tiered.storage("usage_days_a", "starts", done) == []
    assert Placement(storage_policy="tiered").storage("usage_days_a", "starts", done) == [
        "ALTER TABLE usage_days_a REMOVE TTL"
    ]
    assert Placement().storage("usage_days_a", "starts", PLAIN) == []
    assert (
        Placement("main", cold_days=1).storage("t", "starts", PLAIN)[0].startswith("ALTER TABLE t ON CLUSTER `main` ")
    )


def test_a_cluster_without_an_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNLOG_CLICKHOUSE_CLUSTER", "main")
    with pytest.raises(ConfigurationError, match="needs TURNLOG_CLICKHOUSE_URL"):
        load_settings(UsageSettings, _env_file=None)


@pytest.mark.parametrize(
    "name", ["TURNLOG_CLICKHOUSE_CLUSTER", "TURNLOG_USAGE_STORAGE_POLICY", "TURNLOG_USAGE_COLD_VOLUME"]
)
def test_a_name_that_would_be_more_than_a_name_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "x' OR `y")
    with pytest.raises(ConfigurationError, match=name):
        load_settings(UsageSettings, _env_file=None)
