"""The port to ClickHouse."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from schemas.analytics import UsageQuality
from schemas.http import UsageConflict, UsageDigest, UsageImbalance
from services.runtime.errors import TurnlogError
from services.usage.queries import EARLIEST, UsageGroup, UsageQuery
from services.usage.rates_table import Line, RatedCell
from services.usage.spending import FactIds, Spending, SpendingQuery


class TooMuchAskedError(TurnlogError):
    """A question would read more rows, or take longer, than one may: ask for less time, or for fewer groups."""

    code = "too_much_asked"


Row = tuple[Any, ...]
"""An event as the values of its columns: a quarter of the memory of the event."""

Fact = tuple[str, str]
"""Tenant and `usage_id`: what counts once."""


@dataclass(frozen=True, slots=True)
class ReadBounds:
    """What one question may cost."""

    seconds: int = 20
    rows: int = 1_000_000_000
    memory_bytes: int = 4 << 30
    export_seconds: int = 300
    """For an export, whose groups are rated and written while they are read."""


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of one partition that are inserted together, by their offsets, and those of the first and last record."""

    partition: int
    first: int
    last: int
    rows: Sequence[tuple[int, Row]]

    @property
    def bounds(self) -> "Bounds":
        return Bounds(self.partition, self.first, self.last)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Which records a block was made of: its name, by which the engine knows it again."""

    partition: int
    first: int
    last: int


class UsageBuild(Protocol):
    """What a projection of usage writes into. Every method raises UnavailableError while ClickHouse is down."""

    async def positions(self) -> Mapping[int, int]:
        """Where each partition is read on: behind its last block.

        Holds once the last block of all is settled. Of tables that an earlier release has filled it is at the first
        offset of that block.
        """
        ...

    async def insert(self, block: Block) -> None:
        """Returns when the rows survive the end of this process, and so do the sums that they are part of.

        A fact that is stored from elsewhere is left out, and kept as a conflict where its values differ. A block that
        is sent again with the same bounds adds what is missing of it, and nothing twice: of the last blocks that is,
        the engine remembers a thousand. One block is sent at a time, and the next one when it was acknowledged.
        """
        ...


class UsageRates(Protocol):
    """What dashboards multiply sums with. Every method raises UnavailableError while ClickHouse is down."""

    async def rated_cells(self, own: Collection[str]) -> Sequence[RatedCell]:
        """What prices can't tell apart, of all usage; beside questions, which it does not hold up.

        Args:
            own: the tenants that have prices of their own.
        """
        ...

    async def write_rates(self, lines: Sequence[Line]) -> bool:
        """Makes these the rates that dashboards find, all at once, and returns whether they are others than before."""
        ...


class UsageStore(UsageBuild, UsageRates, Protocol):
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

    async def unsettled(self) -> Bounds | None:
        """The last block of all: a process that died may have left it in one table and not in the others."""
        ...

    async def begin_build(self) -> UsageBuild:
        """Empty tables beside the live ones, which go on. A build before it that was not finished is removed."""
        ...

    async def switch(self) -> None:
        """Every call from now on is about what was built, also after a restart; in one step, whatever is killed."""
        ...

    async def clean(self) -> None:
        """Removes what is not live: a build that is not to be, or after a switch the old tables. `open` does so too."""
        ...

    async def purge(self, kept_from: datetime) -> Sequence[int]:
        """Drops the months before a time, rows and sums, and returns them as YYYYMM.

        One that `positions` rests on stays until a partition has usage of another month. Nothing is inserted meanwhile.
        """
        ...

    async def digests(self, ends: Sequence[int], kept_from: datetime = EARLIEST) -> Sequence[UsageDigest]:
        """Counts and hashes of the rows from each bucket of each partition, those from its end on apart.

        A fact that was written twice counts once, where it was read first.
        """
        ...

    async def rows(self, partition: int, first: int, end: int, *, limit: int) -> Sequence[list[str | None]]:
        """The rows from these offsets (first is included, end is not) as text, by offset."""
        ...

    async def facts(self, facts: Sequence[tuple[str, str]]) -> Sequence[list[str | None]]:
        """The rows of tenants and usage ids as text."""
        ...

    async def conflicts(self, *, limit: int) -> Sequence[UsageConflict]:
        """Facts that came again with other values, by tenant and `usage_id`. The values that came first count."""
        ...

    async def imbalances(self, *, limit: int, kept_from: datetime = EARLIEST) -> Sequence[UsageImbalance]:
        """Where a table of sums is not what the rows add up to; no block is inserted meanwhile. Empty is right.

        Args:
            kept_from: the first moment of the first month that is looked at.
        """
        ...

    async def spending_of_sums(self, query: SpendingQuery, ends: Sequence[int]) -> Spending | None:
        """What the accounts of budgets have spent before `ends`, the next offset of each partition.

        Nothing is inserted meanwhile. None: the sums don't say it, but the rows do.

        Args:
            ends: where the projection is at the moment of the call.
        """
        ...

    async def spending_of_rows(self, query: SpendingQuery, ends: Sequence[int]) -> Spending:
        """The same from the rows, which takes longer; inserts may go on."""
        ...

    async def fact_ids(self, query: SpendingQuery, ends: Sequence[int], generation: int) -> FactIds:
        """The facts that such sums were made of, and others of the same time and tenants; inserts may go on.

        Args:
            generation: of the sums. Raises UnavailableError when usage was rebuilt since then: ask for them again.
        """
        ...

    async def export(self, query: UsageQuery, take: Callable[[Sequence[UsageGroup]], None]) -> None:
        """Gives the groups of a question, a thousand at most at a time, to `take`, which runs on a thread of its own.

        One export at a time, and other questions beside it. Raises TooMuchAskedError, and what `take` raises; also
        UnavailableError when usage was rebuilt meanwhile: what was taken may be of tables that are not live any more.
        """
        ...

    async def quality(self, query: UsageQuery) -> Sequence[UsageQuality]:
        """How well the work of each group went: those of most events first, in the order of time with a bucket.

        Order, units and comparison of the question are left out of account. Raises TooMuchAskedError.
        """
        ...

    async def query(self, query: UsageQuery) -> Sequence[UsageGroup]:
        """One row a group, as it is to be ordered; in the order of time first where a bucket is asked for.

        Raises TooMuchAskedError.
        """
        ...
