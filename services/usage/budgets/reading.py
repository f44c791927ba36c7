"""The log of `usage`, counted into a ledger from one place on."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from schemas.envelope import RecordRejectedError
from schemas.topics import USAGE
from schemas.usage import UsageRecorded
from services.runtime.kafka import AIOKafkaConsumer, Record, TopicPartition
from services.runtime.records import decode_record
from services.usage.budgets.ledger import Ledger
from services.usage.rows import check_event


class Place(Protocol):
    """Where the first record of a time is."""

    offset: int


class Reading:
    """A ledger, and how far the log was counted for it. Records that are no usage are left out."""

    def __init__(self, ledger: Ledger, consumer: AIOKafkaConsumer) -> None:
        self.ledger = ledger
        self.places: dict[TopicPartition, int] = {}
        """Behind what was counted."""
        self._first: Mapping[TopicPartition, int] = {}
        self._consumer = consumer

    async def begin_at_end(self, partitions: Sequence[TopicPartition]) -> None:
        """Counts what comes from now on."""
        await self._open(partitions)
        ends: dict[TopicPartition, int] = await self._consumer.end_offsets(partitions)
        self._go_to(ends)

    async def begin_at(self, partitions: Sequence[TopicPartition], since: datetime | None) -> None:
        """Counts from the first record of a time on; without one from the beginning."""
        consumer = self._consumer
        await self._open(partitions)
        if since is None:
            beginnings: dict[TopicPartition, int] = await consumer.beginning_offsets(partitions)
            self._go_to(beginnings)
            return
        ends: dict[TopicPartition, int] = await consumer.end_offsets(partitions)
        milliseconds = int(since.timestamp() * 1000)
        found: dict[TopicPartition, Place | None] = await consumer.offsets_for_times(
            dict.fromkeys(partitions, milliseconds)
        )
        self._go_to(
            {partition: ends[partition] if place is None else place.offset for partition, place in found.items()}
        )

    async def begin_behind(
        self, partitions: Sequence[TopicPartition], since: datetime | None, ends: Sequence[int]
    ) -> None:
        """Counts from the first record of a time on, and from the next offset of each partition where that is later."""
        await self.begin_at(partitions, since)
        self._go_to({each: max(place, ends[each.partition]) for each, place in self.places.items()})

    async def step(
        self, timeout_ms: int, max_records: int, *, until: Mapping[TopicPartition, int] | None = None
    ) -> None:
        """Counts what comes next, off the event loop; returns after the time-out when nothing does.

        Args:
            until: places behind which nothing is counted.
        """
        due = [each for each, place in self.places.items() if until is None or place < until[each]]
        if not due:
            return
        batches: dict[TopicPartition, list[Record]] = await self._consumer.getmany(
            *due, timeout_ms=timeout_ms, max_records=max_records
        )
        if until is not None:
            batches = {each: self._before(each, until[each], records) for each, records in batches.items()}
        if batches:
            await asyncio.to_thread(_add, self.ledger, batches)
        for each in due:
            self.places[each] = await self._consumer.position(each)

    def left(self, until: Mapping[TopicPartition, int]) -> int:
        """Offsets that are not counted before these places."""
        return sum(max(0, until[each] - place) for each, place in self.places.items())

    def counted(self) -> int:
        """Offsets that were counted."""
        return sum(place - self._first[each] for each, place in self.places.items())

    async def close(self) -> None:
        await self._consumer.stop()

    async def _open(self, partitions: Sequence[TopicPartition]) -> None:
        await self._consumer.start()
        self._consumer.assign(partitions)

    def _go_to(self, places: Mapping[TopicPartition, int]) -> None:
        for partition, offset in places.items():
            self._consumer.seek(partition, offset)
        self._first, self.places = places, dict(places)

    def _before(self, partition: TopicPartition, end: int, records: list[Record]) -> list[Record]:
        """The records before a place; the others are read again."""
        if records[-1].offset < end:
            return records
        self._consumer.seek(partition, end)
        return [record for record in records if record.offset < end]


def _add(ledger: Ledger, batches: Mapping[TopicPartition, Sequence[Record]]) -> None:
    texts = ledger.texts()
    wanted = None if texts is None else [f'"{text}"'.encode() for text in texts]
    for records in batches.values():
        ledger.add(usage_in(records, wanted))


def usage_in(records: Iterable[Record], wanted: Sequence[bytes] | None = None) -> Iterator[UsageRecorded]:
    """The usage in records.

    Args:
        wanted: usage that has none of these texts is left out unread, which takes a hundredth of the time. JSON can
            write a text in another way only with a backslash.
    """
    for record in records:
        if wanted is not None and record.value is not None and b"\\" not in record.value:
            value = record.value
            if not any(text in value for text in wanted):
                continue
        try:
            yield decode_record(USAGE, record, check_event).event
        except RecordRejectedError:
            continue  # the projection sends it to dead-letters
