"""The port to ClickHouse."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from schemas.http import UsageDigest
from schemas.usage import UsageRecorded
from services.usage.queries import UsageGroup, UsageQuery


@dataclass(frozen=True, slots=True)
class Block:
    """Records of one partition that are inserted together, with the offsets of the first and last one."""

    partition: int
    first: int
    last: int
    events: Sequence[tuple[int, UsageRecorded]]


class UsageBuild(Protocol):
    """What a projection of usage writes into. Every method raises UnavailableError while ClickHouse is down."""

    async def positions(self) -> Mapping[int, int]:
        """Where each partition is read on: at the first offset of its last block.

        A process that died may have left that block half inserted; sent again, its rows replace their copies by
        `usage_id`.
        """
        ...

    async def insert(self, block: Block) -> None:
        """Returns when the rows survive the end of this process. Sent again, a block changes nothing."""
        ...


class UsageStore(UsageBuild, Protocol):
    """One contract, embedded and server. Every method raises UnavailableError while ClickHouse is down."""

    async def open(self) -> None:
        """Connects, removes a build that was not finished and applies the migrations that are missing.

        May be called again after it raised.

        Raises ConfigurationError when another process has the folder open, when ClickHouse refuses the connection, and
        when the tables are of a later release.
        """
        ...

    async def close(self) -> None:
        """Waits for the queries in hand."""
        ...

    async def begin_build(self) -> UsageBuild:
        """An empty table beside the live one, which goes on. A build before it that was not finished is removed."""
        ...

    async def switch(self) -> None:
        """Every call from now on is about what was built, also after a restart; in one step, whatever is killed."""
        ...

    async def clean(self) -> None:
        """Removes what is not live: a build that is not to be, or after a switch the old table. `open` does so too."""
        ...

    async def digests(self, ends: Sequence[int]) -> Sequence[UsageDigest]:
        """Counts and hashes of the rows from each bucket of each partition, those from its end on apart.

        A fact that was written twice counts once, where it was written last.
        """
        ...

    async def rows(self, partition: int, first: int, end: int, *, limit: int) -> Sequence[list[str | None]]:
        """The rows from these offsets (first is included, end is not) as text, by offset."""
        ...

    async def facts(self, facts: Sequence[tuple[str, str]]) -> Sequence[list[str | None]]:
        """The rows of tenants and usage ids as text."""
        ...

    async def query(self, query: UsageQuery) -> Sequence[UsageGroup]:
        """One row a group, those of most tokens first; in the order of time where a bucket is asked for."""
        ...
