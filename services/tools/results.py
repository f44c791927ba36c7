"""Answers to Kafka: `tool-results`, `usage`, `dead-letters`. Written until the broker has them."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import structlog
from pydantic import BaseModel

from schemas.envelope import RecordRejectedError, header_map
from schemas.http import ComponentHealth
from schemas.ids import derived_id, new_id, time_of
from schemas.tool_calls import ToolProgress
from schemas.topics import DEAD_LETTERS, TOOL_RESULTS, USAGE
from schemas.usage import UsageRecorded
from services.runtime import metrics
from services.runtime.dead_letters import rejected_record
from services.runtime.kafka import AIOKafkaProducer, KafkaClients, KafkaError, Record, send_unasked
from services.runtime.tasks import end_task
from services.runtime.telemetry import traceparent_in
from services.tools.execution import Outcome

log = structlog.get_logger(__name__)

SOURCE = "tools"
RETRY_SECONDS = 0.5
MOST_PROGRESS = 1_000
"""Progress events that may wait for the broker; more are dropped."""


class KafkaOutbox:
    """An idempotent producer: each record is written once and in order, or the send is tried again."""

    def __init__(self, clients: KafkaClients) -> None:
        self._clients = clients
        self._producer: AIOKafkaProducer | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._progress: asyncio.Queue[ToolProgress] = asyncio.Queue(maxsize=MOST_PROGRESS)
        self._task: asyncio.Task[None] | None = None
        self._trouble: str | None = None

    async def start(self) -> None:
        self._producer = self._clients.producer()
        await self._producer.start()
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._send_progress(), name="tools:progress")

    async def stop(self) -> None:
        await end_task(self._task)
        if self._producer is not None:
            await self._producer.stop()

    def health(self) -> ComponentHealth:
        return ComponentHealth(ready=self._trouble is None, detail=self._trouble or "")

    async def answer(self, outcome: Outcome, usage: UsageRecorded | None, *, traceparent: str | None) -> None:
        """Returns when the answer and the usage are acknowledged. A second answer to a call carries the same ids."""
        event = outcome.event
        event_id = derived_id("tool-result", event.call_id, at=time_of(event.call_id))
        sends = [self._send(TOOL_RESULTS.name, event, event.thread_id, event_id, traceparent)]
        if usage is not None:
            sends.append(self._send(USAGE.name, usage, event.thread_id, usage.usage_id, traceparent))
        await asyncio.gather(*sends)

    async def reject(self, record: Record, error: RecordRejectedError) -> None:
        """Returns when the dead letter is acknowledged."""
        letter = rejected_record(source=SOURCE, record=record, error=error, at=datetime.now(UTC))
        traceparent = traceparent_in(header_map(record.headers))
        await self._send(DEAD_LETTERS.name, letter, SOURCE, letter.rejection_id, traceparent)
        metrics.RECORDS_REJECTED.labels(SOURCE, error.reason).inc()

    def progress(self, event: ToolProgress) -> None:
        """From any thread; dropped when the broker has not kept up."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue, event)

    def _queue(self, event: ToolProgress) -> None:
        if not self._progress.full():
            self._progress.put_nowait(event)

    async def _send_progress(self) -> None:
        assert self._producer is not None
        while True:
            event = await self._progress.get()
            try:
                record = self._record(TOOL_RESULTS.name, event, event.thread_id, None, None)
                await send_unasked(self._producer, **record)
            except KafkaError as error:
                log.info("progress_dropped", reason=repr(error))

    async def _send(self, topic: str, event: BaseModel, key: str, event_id: str, traceparent: str | None) -> None:
        """As often as it takes: while the broker is away the call stays uncommitted and readiness says why."""
        assert self._producer is not None
        while True:
            try:
                await self._producer.send_and_wait(**self._record(topic, event, key, event_id, traceparent))
            except KafkaError as error:
                self._trouble = f"cannot write to {topic}: {error!r}"
                log.warning("answer_waits", topic=topic, reason=repr(error))
                await asyncio.sleep(RETRY_SECONDS)
            else:
                self._trouble = None
                return

    def _record(
        self, topic: str, event: BaseModel, key: str, event_id: str | None, traceparent: str | None
    ) -> dict[str, Any]:
        at = datetime.now(UTC)
        return self._clients.record(
            topic, event, key=key, event_id=event_id or new_id(at), at=at, traceparent=traceparent
        )
