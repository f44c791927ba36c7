"""Counts the log of `usage` against the budgets, and writes onto `budgets` where their accounts stand."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol, cast

import structlog

from schemas.budgets import BudgetState
from schemas.envelope import RecordRejectedError
from schemas.http import ComponentHealth
from schemas.ids import new_id
from schemas.topics import BUDGETS, USAGE
from schemas.usage import UsageRecorded
from services.runtime import metrics
from services.runtime.budgets import BudgetBoard, state_key
from services.runtime.failpoints import Failpoints
from services.runtime.kafka import (
    AIOKafkaConsumer,
    AIOKafkaProducer,
    KafkaClients,
    Record,
    TopicPartition,
)
from services.runtime.pricing.book import PriceBook
from services.runtime.records import decode_record
from services.runtime.settings import RuntimeSettings
from services.runtime.tasks import end_task
from services.runtime.topics import count_partitions
from services.usage.budgets.ledger import Ledger, warning_id, warning_of
from services.usage.budgets.periods import earliest_period, reads_from
from services.usage.rows import check_event

log = structlog.get_logger(__name__)

POLL_MS = 50
"""Longest wait for usage: bounds how late a budget that was applied, or a new day, is noticed."""

WRITE_SECONDS = 0.05
"""Between two writes: an account that is busy is told of twenty times a second, and no prompt is the wiser for more."""

BATCH_RECORDS = 1_000

RETRY_SECONDS = 1.0


class Place(Protocol):
    """Where the first record of a time is."""

    offset: int


class _Reading:
    """A ledger, and how far the log was counted for it."""

    def __init__(self, ledger: Ledger, consumer: AIOKafkaConsumer, book: PriceBook) -> None:
        self.ledger = ledger
        self.book = book
        self.ends: Mapping[TopicPartition, int] = {}
        """Where the log ended when it began."""
        self._consumer = consumer

    async def seek(self, partitions: Sequence[TopicPartition], since: datetime | None) -> None:
        """Goes to the first record of a time on; without one to the beginning."""
        consumer = self._consumer
        await consumer.start()
        consumer.assign(partitions)
        ends: dict[TopicPartition, int] = await consumer.end_offsets(partitions)
        self.ends = ends
        if since is None:
            await consumer.seek_to_beginning(*partitions)
            return
        milliseconds = int(since.timestamp() * 1000)
        found: dict[TopicPartition, Place | None] = await consumer.offsets_for_times(
            dict.fromkeys(partitions, milliseconds)
        )
        for partition, place in found.items():
            consumer.seek(partition, ends[partition] if place is None else place.offset)

    async def step(self, timeout_ms: int) -> None:
        """Counts what comes next, off the event loop; returns after the time-out when nothing does."""
        batches: dict[TopicPartition, list[Record]] = await self._consumer.getmany(
            timeout_ms=timeout_ms, max_records=BATCH_RECORDS
        )
        if batches:
            await asyncio.to_thread(_add, self.ledger, batches)

    async def positions(self) -> Mapping[TopicPartition, int]:
        """Behind what was counted."""
        return {partition: await self._consumer.position(partition) for partition in self.ends}

    async def is_past(self, places: Mapping[TopicPartition, int]) -> bool:
        """Whether all before these places has been counted."""
        positions = await self.positions()
        return all(positions[partition] >= place for partition, place in places.items())

    async def close(self) -> None:
        await self._consumer.stop()


class BudgetLoop:
    """Keeps the sums in memory: a start counts the log again, from the beginning of the earliest running period.

    So what is written depends on the log alone, whatever was killed when. A state is a sum, and a warning has an id of
    its own: either may be written again without harm. Until a start has counted to the end of the log the states of
    the last run stand. Records that are no usage are left out; the projection rejects them.
    """

    def __init__(
        self, clients: KafkaClients, settings: RuntimeSettings, prices: Callable[[], PriceBook], failpoints: Failpoints
    ) -> None:
        self._clients = clients
        self._settings = settings
        self._prices = prices
        self._failpoints = failpoints
        self._board = BudgetBoard(clients, settings)
        self._producer: AIOKafkaProducer = clients.producer()
        self._partitions: Sequence[TopicPartition] = ()
        self._task: asyncio.Task[None] | None = None
        self._warned: set[str] = set()
        self._trouble: str | None = None

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
        return ComponentHealth(ready=self._trouble is None, detail=self._trouble or "")

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

        One that adds up something else than before, or a price, wants all counted anew: by a reading that comes behind
        the one that stands, which goes on and is told of until the other one is close. Then it waits, so that no sum
        goes back.
        """
        standing: _Reading | None = None
        coming: _Reading | None = None
        close = False
        try:
            while self._board.budgets:
                if coming is None and (standing is None or self._is_outdated(standing)):
                    coming = await self._begin()
                if coming is not None:
                    await coming.step(POLL_MS if standing is None or close else 0)
                    close = await coming.is_past(coming.ends)
                    if self._is_outdated(coming):
                        await coming.close()
                        coming, close = None, False
                    elif close and (standing is None or await coming.is_past(await standing.positions())):
                        if standing is not None:
                            await standing.close()
                        standing, coming, close = coming, None, False
                        await self._tell(standing.ledger)
                if standing is not None and not close:
                    await standing.step(POLL_MS)
                    if datetime.now(UTC).date() != standing.ledger.now.date():
                        standing.ledger.roll(datetime.now(UTC))
                        await self._clear(standing.ledger.now)
                    await self._write(standing.ledger.take_changed())
        finally:
            for reading in (standing, coming):
                if reading is not None:
                    await reading.close()

    async def _begin(self) -> _Reading:
        budgets, book, now = self._board.budgets, self._prices(), datetime.now(UTC)
        reading = _Reading(Ledger(budgets, book, now), self._clients.consumer(), book)
        try:
            await reading.seek(self._partitions, reads_from(budgets.all(), now))
        except BaseException:
            await reading.close()
            raise
        return reading

    def _is_outdated(self, reading: _Reading) -> bool:
        """Whether its sums are not those of the budgets and prices that hold now."""
        budgets = self._board.budgets
        priced = any(spec.unit != "tokens" for spec in budgets.all())
        return not reading.ledger.takes(budgets) or (priced and self._prices() is not reading.book)

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


def _add(ledger: Ledger, batches: Mapping[TopicPartition, Sequence[Record]]) -> None:
    for records in batches.values():
        ledger.add(_usage_in(records))


def _usage_in(records: Iterable[Record]) -> Iterator[UsageRecorded]:
    for record in records:
        try:
            yield decode_record(USAGE, record, check_event).event
        except RecordRejectedError:
            continue  # the projection sends it to dead-letters


def _key(state: BudgetState) -> str:
    return state_key(state.budget_tenant_id, state.budget, state.account)
