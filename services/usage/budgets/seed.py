"""Begins a ledger with what ClickHouse has, so that only what is behind it is counted from the log.

The projection is held for the moment in which its place and the sums are read: they are of the same records then. The
ids of the facts behind these sums are read after it, and go on being known, in memory: so usage that comes again counts
once, and nobody asks ClickHouse again. Nothing is stored: a process that dies in the middle begins anew.
"""

import asyncio
import time
from collections.abc import Callable, Sequence

import structlog

from schemas.budgets import BudgetSpec, BudgetState, By
from services.runtime.budgets import Budgets
from services.runtime.errors import TurnlogError
from services.runtime.pricing.book import PriceBook
from services.runtime.pricing.cells import Boundaries
from services.runtime.projection import Projection
from services.runtime.tasks import end_task
from services.usage.budgets.known import Known
from services.usage.budgets.ledger import Ledger
from services.usage.budgets.periods import first_moment
from services.usage.spending import Spending, SpendingQuery
from services.usage.store import UsageStore

log = structlog.get_logger(__name__)

HEAD_START_SECONDS = 3.0
"""When there are no sums after this, the log is counted beside: the projection starts later than the budgets, and never
where ClickHouse is away."""

SUMS_SECONDS, ROWS_SECONDS = 10.0, 60.0
"""Longest wait for sums, for which the projection is held, and for what is read from the rows, for which it is not."""


class CannotSeedError(TurnlogError):
    """What ClickHouse has is not what the log would come to: the log is counted."""

    code = "cannot_seed"


class Seeds:
    """What ClickHouse has, and how far on the log that is."""

    def __init__(self, store: UsageStore, projection: Projection) -> None:
        self._store = store
        self._projection = projection

    async def begin(
        self, ledger: Ledger, query: SpendingQuery, partitions: int, summed: Callable[[], None]
    ) -> Sequence[int]:
        """Returns the next offset of each partition, from where on the ledger goes on.

        Raises CannotSeedError, TimeoutError, and whatever ClickHouse raises: then the ledger is of no use.

        Args:
            partitions: how many there are.
            summed: called once the ledger has the sums, a while before it may go on.
        """
        await self._projection.until_started()
        ends, spending = await self._spending(query, partitions)
        if spending.moved:
            raise CannotSeedError(
                f"{spending.moved} facts came again with a time of this period, first of an earlier one"
            )
        await asyncio.to_thread(ledger.begin_with, spending.spent)
        summed()
        async with asyncio.timeout(ROWS_SECONDS):
            ids = await self._store.fact_ids(query, ends, spending.generation)
        ledger.know(Known(ids, query.since, query.tenants, ends))
        return ends

    async def _spending(self, query: SpendingQuery, partitions: int) -> tuple[Sequence[int], Spending]:
        """From the sums while the projection is held, else from the rows while it goes on."""
        async with self._projection.held(), asyncio.timeout(SUMS_SECONDS):
            ends = self._ends(partitions)
            spending = await self._store.spending_of_sums(query, ends)
        if spending is None:
            ends = self._ends(partitions)
            async with asyncio.timeout(ROWS_SECONDS):
                spending = await self._store.spending_of_rows(query, ends)
        return ends, spending

    def _ends(self, partitions: int) -> Sequence[int]:
        return [self._projection.position(number) for number in range(partitions)]


class Seeding:
    """One try to begin a ledger, beside everything else.

    Args:
        ledger: an empty one, for these budgets, all of one period, and of these prices.
    """

    def __init__(
        self, seeds: Seeds, ledger: Ledger, specs: Sequence[BudgetSpec], book: PriceBook, partitions: int
    ) -> None:
        self.ledger = ledger
        self.specs = specs
        self.ends: Sequence[int] | None = None
        """From where on the ledger goes on, once it may; None when the log has to be counted."""
        self._summed = asyncio.Event()
        self._told = False
        self._late_at = time.monotonic() + HEAD_START_SECONDS
        self._task = asyncio.create_task(self._run(seeds, book, partitions), name="budgets:seed")

    @property
    def done(self) -> bool:
        return self._task.done()

    def take_sums(self, budgets: Budgets) -> Sequence[BudgetState]:
        """Where accounts stood at the place that ClickHouse was at, by the caps that hold: once, when that is known."""
        if self._told or not self._summed.is_set():
            return ()
        self._told = True
        self.ledger.follow(budgets)
        return self.ledger.take_changed()

    @property
    def is_late(self) -> bool:
        """Whether it has no sums yet, after a while."""
        return not self._summed.is_set() and time.monotonic() > self._late_at

    async def stop(self) -> None:
        await end_task(self._task)

    async def _run(self, seeds: Seeds, book: PriceBook, partitions: int) -> None:
        names = sorted({spec.name for spec in self.specs})
        try:
            query = question_of(self.specs, self.ledger, book)
            self.ends = await seeds.begin(self.ledger, query, partitions, self._summed.set)
        except Exception as error:  # noqa: BLE001 - whatever it is, the log has everything
            log.info("budgets_not_seeded", budgets=names, reason=f"{type(error).__name__}: {error}"[:500])


def can_seed(spec: BudgetSpec) -> bool:
    """Whether the tables are sure to have all of a budget's periods. Of a thread they may have dropped months."""
    return spec.per != "thread"


def question_of(specs: Sequence[BudgetSpec], ledger: Ledger, book: PriceBook) -> SpendingQuery:
    """What to ask for budgets of one period, which is no thread. Pure."""
    per = specs[0].per
    since = first_moment(per, ledger.now)
    if per == "thread" or since is None:
        raise CannotSeedError("the usage of a thread has no beginning")
    by: dict[By, bool] = {}
    for spec in specs:
        by[spec.by] = by.get(spec.by, False) or spec.unit != "tokens"
    tenants = {spec.tenant_id for spec in specs if spec.tenant_id is not None}
    everybodys = any(spec.tenant_id is None for spec in specs)
    return SpendingQuery(
        by=by,
        per=per,
        since=since,
        tenants=None if everybodys else tuple(sorted(tenants)),
        boundaries=book.all_boundaries() if any(by.values()) else Boundaries(),
    )
