"""How a block gets into a set of tables, once. Runs on the thread of the client that writes.

The engine writes a block into the raw table, then into the sums: a process that is killed between the two leaves it in
the first alone. So it is sent again under its name, `insert_deduplication_token`, by which each table knows what it has
of it. That is why a block is sent with the same bounds, and why the next one waits until it was acknowledged: the last
one is the only one that may be half there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.usage.facts import Conflict, Stored, sort_out
from services.usage.fingerprint import COLUMNS, values_sql
from services.usage.placement import Placement
from services.usage.rollups import Slot
from services.usage.rows import EVENT_COLUMNS, SENT_AS, columns_of, fact_of
from services.usage.store import Block, Bounds, Fact

INSERT_SETTINGS = {
    "max_partitions_per_insert_block": 0,
    "deduplicate_blocks_in_dependent_materialized_views": 1,
    "async_insert": 0,
    "optimize_on_insert": 0,
}
"""A block read again after years spans more months than the 100 that ClickHouse allows by itself. A block that the raw
table has goes on to the views, which have it or not. A server's own batches would lose the name of a block. To look
for rows to merge in what has none took half of the time of an insert."""

ARRIVALS = "usage_arrivals"
"""Ids of the block in hand, in memory: comparing with them takes a third of the time of ids in a statement's text. The
node that has them gives them to the other shards, if there are any."""

TABLES = ("usage_events", "usage_minutes", "usage_hours", "usage_days", "usage_conflicts")


@dataclass(frozen=True, slots=True)
class NumberedBlock:
    """A block by its bounds, and how many were inserted before it."""

    number: int
    bounds: Bounds


class BlockWriter:
    """Writes blocks into the tables of one slot.

    Args:
        generation: how often usage was rebuilt; of the name of a block, since a slot is used again.
        last: the last block that is there, whole or not.
    """

    def __init__(self, slot: Slot, generation: int, last: NumberedBlock | None = None) -> None:
        self.slot: Slot = slot
        self.generation = generation
        self.last = last

    def following(self) -> "BlockWriter":
        """For what is built beside these tables."""
        return BlockWriter("b" if self.slot == "a" else "a", self.generation + 1)

    def insert(self, client: Any, block: Block) -> int:
        """Inserts what of a block is new, and keeps what contradicts. Returns how many facts did."""
        last = self.last
        again = last is not None and last.bounds == block.bounds
        number = (last.number if last is not None else 0) + (0 if again else 1)
        found = sort_out(block, number, self._stored(client, block))
        if found.conflicts:
            self._keep(client, found.conflicts)
        if found.kept:
            self.last = NumberedBlock(number, block.bounds)
            client.insert(
                f"usage_events_{self.slot}",
                columns_of(block.bounds, number, found.kept),
                column_names=[*SENT_AS],
                column_type_names=[*SENT_AS.values()],
                column_oriented=True,
                settings=INSERT_SETTINGS | {"insert_deduplication_token": self.name_of(block.bounds)},
            )
        return len(found.conflicts)

    def name_of(self, bounds: Bounds) -> str:
        """By which the tables know a block."""
        return f"{self.generation}-{bounds.partition}-{bounds.first}-{bounds.last}"

    def _stored(self, client: Any, block: Block) -> Mapping[Fact, Stored]:
        """The rows of the block's facts that are there, by the primary key."""
        client.command(f"TRUNCATE TABLE {ARRIVALS}")
        facts = [*zip(*(fact_of(row) for _, row in block.rows), strict=True)]
        client.insert(ARRIVALS, facts, column_names=["tenant_id", "usage_id"], column_oriented=True)
        rows = client.query(
            f"SELECT {', '.join(values_sql())}, block_number FROM usage_events_{self.slot} "  # noqa: S608 - our own
            f"WHERE (tenant_id, usage_id) GLOBAL IN (SELECT tenant_id, usage_id FROM {ARRIVALS})"
        ).result_rows
        return {fact_of(row): Stored(tuple(row[:-1]), row[-1]) for row in rows}

    def _keep(self, client: Any, conflicts: Sequence[Conflict]) -> None:
        client.insert(
            f"usage_conflicts_{self.slot}",
            [_conflict_row(each) for each in conflicts],
            column_names=CONFLICT_COLUMNS,
            settings={"async_insert": 0},
        )


CONFLICT_COLUMNS = (
    "tenant_id",
    "usage_id",
    "source_partition",
    "source_offset",
    "kept_partition",
    "kept_offset",
    "fields",
    "kept",
    "refused",
)


def _conflict_row(conflict: Conflict) -> list[Any]:
    kept, refused = conflict.kept, conflict.refused
    differing = [index for index in range(len(EVENT_COLUMNS)) if kept[index] != refused[index]]
    return [
        *fact_of(refused),
        *(int(text or 0) for text in (*refused[-2:], *kept[-2:])),
        [COLUMNS[index] for index in differing],
        [kept[index] for index in differing],
        [refused[index] for index in differing],
    ]


def live_writer(client: Any) -> BlockWriter:
    """For the tables that are live, with the last block that they hold."""
    ((generation, slot),) = client.query(
        "SELECT generation, slot FROM usage_generations ORDER BY generation DESC LIMIT 1"
    ).result_rows
    rows = client.query(
        "SELECT block_number, source_partition, block_first, block_last "  # noqa: S608 - our own
        f"FROM usage_events_{slot} WHERE block_number > 0 ORDER BY block_number DESC LIMIT 1"
    ).result_rows
    last = [NumberedBlock(number, Bounds(*bounds)) for number, *bounds in rows]
    return BlockWriter(slot, generation, last[0] if last else None)


def complete(client: Any) -> None:
    """Gives the sums what they lack of the last block, from its rows. Call it before a migration changes the views.

    A view that is made anew knows no block, and would count one that is sent again twice. (One that is altered knows
    the last ones under another name, and again under another one after a restart.) So such a migration also takes the
    numbers off the rows: then nothing is sent again, and each partition is read on from its last block, whose facts
    that are there are left out. The tables may be of any version that has numbers.
    """
    writer = live_writer(client)
    if writer.last is None:
        return
    table = f"usage_events_{writer.slot}"
    there = {name for name, *_ in client.query(f"DESCRIBE TABLE {table}").result_rows}
    columns = [name for name in SENT_AS if name in there]
    selected = [f"toUnixTimestamp64Micro({name})" if name == "occurred_at" else name for name in columns]
    rows = client.query(
        f"SELECT {', '.join(selected)} FROM {table} WHERE block_number = {writer.last.number}"  # noqa: S608 - our own
    ).result_rows
    client.insert(
        table,
        rows,
        column_names=columns,
        column_type_names=[SENT_AS[name] for name in columns],
        settings=INSERT_SETTINGS | {"insert_deduplication_token": writer.name_of(writer.last.bounds)},
    )


def position_sql() -> str:
    """The expression of where a partition is read on behind a row's block.

    Rows without a number are of an earlier release, which could leave a partition's last block half there.
    """
    return "if(block_number = 0, block_first, block_last + 1)"


def positions_sql(slot: Slot) -> str:
    return (
        f"SELECT source_partition, max({position_sql()}) "  # noqa: S608 - our own
        f"FROM usage_events_{slot} GROUP BY source_partition"
    )


def go_live(client: Any, built: BlockWriter) -> None:
    """Points at what was built: one row, so whatever is killed, the one or the other set of tables is live."""
    client.insert("usage_generations", [[built.generation, built.slot]], column_names=["generation", "slot"])


def empty(client: Any, slot: Slot, placement: Placement) -> None:
    """Removes all rows; the engine forgets the names of their blocks too."""
    for table in TABLES:
        for statement in placement.placed(f"TRUNCATE TABLE {table}_{slot}"):
            client.command(statement)
