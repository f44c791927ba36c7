"""Calls from Kafka by FastStream, results to Kafka: at least once, many at a time, offsets without gaps."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import structlog
from faststream import AckPolicy
from faststream.kafka import KafkaBroker
from faststream.kafka.annotations import KafkaMessage

from schemas.envelope import RecordRejectedError, decode_event, header_map
from schemas.ids import derived_id, time_of
from schemas.tool_calls import ToolCalled, ToolFailed, ToolReturned
from schemas.topics import DEAD_LETTERS, MAX_RECORD_BYTES, TOOL_CALLS, TOOL_RESULTS, USAGE
from schemas.usage import UsageRecorded
from services.runtime import metrics
from services.runtime.dead_letters import rejected_record
from services.runtime.failpoints import Failpoints
from services.runtime.groups import TOOLS_GROUP
from services.runtime.kafka import AIOKafkaProducer, KafkaClients, KafkaError, Record, TopicPartition
from services.runtime.settings import RuntimeSettings
from services.tools.offsets import OffsetTracker

log = structlog.get_logger(__name__)

POLL_MS = 20
RETRY_SECONDS = 0.5

Execute = Callable[[ToolCalled], Awaitable[ToolReturned | ToolFailed]]


class CallConsumer:
    """Runs the calls of the queues. A call is committed when its result is on the log, so a crash runs it again."""

    def __init__(
        self,
        broker: KafkaBroker,
        *,
        settings: RuntimeSettings,
        clients: KafkaClients,
        topics: list[str],
        execute: Execute,
        concurrency: int,
        failpoints: Failpoints,
    ) -> None:
        self._clients = clients
        self._execute = execute
        self._failpoints = failpoints
        self._producer: AIOKafkaProducer = clients.producer()
        self._slots = asyncio.Semaphore(concurrency)
        self._trackers: dict[TopicPartition, OffsetTracker] = {}
        self._committed: dict[TopicPartition, int] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._subscriber = broker.subscriber(
            *(settings.topic(topic) for topic in topics),
            group_id=f"{settings.topic_prefix}{TOOLS_GROUP}",
            batch=True,
            batch_timeout_ms=POLL_MS,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            ack_policy=AckPolicy.MANUAL,
            decoder=_undecoded,
        )
        self._subscriber(self._handle)

    async def start(self) -> None:
        await self._producer.start()

    async def stop(self, grace_seconds: float) -> None:
        """Gives running calls the grace time; what does not end is run again by another worker."""
        if self._running:
            await asyncio.wait(self._running, timeout=grace_seconds)
        for task in self._running:
            task.cancel()
        await self._producer.stop()

    async def _handle(self, _: Any, message: KafkaMessage) -> None:
        raw: Record | tuple[Record, ...] = message.raw_message
        for record in raw if isinstance(raw, tuple) else (raw,):
            tracker = self._trackers.setdefault(TopicPartition(record.topic, record.partition), OffsetTracker())
            if not tracker.begin(record.offset):
                continue
            await self._slots.acquire()
            task = asyncio.create_task(self._run(record, tracker))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _run(self, record: Record, tracker: OffsetTracker) -> None:
        try:
            await self._answer(record)
            tracker.finish(record.offset)
            await self._commit(TopicPartition(record.topic, record.partition), tracker)
        finally:
            self._slots.release()

    async def _answer(self, record: Record) -> None:
        try:
            call: ToolCalled = decode_event(
                TOOL_CALLS, record.value, header_map(record.headers), max_bytes=MAX_RECORD_BYTES
            )
        except RecordRejectedError as error:
            await self._reject(record, error)
            return
        result = await self._execute(call)
        self._failpoints.hit("tools.before_result")
        at = datetime.now(UTC)
        result_id = derived_id("result", call.call_id, at=time_of(call.call_id))
        await self._send(TOOL_RESULTS.name, result, call.thread_id, result_id, at)
        used = _usage(call, result, at)
        await self._send(USAGE.name, used, call.thread_id, used.usage_id, at)
        self._failpoints.hit("tools.after_result")

    async def _reject(self, record: Record, error: RecordRejectedError) -> None:
        at = datetime.now(UTC)
        letter = rejected_record(source=TOOLS_GROUP, record=record, error=error, at=at)
        await self._send(DEAD_LETTERS.name, letter, TOOLS_GROUP, letter.rejection_id, at)
        metrics.RECORDS_REJECTED.labels(TOOLS_GROUP, error.reason).inc()

    async def _send(self, topic: str, event: Any, key: str, event_id: str, at: datetime) -> None:
        """Until the broker has it."""
        record = self._clients.record(topic, event, key=key, event_id=event_id, at=at)
        while True:
            try:
                await self._producer.send_and_wait(**record)
                return
            except KafkaError as error:
                log.warning("result_waits", topic=topic, reason=repr(error))
                await asyncio.sleep(RETRY_SECONDS)

    async def _commit(self, partition: TopicPartition, tracker: OffsetTracker) -> None:
        offset = tracker.committable
        consumer = self._subscriber.consumer
        if consumer is None or offset <= self._committed.get(partition, 0):
            return
        self._committed[partition] = offset
        try:
            await consumer.commit({partition: offset})
        except KafkaError as error:
            # The partition has gone to another worker, which runs what was not committed again.
            self._committed.pop(partition, None)
            log.info("commit_refused", partition=partition.partition, reason=repr(error))


def _usage(call: ToolCalled, result: ToolReturned | ToolFailed, at: datetime) -> UsageRecorded:
    """One execution; a second one of the same call is the same fact."""
    return UsageRecorded(
        usage_id=derived_id("usage", call.call_id, at=time_of(call.call_id)),
        tenant_id=call.tenant_id,
        thread_id=call.thread_id,
        turn_id=call.turn_id,
        user_id=call.user_id,
        agent=call.agent,
        step=call.step,
        kind="tool",
        tool=call.name,
        latency_ms=result.latency_ms or 0,
        outcome="ok" if isinstance(result, ToolReturned) else "error",
        occurred_at=at,
    )


async def _undecoded(message: Any) -> None:
    """FastStream's decoder is left out: records are decoded one by one, so that a bad one spoils no batch."""
