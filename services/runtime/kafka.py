"""Kafka as Turnlog uses it: one place that builds clients, with the settings that its guarantees need.

The only module that imports aiokafka.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Generator, Sequence
from datetime import datetime
from typing import Any, cast

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.errors import IllegalOperation, KafkaConnectionError, KafkaError, ProducerFenced
from aiokafka.partitioner import murmur2  # pyright: ignore[reportUnknownVariableType]
from aiokafka.structs import OffsetAndTimestamp
from pydantic import BaseModel

from schemas.envelope import Headers, encode_event, encode_headers
from schemas.topics import MAX_RECORD_BYTES
from services.runtime.settings import RuntimeSettings

__all__ = [
    "AIOKafkaAdminClient",
    "AIOKafkaConsumer",
    "AIOKafkaProducer",
    "ConsumerRebalanceListener",
    "KafkaClients",
    "KafkaConnectionError",
    "KafkaError",
    "NewTopic",
    "OffsetAndTimestamp",
    "ProducerFenced",
    "Record",
    "TopicPartition",
    "partition_of",
    "send_unasked",
    "telling_what_broke",
]

Record = ConsumerRecord[bytes, bytes]
"""A record as it is on the log, undecoded."""

TRANSACTION_RETRY_BACKOFF_MS = 3
"""aiokafka waits 100 ms by default when the previous transaction has not settled; the broker needs 1 to 2 ms."""

TRANSACTION_TIMEOUT_MS = 30_000
"""After this the broker aborts what a dead worker left open, so that readers of committed data go on."""

MAX_BATCH_BYTES = 256 * 1024
"""Of records of one partition in one request. With aiokafka's 16 KiB the events of a busy group left in several
requests, each after the answer to the one before."""


def partition_of(key: str, partitions: int) -> int:
    """The partition of a key, as the Java client's default partitioner has it (murmur2)."""
    return (murmur2(key.encode()) & 0x7FFFFFFF) % partitions


@contextlib.contextmanager
def telling_what_broke(sent: Sequence["asyncio.Future[Any]"]) -> Generator[None]:
    """Within a transaction: raises the KafkaError that broke it, given the futures of the records sent so far.

    aiokafka 0.14 answers whatever is asked of a producer after it was fenced, or after a send timed out, with an
    IllegalOperation or a failed assertion, neither a KafkaError; what happened is known to those futures alone.
    Nobody needs to ask the others of them then.
    """
    try:
        yield
    except BaseException as error:
        for future in sent:
            _unasked(future)
        if not isinstance(error, IllegalOperation | AssertionError):
            raise
        broken = (future.exception() for future in sent if future.done() and not future.cancelled())
        cause = next((each for each in broken if isinstance(each, KafkaError)), None)
        raise cause or KafkaError(f"the transaction is broken: {error!r}") from error


async def send_unasked(producer: AIOKafkaProducer, **record: Any) -> None:
    """Sends a record whose fate nobody asks about. Raises KafkaError when it can't even be queued."""
    _unasked(cast("asyncio.Future[Any]", await producer.send(**record)))


def _unasked(sent: "asyncio.Future[Any]") -> None:
    """Takes note of how a record fails. Else asyncio logs a traceback for each, and those of one broken transaction
    kept a worker from its heartbeats."""
    sent.add_done_callback(lambda future: future.cancelled() or future.exception())


class _Consumer(AIOKafkaConsumer):
    """A consumer whose `stop` neither raises CancelledError by itself nor stops half-way.

    aiokafka 0.14 cancels tasks of its own in `stop` and awaits them. One that has not begun yet
    (`NoGroupCoordinator.close`) or that pauses after a failed fetch (`Fetcher.close`) hands its CancelledError to
    whoever stops the consumer, as if that one had been cancelled: a reader that meant to begin anew would end for good.
    """

    async def stop(self) -> None:
        """Whoever is cancelled while it waits here leaves nothing open: the consumer goes on to close."""
        stopping = asyncio.create_task(self._close())
        await asyncio.wait({stopping})
        stopping.result()

    async def _close(self) -> None:
        try:
            await super().stop()
        except asyncio.CancelledError:  # aiokafka's, since nobody else knows this task; it has not come to this:
            await self._client.close()


class KafkaClients:
    """Builds clients for the broker that the settings name. Nothing connects before its `start()`."""

    def __init__(self, settings: RuntimeSettings, *, client_id: str) -> None:
        self._settings = settings
        self._client_id = client_id

    def connection(self) -> dict[str, Any]:
        """Keyword arguments that every aiokafka client takes."""
        settings = self._settings
        options: dict[str, Any] = {
            "bootstrap_servers": settings.bootstrap,
            "client_id": self._client_id,
            "security_protocol": settings.kafka_security_protocol,
        }
        if "SSL" in settings.kafka_security_protocol:
            cafile = str(settings.kafka_ca_file) if settings.kafka_ca_file else None
            options["ssl_context"] = ssl.create_default_context(cafile=cafile)
        if "SASL" in settings.kafka_security_protocol:
            password = settings.kafka_password
            options |= {
                "sasl_mechanism": settings.kafka_sasl_mechanism,
                "sasl_plain_username": settings.kafka_username,
                "sasl_plain_password": password.get_secret_value() if password else None,
            }
        return options

    def producer(self, *, linger_ms: int = 0) -> AIOKafkaProducer:
        """An idempotent producer: a record is written once, in order, or the send fails."""
        return AIOKafkaProducer(
            **self.connection(),
            enable_idempotence=True,
            linger_ms=linger_ms,
            max_batch_size=MAX_BATCH_BYTES,
            max_request_size=MAX_RECORD_BYTES,
        )

    def transactional_producer(self, transactional_id: str) -> AIOKafkaProducer:
        """A producer whose `start()` fences every earlier one of the same id."""
        return AIOKafkaProducer(
            **self.connection(),
            transactional_id=transactional_id,
            transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
            retry_backoff_ms=TRANSACTION_RETRY_BACKOFF_MS,
            max_batch_size=MAX_BATCH_BYTES,
            max_request_size=MAX_RECORD_BYTES,
        )

    def consumer(self, *, group_id: str | None = None, **options: Any) -> AIOKafkaConsumer:
        """A consumer of committed records that never commits by itself."""
        defaults: dict[str, Any] = {
            "group_id": group_id,
            "enable_auto_commit": False,
            "isolation_level": "read_committed",
            "auto_offset_reset": "earliest",
            "partition_assignment_strategy": (StickyPartitionAssignor,),
            "fetch_max_wait_ms": 100,
            "max_partition_fetch_bytes": MAX_RECORD_BYTES,
        }
        return _Consumer(**self.connection(), **(defaults | options))

    def admin(self) -> AIOKafkaAdminClient:
        return AIOKafkaAdminClient(**self.connection())

    def record(
        self, topic: str, event: BaseModel, *, key: str, event_id: str, at: datetime, traceparent: str | None = None
    ) -> dict[str, Any]:
        """Keyword arguments of `producer.send` for an event; `topic` without prefix."""
        headers: Headers = encode_headers(
            event_type=event.type,  # pyright: ignore[reportAttributeAccessIssue,reportUnknownMemberType,reportUnknownArgumentType]
            event_id=event_id,
            source=self._client_id,
            at=at,
            traceparent=traceparent,
        )
        return {
            "topic": self._settings.topic(topic),
            "key": key.encode(),
            "value": encode_event(event),
            "headers": headers,
        }
