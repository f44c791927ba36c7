"""Reads the topic `invoices` and writes to it, so that each document is there once and numbers have no gap.

What makes it so, whatever is killed and however many services there are: a write begins with a new producer of one
transactional id, which fences every earlier one and ends what that has left open; then the topic is read to its end;
only then is it decided what to write; and the commit succeeds only while no later producer has begun. So whoever writes
has seen everything that was written before.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Any, cast

import structlog

from schemas.envelope import RecordRejectedError
from schemas.invoices import CreditGranted, CreditNoteIssued, InvoiceFinalized
from schemas.topics import INVOICES
from services.runtime.errors import UnavailableError
from services.runtime.failpoints import Failpoints
from services.runtime.kafka import (
    AIOKafkaConsumer,
    AIOKafkaProducer,
    KafkaClients,
    KafkaError,
    ProducerFenced,
    Record,
    TopicPartition,
    telling_what_broke,
)
from services.runtime.records import decode_record
from services.runtime.settings import RuntimeSettings
from services.usage.billing.ledger import Ledger, LedgerEvent

log = structlog.get_logger(__name__)

READ_SECONDS, FIRST_READ_SECONDS = 10, 120
WRITE_SECONDS = 30
"""What a broker may take: beyond that nobody waits who has asked over HTTP."""

POLL_MS = 100


class InvoiceLog:
    """The ledger, as of whatever is on the topic when it is asked for."""

    def __init__(self, clients: KafkaClients, settings: RuntimeSettings, failpoints: Failpoints) -> None:
        self._clients = clients
        self._failpoints = failpoints
        self._partition = TopicPartition(settings.topic(INVOICES.name), 0)
        self._transactional_id = f"{settings.topic_prefix}turnlog-invoices"
        self._consumer: AIOKafkaConsumer = clients.consumer()
        self._ledger = Ledger()
        self._taken = 0
        self._reading = asyncio.Lock()
        self._writing = asyncio.Lock()

    async def start(self) -> None:
        """Returns when everything on the topic has been read. Raises UnavailableError."""
        await self._consumer.start()
        self._consumer.assign([self._partition])
        await self._consumer.seek_to_beginning(self._partition)
        await self.ledger(timeout_seconds=FIRST_READ_SECONDS)

    async def stop(self) -> None:
        await self._consumer.stop()

    async def ledger(self, *, timeout_seconds: float = READ_SECONDS) -> Ledger:
        """As of now. Raises UnavailableError when Kafka does not answer in time."""
        try:
            async with asyncio.timeout(timeout_seconds):
                ends: dict[TopicPartition, int] = await self._consumer.end_offsets([self._partition])
                await self._read_to(ends[self._partition])
        except (TimeoutError, KafkaError) as error:
            raise UnavailableError(f"{self._partition.topic} was not read to its end: {error!r}") from error
        return self._ledger

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncGenerator["InvoiceWriter"]:
        """One at a time: what is decided inside the block is decided on everything that was written before.

        Raises UnavailableError when Kafka does not answer.
        """
        async with self._writing:
            producer = self._clients.transactional_producer(self._transactional_id)
            try:
                try:
                    async with asyncio.timeout(WRITE_SECONDS):
                        await producer.start()
                except (TimeoutError, KafkaError) as error:
                    raise UnavailableError(f"Kafka takes no invoices: {error!r}") from error
                yield InvoiceWriter(self, producer, await self.ledger())
            finally:
                with contextlib.suppress(KafkaError, AssertionError, TimeoutError):
                    await producer.stop()

    async def write_with(self, producer: AIOKafkaProducer, event: LedgerEvent, at: datetime) -> None:
        """Returns when the ledger has the event.

        When it raises UnavailableError the event is either on the log or it never will be: the next one who asks sees.
        """
        record = self._clients.record(INVOICES.name, event, key=event.tenant_id, event_id=_id_of(event), at=at)
        sent: list[asyncio.Future[Any]] = []
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                with telling_what_broke(sent):
                    await producer.begin_transaction()
                    sent.append(cast("asyncio.Future[Any]", await producer.send(**record, partition=0)))
                    written = await sent[0]
                    self._failpoints.hit("invoice.before_commit")
                    await producer.commit_transaction()
                self._failpoints.hit("invoice.after_commit")
                await self._read_to(written.offset + 1)
        except ProducerFenced as error:
            raise UnavailableError("another usage service writes invoices: run one of it, and try again") from error
        except (TimeoutError, KafkaError) as error:
            raise UnavailableError(f"Kafka does not say whether it took the document, try again: {error!r}") from error

    async def _read_to(self, end: int) -> None:
        """While nobody asks, the consumer is paused and does not poll the broker."""
        async with self._reading:
            self._consumer.resume(self._partition)
            try:
                while await self._consumer.position(self._partition) < end:
                    batches: dict[TopicPartition, list[Record]] = await self._consumer.getmany(timeout_ms=POLL_MS)
                    for record in batches.get(self._partition, []):
                        self._take(record)
            except BaseException:
                self._consumer.seek(self._partition, self._taken)  # what was fetched and not taken is read again
                raise
            finally:
                self._consumer.pause(self._partition)

    def _take(self, record: Record) -> None:
        """A record that is no document is left out. One of a later release's types stops everything."""
        try:
            self._ledger.take(decode_record(INVOICES, record).event, record.value or b"")
        except RecordRejectedError as error:
            place = f"{record.topic}@{record.offset}"
            if error.reason == "unknown_type":
                raise UnavailableError(f"{place} is of a type that this release does not know: {error}") from error
            log.warning("invoice_record_ignored", place=place, reason=str(error))
        self._taken = record.offset + 1


class InvoiceWriter:
    """The ledger as of the last write of all, and the right to write next."""

    def __init__(self, invoices: InvoiceLog, producer: AIOKafkaProducer, ledger: Ledger) -> None:
        self.ledger = ledger
        self._log = invoices
        self._producer = producer

    async def write(self, event: LedgerEvent, at: datetime) -> None:
        """Returns when the ledger has it. Raises UnavailableError."""
        await self._log.write_with(self._producer, event, at)


def _id_of(event: LedgerEvent) -> str:
    match event:
        case InvoiceFinalized():
            return event.invoice_id
        case CreditNoteIssued():
            return event.credit_note_id
        case CreditGranted():
            return f"{event.tenant_id}/{event.grant_id}"
