"""Where the tables are: on one server, on every node of a cluster or spread over its shards; and what is in cold
storage. Pure.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

TIMES = {"usage_events": "occurred_at", "usage_minutes": "starts", "usage_hours": "starts", "usage_days": "starts"}
"""The tables that grow with time, and what time a row is of."""

_DDL = re.compile(
    r"^((?:CREATE (?:TABLE|MATERIALIZED VIEW)(?: IF NOT EXISTS)?|CREATE OR REPLACE VIEW|ALTER TABLE"
    r"|DROP TABLE(?: IF EXISTS)?|TRUNCATE TABLE) \w+)"
)
_ENGINE = re.compile(r"\bENGINE = (\w*MergeTree)\b")
_SPREAD = re.compile(rf"\b((?:{'|'.join(TIMES)})_[ab])\b")
_COLUMNS = re.compile(r"^CREATE TABLE |^ALTER TABLE .* COLUMN ", re.DOTALL)

_EVERYWHERE = "('/clickhouse/tables/{uuid}/everywhere', '{shard}-{replica}')"
"""Of a small table that every node keeps whole, whatever its shard."""

_SHARD_OF = {"usage_events": ", cityHash64(tenant_id, usage_id)"}
"""Where a row goes that is inserted: a fact that comes again to where the first is. Sums stay where their rows are."""


@dataclass(frozen=True, slots=True)
class Placement:
    """What the settings say of it.

    The nodes of a cluster must have the macros `{shard}` and `{replica}`, as ClickHouse's own defaults for replicated
    tables want it.

    Args:
        sharded: whether each shard of the cluster keeps a part of the usage, instead of every node all of it. A node's
            own part is in the table of the name with `_local`; the table of the name itself is that of all shards.
        database: of the tables.
    """

    cluster: str | None = None
    sharded: bool = False
    database: str = "default"
    storage_policy: str | None = None
    cold_volume: str = "cold"
    cold_days: int | None = None

    def settings(self) -> dict[str, str | int]:
        """Of every statement: on a cluster what was acknowledged is on most of the nodes, and what is read has it.

        So whichever node answers next knows every block, and a fact that is sent again is found.
        """
        if self.cluster is None:
            return {}
        return {
            "insert_quorum": "auto",
            "insert_quorum_parallel": 0,
            "select_sequential_consistency": 1,
            "alter_sync": 2,
            "mutations_sync": 2,
            **({"distributed_foreground_insert": 1} if self.sharded else {}),
        }

    def stored(self, table: str) -> str:
        """The name of the table that has the rows of a node itself."""
        return f"{table}_local" if self.sharded and _SPREAD.fullmatch(table) else table

    def placed(self, statement: str) -> list[str]:
        """What a statement of the migrations, or one like them, is where the tables are."""
        if self.cluster is None:
            return [statement]
        spread = _SPREAD.search(statement) if self.sharded else None
        of_nodes = not statement.startswith(("INSERT", "CREATE OR REPLACE VIEW"))
        arguments = _EVERYWHERE if self.sharded and not spread else ""
        made = _ENGINE.sub(lambda engine: f"ENGINE = Replicated{engine[1]}{arguments}", statement)
        made = made.replace("non_replicated_dedup", "replicated_dedup")
        made = _DDL.sub(rf"\1 ON CLUSTER `{self.cluster}`", made)
        if spread is None or not of_nodes:
            return [made]
        statements = [_SPREAD.sub(r"\1_local", made)]
        if _COLUMNS.match(statement):
            statements.append(self._of_all_shards(spread[1]))
        return statements

    def _of_all_shards(self, table: str) -> str:
        shards = f"`{self.cluster}`, `{self.database}`, {table}_local{_SHARD_OF.get(table[:-2], '')}"
        return (
            f"CREATE OR REPLACE TABLE {table} ON CLUSTER `{self.cluster}` AS {table}_local "
            f"ENGINE = Distributed({shards})"
        )

    def storage(self, table: str, time: str, as_it_is: Mapping[str, str]) -> list[str]:
        """What moves a table to its storage policy, and old parts of it to the cold volume. Empty where it is so.

        Args:
            as_it_is: `engine_full` and `storage_policy` of the table in `system.tables`.
        """
        statements: list[str] = []
        if self.storage_policy is not None and as_it_is["storage_policy"] != self.storage_policy:
            statements.append(f"ALTER TABLE {table} MODIFY SETTING storage_policy = '{self.storage_policy}'")
        moved = re.search(r" TTL (.*?)(?: SETTINGS |$)", as_it_is["engine_full"])
        wanted = (
            None
            if self.cold_days is None
            else f"toDateTime({time}) + toIntervalDay({self.cold_days}) TO VOLUME '{self.cold_volume}'"
        )
        if wanted is not None and (moved is None or moved[1] != wanted):
            statements.append(f"ALTER TABLE {table} MODIFY TTL {wanted}")
        if wanted is None and moved is not None:
            statements.append(f"ALTER TABLE {table} REMOVE TTL")
        return [placed for statement in statements for placed in self.placed(statement)]
