"""Counts the log of `usage` against the budgets, and writes onto `budgets` where their accounts stand."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, cast

import structlog

from schemas.budgets import BudgetSpec, BudgetState
from schemas.http import ComponentHealth
from schemas.ids import new_id
from schemas.topics import BUDGETS, USAGE
from services.runtime import metrics
from services.runtime.budgets import BudgetBoard, Budgets, state_key
from services.runtime.failpoints import Failpoints
from services.runtime.kafka import AIOKafkaProducer, KafkaClients, TopicPartition
from services.runtime.pricing.book import PriceBook
from services.runtime.settings import RuntimeSettings
from services.runtime.tasks import end_task
from services.runtime.topics import count_partitions
from services.usage.budgets.ledger import Ledger, warning_id, warning_of
from services.usage.budgets.periods import PERS, earliest_period, reads_from
from services.usage.budgets.progress import BudgetProgress
from services.usage.budgets.reading import Reading
from services.usage.budgets.seed import Seeding, Seeds, can_seed

log = structlog.get_logger(__name__)

POLL_MS = 50
"""Longest wait for usage: bounds how late a budget that was applied, or a new day, is noticed."""

WRITE_SECONDS = 0.05
"""Between two writes: an account that is busy is told of twenty times a second, and no prompt is the wiser for more."""

BATCH_RECORDS, CATCH_UP_RECORDS = 1_000, 5_000
"""Records that are counted at once: of what is in force, which is told in between, and of what comes behind it."""

NEAR_RECORDS = 1_000
"""What is in force is held while so few are left, so that both come to the same record."""

RETRY_SECONDS = 1.0


class BudgetLoop:
    """Keeps the sums in memory: a start counts again, what ClickHouse has and what is on the log behind it.

    So what is written depends on the log alone, whatever was killed when. A state is a sum, and a warning has an id of
    its own: either may be written again without harm. Until a start has counted to the end of the log the states of
    the last run stand. Records that are no usage are left out; the projection rejects them.

    Args:
        seeds: what ClickHouse has; without it everything is counted from the log.
    """

    def __init__(
        self,
        clients: KafkaClients,
        settings: RuntimeSettings,
        prices: Callable[[], PriceBook],
        failpoints: Failpoints,
        seeds: Seeds | None = None,
    ) -> None:
        self._clients = clients
        self._settings = settings
        self._prices = prices
        self._failpoints = failpoints
        self._seeds = seeds
        self._board = BudgetBoard(clients, settings)
        self._producer: AIOKafkaProducer = clients.producer()
        self._partitions: Sequence[TopicPartition] = ()
        self._task: asyncio.Task[None] | None = None
        self._warned: set[str] = set()
        self._trouble: str | None = None
        self._standing: Reading | None = None
        self._coming: list[Reading] = []
        """Those that come behind, of which the last one goes first: one from the log waits for one from ClickHouse."""
        self._seeding: Seeding | None = None
        self._not_seeded: Budgets | None = None
        """The budgets of the last try that came to nothing."""

    async def start(self) -> None:
        """Returns when the budgets and what is known of them have been read; counting goes on behind."""
        count = await count_partitions(self._clients, self._settings, USAGE)
        self._partitions = [TopicPartition(self._settings.topic(USAGE.name), number) for number in range(count)]
        await self._producer.start()
        await self._board.start()
        self._task = asyncio.create_task(self._keep_counting(), name="budgets")

    async def stop(self) -> None:
        await end_task(self._task)
        await self._board.stop()
        await self._producer.stop()

    def health(self) -> ComponentHealth:
        """Ready also while budgets are being counted, which the detail tells."""
        if self._trouble is not None:
            return ComponentHealth(ready=False, detail=self._trouble)
        counting = [each for each in self.progress() if each.standing == "counting"]
        if not counting:
            return ComponentHealth(ready=True)
        names = ", ".join(sorted({each.budget for each in counting}))
        far = next((f": {each.counted:,} of {each.records:,} records" for each in counting if each.records), "")
        return ComponentHealth(ready=True, detail=f"counting {names}{far}"[:500])

    def progress(self) -> Sequence[BudgetProgress]:
        """Which budgets are in force, by name and tenant."""
        return [self._progress_of(spec) for spec in self._board.budgets.all()]

    def _progress_of(self, spec: BudgetSpec) -> BudgetProgress:
        standing = self._standing
        coming = next((each for each in self._coming if each.ledger.counts(spec)), None)
        progress = BudgetProgress(
            budget=spec.name, budget_tenant_id=spec.tenant_id, budget_version=spec.version, standing="counting"
        )
        if standing is not None and standing.ledger.counts(spec):
            return progress.model_copy(update={"standing": "in_force"})
        if standing is not None and coming is not None:
            counted = coming.counted()
            return progress.model_copy(update={"counted": counted, "records": counted + coming.left(standing.places)})
        return progress

    async def _keep_counting(self) -> None:
        while True:
            try:
                while not self._board.budgets:
                    await self._board.moved()
                await self._count()
            except Exception as error:  # noqa: BLE001 - whatever it is, the states that are known stand, and readiness says so
                self._trouble = f"budgets are not counted: {type(error).__name__}: {error}"[:500]
                log.warning("budgets_wait", reason=self._trouble)
                await asyncio.sleep(RETRY_SECONDS)

    async def _count(self) -> None:
        """Counts for as long as there are budgets.

        What stands goes on from the end of the log, with no budget in it at first. Budgets that it lacks, and those of
        money when prices have changed, are counted by a reading that comes behind it, from where ClickHouse is or from
        where their own periods begin, and are merged into it at the record that it has come to. So no sum goes back,
        and no budget waits for another one whose period is longer.
        """
        standing = await self._begin(Ledger(self._board.budgets, datetime.now(UTC)))
        self._standing = standing
        try:
            while budgets := self._board.budgets:
                book = self._prices()
                if standing.ledger.follow(budgets):
                    await self._clear(standing.ledger.now)
                await self._keep_coming(budgets, book)
                await self._begin_coming(standing.ledger, budgets, book)
                if self._coming:
                    await self._catch_up(standing, self._coming[-1])
                else:
                    await standing.step(POLL_MS, BATCH_RECORDS)
                if datetime.now(UTC).date() != standing.ledger.now.date():
                    standing.ledger.roll(datetime.now(UTC))
                    await self._clear(standing.ledger.now)
                await self._write(standing.ledger.take_changed())
        finally:
            await self._end_seeding()
            for coming in [*self._coming]:
                await self._close_coming(coming)
            self._standing = None
            await standing.close()

    async def _keep_coming(self, budgets: Budgets, book: PriceBook) -> None:
        """Gives a reading up when its budgets, or their prices, do not hold any more."""
        for coming in [*self._coming]:
            coming.ledger.follow(budgets)
            if coming.ledger.is_empty() or coming.ledger.outdated(book):
                await self._close_coming(coming)

    async def _begin_coming(self, standing: Ledger, budgets: Budgets, book: PriceBook) -> None:
        """Begins with what is missing: with what ClickHouse has of it, else from the log."""
        if self._seeding is not None:
            await self._take_seeding(self._seeding, standing, budgets, book)
            return
        now, specs = datetime.now(UTC), self._missing(standing, book)
        if not specs:
            return
        if self._seeds is not None and self._not_seeded is not budgets and can_seed(specs[0]):
            self._seeding = Seeding(self._seeds, standing.beside(now, specs, book), specs, book, len(self._partitions))
        elif not self._coming:
            self._coming.append(await self._begin(standing.beside(now, specs, book), specs))

    def _missing(self, standing: Ledger, book: PriceBook) -> Sequence[BudgetSpec]:
        """Of what is missing the budgets of the shortest period: they need the least, and stand the soonest."""
        missing = [
            spec for spec in standing.missing(book) if not any(each.ledger.counts(spec) for each in self._coming)
        ]
        shortest = min((spec.per for spec in missing), key=PERS.index, default=None)
        return [spec for spec in missing if spec.per == shortest]

    async def _take_seeding(self, seeding: Seeding, standing: Ledger, budgets: Budgets, book: PriceBook) -> None:
        """Tells what ClickHouse has as soon as it is known, and goes on from there as soon as that can be.

        The log is counted beside it when it takes long to begin: whichever is there first counts.
        """
        await self._write(self._more_than_told(seeding.take_sums(budgets), standing))
        missing = [spec for spec in standing.missing(book) if seeding.ledger.counts(spec)]
        if not missing:
            await self._end_seeding()
        elif seeding.done:
            await self._end_seeding()
            await self._go_on_from(seeding, budgets, book)
        elif seeding.is_late and not self._coming:
            self._coming.append(await self._begin(standing.beside(datetime.now(UTC), missing, book), missing))

    async def _go_on_from(self, seeding: Seeding, budgets: Budgets, book: PriceBook) -> None:
        """Counts on from what ClickHouse has, instead of the log where that was begun, unless it came to nothing."""
        if seeding.ends is None:
            self._not_seeded = budgets
            return
        seeding.ledger.follow(budgets)
        if seeding.ledger.is_empty() or seeding.ledger.outdated(book):
            return
        for coming in [*self._coming]:
            if any(coming.ledger.counts(spec) for spec in seeding.specs):
                await self._close_coming(coming)
        self._coming.append(await self._begin(seeding.ledger, seeding.specs, seeding.ends))

    def _more_than_told(self, states: Sequence[BudgetState], standing: Ledger) -> Sequence[BudgetState]:
        """Of accounts of budgets that do not stand, where more is spent than anybody has been told of yet."""
        standing_ids = {(spec.tenant_id, spec.name) for spec in self._board.budgets.all() if standing.counts(spec)}
        told = self._board.states
        return [
            state
            for state in states
            if (state.budget_tenant_id, state.budget) not in standing_ids
            and ((known := told.get(_key(state))) is None or known.spent < state.spent)
        ]

    async def _catch_up(self, standing: Reading, coming: Reading) -> None:
        """Counts on with both, and merges them once they are at the same record.

        What comes may be further: ClickHouse is now and then ahead of what stands.
        """
        ahead = standing.left(coming.places)
        if ahead or coming.left(standing.places) > NEAR_RECORDS:
            await standing.step(POLL_MS if ahead else 0, BATCH_RECORDS)
        await coming.step(POLL_MS, CATCH_UP_RECORDS, until=standing.places)
        if not coming.left(standing.places) and not standing.left(coming.places):
            await asyncio.to_thread(standing.ledger.merge, coming.ledger)
            await self._close_coming(coming)
            self._not_seeded = None
            await self._tell(standing.ledger)

    async def _begin(
        self, ledger: Ledger, specs: Sequence[BudgetSpec] = (), ends: Sequence[int] | None = None
    ) -> Reading:
        """At the beginning of the periods of budgets or behind what the ledger has; without any at the end."""
        reading = Reading(ledger, self._clients.consumer())
        try:
            if not specs:
                await reading.begin_at_end(self._partitions)
            elif ends is None:
                await reading.begin_at(self._partitions, reads_from(specs, ledger.now))
            else:
                await reading.begin_behind(self._partitions, reads_from(specs, ledger.now), ends)
        except BaseException:
            await reading.close()
            raise
        return reading

    async def _close_coming(self, coming: Reading) -> None:
        self._coming.remove(coming)
        await coming.close()

    async def _end_seeding(self) -> None:
        seeding, self._seeding = self._seeding, None
        if seeding is not None:
            await seeding.stop()

    async def _tell(self, ledger: Ledger) -> None:
        """Makes the topic say what a ledger says that has counted all there was."""
        self._trouble = None
        await self._clear(ledger.now)
        told = self._board.states
        await self._write([state for state in ledger.take_changed() if told.get(_key(state)) != state])

    async def _write(self, states: Sequence[BudgetState]) -> None:
        """The states, each behind the warning that is due and was not written yet. Raises KafkaError.

        In this order, which the producer keeps, nobody finds a state whose warning was lost.
        """
        if not states:
            return
        at = datetime.now(UTC)
        records: list[dict[str, Any]] = []
        warned_of: set[str] = set()
        for state in states:
            warned = warning_of(state, at)
            identity = None if warned is None else warning_id(warned)
            if warned and identity and identity not in self._warned and identity not in self._board.warnings:
                records.append(self._clients.record(BUDGETS.name, warned, key=identity, event_id=identity, at=at))
                warned_of.add(identity)
            records.append(self._clients.record(BUDGETS.name, state, key=_key(state), event_id=new_id(at), at=at))
        self._failpoints.hit("budgets.before_write")
        await self._send(records)
        self._failpoints.hit("budgets.after_write")
        self._warned |= warned_of
        metrics.BUDGET_WARNINGS.inc(len(warned_of))
        await asyncio.sleep(WRITE_SECONDS)

    async def _clear(self, now: datetime) -> None:
        """Takes what is of periods that are over, or of budgets that add up something else now, off the topic."""
        specs = {(spec.tenant_id, spec.name): spec for spec in self._board.budgets.all()}
        told = {**self._board.states, **self._board.warnings}
        gone = [
            key
            for key, event in told.items()
            if (spec := specs.get((event.budget_tenant_id, event.budget))) is None
            or not event.is_of(spec)
            or event.period < earliest_period(event.per, now)
        ]
        name = self._settings.topic(BUDGETS.name)
        await self._send([{"topic": name, "key": key.encode()} for key in gone])

    async def _send(self, records: Sequence[dict[str, Any]]) -> None:
        """Returns when all of them are on the topic, in their order."""
        sent = [cast("asyncio.Future[Any]", await self._producer.send(**record, partition=0)) for record in records]
        await asyncio.gather(*sent)


def _key(state: BudgetState) -> str:
    return state_key(state.budget_tenant_id, state.budget, state.account)
