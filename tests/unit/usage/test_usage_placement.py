"""The same SQL on one server and on a cluster, and what the settings of storage make of a table."""

import re

import pytest

from services.runtime.errors import ConfigurationError
from services.runtime.settings import load_settings
from services.usage.migrate import migrations, statements
from services.usage.placement import Placement
from services.usage.settings import UsageSettings

ALL = [statement for _, text in migrations() for statement in statements(text)]
CLUSTER = Placement(cluster="main")
SHARDED = Placement(cluster="main", sharded=True, database="spent")
PLAIN = {"engine_full": "MergeTree ORDER BY x SETTINGS index_granularity = 8192", "storage_policy": "default"}


def test_without_a_cluster_a_statement_is_as_it_is_written() -> None:
    assert [Placement().placed(statement) for statement in ALL] == [[statement] for statement in ALL]
    assert Placement().settings() == {}


@pytest.mark.parametrize("statement", ALL, ids=lambda statement: statement.split("\n")[0][:60])
def test_on_a_cluster_every_table_is_made_on_every_node_and_replicated(statement: str) -> None:
    (placed,) = CLUSTER.placed(statement)
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


@pytest.mark.parametrize("statement", ALL, ids=lambda statement: statement.split("\n")[0][:60])
def test_on_shards_a_node_has_its_own_part_and_a_table_that_asks_all(statement: str) -> None:
    made, *asking = SHARDED.placed(statement)
    named = re.match(r".*?\b(usage_(?:events|minutes|hours|days)_[ab])\b(?!_)", statement, re.DOTALL)
    if statement.startswith(("INSERT", "CREATE OR REPLACE VIEW")):
        assert [made, *asking] == CLUSTER.placed(statement), "what is written and asked is of all shards"
    elif named is None:
        assert asking == []
        assert "_local" not in made
        assert ("{shard}-{replica}" in made) == ("MergeTree" in statement), "every node has all of it"
    else:
        assert not re.search(r"\busage_(events|minutes|hours|days)_[ab]\b", made)
        assert "{replica}" not in made, "by default a path is of one shard"
        key = ", cityHash64(tenant_id, usage_id)" if named[1].startswith("usage_events") else ""
        changes_columns = statement.startswith("CREATE TABLE") or " COLUMN " in statement
        assert asking == (
            [
                f"CREATE OR REPLACE TABLE {named[1]} ON CLUSTER `main` AS {named[1]}_local ENGINE = "
                f"Distributed(`main`, `spent`, {named[1]}_local{key})"
            ]
            if changes_columns
            else []
        )


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
    (moved,) = Placement("main", sharded=True, cold_days=1).storage("usage_days_a", "starts", PLAIN)
    assert moved.startswith("ALTER TABLE usage_days_a_local ON CLUSTER `main` MODIFY TTL ")


@pytest.mark.parametrize(
    ("name", "value", "needs"),
    [
        ("TURNLOG_CLICKHOUSE_CLUSTER", "main", "TURNLOG_CLICKHOUSE_URL"),
        ("TURNLOG_CLICKHOUSE_SHARDED", "true", "TURNLOG_CLICKHOUSE_CLUSTER"),
    ],
)
def test_a_cluster_without_an_address_and_shards_without_a_cluster_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, needs: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=f"{name} needs {needs}"):
        load_settings(UsageSettings, _env_file=None)


@pytest.mark.parametrize(
    ("url", "database"), [("http://u:p@host:8123/spent", "spent"), ("http://host/", "default"), ("", "default")]
)
def test_the_database_of_the_tables_is_that_of_the_address(
    monkeypatch: pytest.MonkeyPatch, url: str, database: str
) -> None:
    monkeypatch.setenv("TURNLOG_CLICKHOUSE_URL", url)
    assert load_settings(UsageSettings, _env_file=None).clickhouse_database == database


@pytest.mark.parametrize(
    "name", ["TURNLOG_CLICKHOUSE_CLUSTER", "TURNLOG_USAGE_STORAGE_POLICY", "TURNLOG_USAGE_COLD_VOLUME"]
)
def test_a_name_that_would_be_more_than_a_name_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "x' OR `y")
    with pytest.raises(ConfigurationError, match=name):
        load_settings(UsageSettings, _env_file=None)
