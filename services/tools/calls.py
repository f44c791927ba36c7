"""One record of a queue: decoded, run, answered. Returns only when the answer is on the log."""

import asyncio
from typing import Protocol

from schemas.envelope import RecordRejectedError, decode_event, header_map
from schemas.ids import derived_id, time_of
from schemas.tool_calls import ToolCalled, ToolFailed, ToolProgress, ToolReturned
from schemas.topics import MAX_RECORD_BYTES, TOOL_CALLS
from schemas.usage import UsageRecorded
from services.runtime.failpoints import Failpoints
from services.runtime.kafka import Record
from services.runtime.telemetry import Traces, current_traceparent, failed, traceparent_in
from services.tools import metrics
from services.tools.execution import Executor, Outcome
from services.tools.toolbox import Toolbox


class Outbox(Protocol):
    """Where answers go. Each method but `progress` returns when the broker has acknowledged."""

    async def answer(self, outcome: Outcome, usage: UsageRecorded | None, *, traceparent: str | None) -> None: ...

    async def reject(self, record: Record, error: RecordRejectedError) -> None: ...

    def progress(self, event: ToolProgress) -> None:
        """From any thread; never blocks; lost without harm."""
        ...


class CallRunner:
    """Answers records. The same call twice at once, as a partition that went and came back gives it, runs once."""

    def __init__(
        self, *, toolbox: Toolbox, executor: Executor, outbox: Outbox, failpoints: Failpoints, traces: Traces
    ) -> None:
        self._toolbox = toolbox
        self._executor = executor
        self._outbox = outbox
        self._failpoints = failpoints
        self._traces = traces
        self._running: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def handle(self, record: Record) -> None:
        """Puts the answer to a record on the log: a result, a failure, or a dead letter."""
        headers = header_map(record.headers)
        try:
            call: ToolCalled = decode_event(TOOL_CALLS, record.value, headers, max_bytes=MAX_RECORD_BYTES)
        except RecordRejectedError as error:
            await self._outbox.reject(record, error)
            return
        key = call.tenant_id, call.call_id
        running = self._running.get(key)
        if running is not None:
            await asyncio.wait({running})
            if not running.cancelled() and running.exception() is None:
                return
        task = asyncio.ensure_future(self._answer(call, traceparent_in(headers)))
        self._running[key] = task
        try:
            await task
        except Exception as error:  # noqa: BLE001 - a fault of ours: kept whole for an operator, the partition goes on
            await self._outbox.reject(record, RecordRejectedError("handler_failed", repr(error)))
        finally:
            if self._running.get(key) is task:
                del self._running[key]

    async def _answer(self, call: ToolCalled, traceparent: str | None) -> None:
        def progress(message: str | None, fraction: float | None) -> None:
            bounded = None if fraction is None else min(1.0, max(0.0, fraction))
            self._outbox.progress(
                ToolProgress(
                    tenant_id=call.tenant_id,
                    thread_id=call.thread_id,
                    call_id=call.call_id,
                    message=None if message is None else message[:1000],
                    fraction=bounded,
                )
            )

        tool = self._toolbox.get(call.name, tenant_id=call.tenant_id)
        attributes = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": call.name,
            "gen_ai.tool.call.id": call.call_id,
            "gen_ai.conversation.id": call.thread_id,
            "turnlog.tenant_id": call.tenant_id,
            "turnlog.turn_id": call.turn_id,
        }
        name = f"execute_tool {call.name}"
        with self._traces.span(name, traceparent=traceparent, attributes=attributes) as running:
            outcome = await self._executor.run(tool, call, progress=progress)
            if isinstance(outcome.event, ToolFailed):
                failed(running, outcome.event.code)
            _measure(call, outcome)
            self._failpoints.hit("tools.before_result")
            await self._outbox.answer(outcome, usage_of(call, outcome), traceparent=current_traceparent())
        self._failpoints.hit("tools.after_result")


def usage_of(call: ToolCalled, outcome: Outcome) -> UsageRecorded | None:
    """What the call spent; None when the tool was not run.

    A call that is run again after a crash is the same fact: its id follows from the call, and its time is that of the
    call, so that both copies meet wherever usage is kept by time. A failed one is not billable.
    """
    if outcome.attempts == 0:
        return None
    returned = isinstance(outcome.event, ToolReturned)
    return UsageRecorded(
        usage_id=derived_id("usage", "tool", call.tenant_id, call.call_id, at=time_of(call.call_id)),
        tenant_id=call.tenant_id,
        thread_id=call.thread_id,
        turn_id=call.turn_id,
        user_id=call.user_id,
        team_id=call.team_id,
        agent=call.agent,
        step=call.step,
        attempt=outcome.attempts,
        kind="tool",
        tool=call.name,
        latency_ms=outcome.event.latency_ms or 0,
        outcome="ok" if returned else "error",
        billable=returned,
        occurred_at=call.called_at,
    )


def _measure(call: ToolCalled, outcome: Outcome) -> None:
    event = outcome.event
    metrics.CALLS.labels("ok" if isinstance(event, ToolReturned) else event.code).inc()
    if outcome.attempts:
        metrics.CALL_SECONDS.labels(call.name).observe((event.latency_ms or 0) / 1000)
