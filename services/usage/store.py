"""The port to ClickHouse."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from schemas.http import UsageRow
from schemas.usage import UsageRecorded
from services.usage.queries import UsageQuery


@dataclass(frozen=True, slots=True)
class Block:
    """Records of one partition that are inserted together, with the offsets of the first and last one."""

    partition: int
    first: int
    last: int
    events: Sequence[tuple[int, UsageRecorded]]


class UsageStore(Protocol):
    """One contract, embedded and server. Every method raises UnavailableError while ClickHouse is down."""

    async def open(self) -> None:
        """Connects and applies the migrations that are missing. May be called again after it raised.

        Raises ConfigurationError when another process has the folder open, when ClickHouse refuses the connection, and
        when the tables are of a later release.
        """
        ...

    async def close(self) -> None:
        """Waits for the queries in hand."""
        ...

    async def positions(self) -> Mapping[int, int]:
        """Where each partition is read on: at the first offset of its last block.

        A process that died may have left that block half inserted; sent again, its rows replace their copies by
        `usage_id`.
        """
        ...

    async def insert(self, block: Block) -> None:
        """Returns when the rows survive the end of this process. Sent again, a block changes nothing."""
        ...

    async def query(self, query: UsageQuery) -> Sequence[UsageRow]:
        """One row a group, those of most tokens first; in the order of time where a bucket is asked for."""
        ...
