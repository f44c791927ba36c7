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
    """One contract, embedded and server. Raises while ClickHouse is down."""

    async def open(self) -> None:
        """Connects and applies the migrations that are missing."""
        ...

    async def close(self) -> None: ...

    async def positions(self) -> Mapping[int, int]:
        """Where each partition is read on: at the first offset of its last block.

        A process that died may have left that block half inserted; sent again, its rows replace their copies by
        `usage_id`.
        """
        ...

    async def insert(self, block: Block) -> None: ...

    async def query(self, query: UsageQuery) -> Sequence[UsageRow]: ...
