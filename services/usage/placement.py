"""Where the tables are: on one server or on every node of a cluster, and from what age on in cold storage. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

TIMES = {"usage_events": "occurred_at", "usage_minutes": "starts", "usage_days": "starts"}
"""The tables that grow with time, and what time a row is of."""

_DDL = re.compile(
    r"^((?:CREATE (?:TABLE|MATERIALIZED VIEW)(?: IF NOT EXISTS)?|CREATE OR REPLACE VIEW|ALTER TABLE"
    r"|DROP TABLE(?: IF EXISTS)?|TRUNCATE TABLE) \w+)"
)
_ENGINE = re.compile(r"\bENGINE = (\w*MergeTree)\b")


@dataclass(frozen=True, slots=True)
class Placement:
    """What the settings say of it.

    A node of the cluster keeps all that the others do. Its macros `{shard}` and `{replica}` must be set, as
    ClickHouse's own defaults for replicated tables want it.
    """

    cluster: str | None = None
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
        }

    def placed(self, statement: str) -> str:
        """A statement of the migrations, as it is where the tables are."""
        if self.cluster is None:
            return statement
        statement = _DDL.sub(rf"\1 ON CLUSTER `{self.cluster}`", statement)
        return _ENGINE.sub(r"ENGINE = Replicated\1", statement).replace("non_replicated_dedup", "replicated_dedup")

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
        return [self.placed(statement) for statement in statements]
