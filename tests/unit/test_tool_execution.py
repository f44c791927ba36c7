"""Whatever a tool does, a call is answered."""

import asyncio
import threading
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from schemas.dead_letters import RejectReason
from schemas.envelope import RecordRejectedError, encode_event
from schemas.tool_calls import ToolCalled, ToolFailed, ToolProgress, ToolReturned
from schemas.usage import UsageRecorded
from services.runtime.failpoints import Failpoints
from services.runtime.kafka import Record
from services.runtime.telemetry import Traces
from services.tools.calls import CallRunner, usage_of
from services.tools.errors import ToolError, ToolUnavailableError
from services.tools.execution import MAX_RESULT_BYTES, Executor, Outcome
from services.tools.registration import tool
from services.tools.threads import Threads
from services.tools.tool import Tool, ToolContext
from services.tools.toolbox import Toolbox

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def call_of(name: str = "it", *, seconds: float = 60, **arguments: Any) -> ToolCalled:
    return ToolCalled(
        thread_id="t-1",
        call_id="01990000-0000-7000-8000-000000000002",
        turn_id="turn-1",
        step=1,
        name=name,
        arguments=arguments,
        user_id="u-1",
        agent="assistant",
        called_at=NOW,
        deadline_at=NOW + timedelta(seconds=seconds),
    )


async def run(made: Tool | None, *, threads: Threads | None = None, seconds: float = 60, **arguments: Any) -> Outcome:
    executor = Executor(threads=threads or Threads(), now=lambda: NOW)
    return await executor.run(made, call_of(seconds=seconds, **arguments))


async def failure(made: Tool | None, **options: Any) -> ToolFailed:
    event = (await run(made, **options)).event
    assert isinstance(event, ToolFailed)
    return event


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_sync_tools_run_in_a_thread_and_async_ones_on_the_loop() -> None:
    @tool
    def blocking() -> bool:
        return threading.current_thread() is threading.main_thread()

    @tool
    async def direct() -> bool:
        return threading.current_thread() is threading.main_thread()

    for made, on_loop in ((blocking, False), (direct, True)):
        outcome = await run(made)
        assert isinstance(outcome.event, ToolReturned)
        assert (outcome.event.result, outcome.attempts) == (on_loop, 1)
        assert outcome.event.latency_ms is not None


async def test_results_become_json() -> None:
    @tool
    def it() -> dict[str, Any]:
        return {"day": date(2026, 1, 2), "not": float("nan"), "many": {1}, "none": None}

    event = (await run(it)).event
    assert isinstance(event, ToolReturned)
    assert event.result == {"day": "2026-01-02", "not": None, "many": [1], "none": None}


@pytest.mark.parametrize("value", [object(), lambda: 1, "\ud800", b"\xff"])
async def test_a_result_that_is_not_json_says_so(value: Any) -> None:
    @tool
    def it() -> Any:
        return value

    assert (await failure(it)).code == "result_not_json"


async def test_a_result_that_holds_itself_says_so() -> None:
    @tool
    def it() -> Any:
        loop: list[Any] = []
        loop.append(loop)
        return loop

    assert (await failure(it)).code == "result_not_json"


async def test_the_largest_result_passes_and_one_byte_more_does_not() -> None:
    @tool
    def it(size: int) -> str:
        return "x" * (size - 2)

    assert isinstance((await run(it, size=MAX_RESULT_BYTES)).event, ToolReturned)
    failed = await failure(it, size=MAX_RESULT_BYTES + 1)
    assert failed.code == "result_too_large"
    assert "262144" in failed.message


async def test_an_exception_is_told_by_type_and_message_without_a_traceback() -> None:
    @tool
    def it() -> None:
        raise LookupError("no such order")

    failed = await failure(it)
    assert (failed.code, failed.message) == ("error", "LookupError: no such order")


async def test_a_tool_error_speaks_for_itself() -> None:
    @tool
    async def it() -> None:
        raise ToolError("ask for another city")

    assert (await failure(it)).message == "ask for another city"


class Unshowable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "error",
    [SystemExit(1), KeyboardInterrupt(), asyncio.CancelledError(), StopIteration(), Unshowable(), TimeoutError()],
)
@pytest.mark.parametrize("blocking", [True, False])
async def test_nothing_that_a_tool_raises_ends_the_worker(error: BaseException, blocking: bool) -> None:
    def sync() -> None:
        raise error

    async def direct() -> None:
        raise error

    failed = await failure(tool(name="it")(sync if blocking else direct))
    assert failed.code == "error"


async def test_an_async_tool_is_cancelled_at_its_time_limit() -> None:
    cancelled = asyncio.Event()

    @tool(timeout_seconds=0.05)
    async def it() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    failed = await failure(it)
    assert (failed.code, failed.message) == ("timeout", "it gave no result within 0.05 s")
    assert cancelled.is_set()


async def test_an_async_tool_that_ignores_its_cancellation_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.tools.execution.CANCEL_SECONDS", 0.05)
    release = asyncio.Event()

    @tool(timeout_seconds=0.05)
    async def it() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    assert (await failure(it)).code == "timeout"
    release.set()
    await until(lambda: not [task for task in asyncio.all_tasks() if task.get_name() == "tool:it"])


async def test_a_sync_tool_past_its_limit_is_answered_and_its_thread_counted() -> None:
    release = threading.Event()
    threads = Threads()

    @tool(timeout_seconds=0.05)
    def it() -> None:
        release.wait()

    assert (await failure(it, threads=threads)).code == "timeout"
    assert threads.abandoned == 1
    release.set()
    await until(lambda: threads.abandoned == 0)


async def test_the_deadline_of_the_call_goes_before_a_longer_limit_of_the_tool() -> None:
    @tool(timeout_seconds=60)
    async def it() -> None:
        await asyncio.Event().wait()

    started = time.monotonic()
    assert (await failure(it, seconds=0.05)).code == "timeout"
    assert time.monotonic() - started < 10


async def test_a_call_past_its_deadline_is_not_run() -> None:
    ran: list[int] = []

    @tool
    def it() -> None:
        ran.append(1)

    outcome = await run(it, seconds=0)
    assert isinstance(outcome.event, ToolFailed)
    assert (outcome.event.code, outcome.attempts, ran) == ("timeout", 0, [])


async def test_an_unknown_tool_and_wrong_arguments_are_told_and_not_metered() -> None:
    @tool
    def it(number: int) -> None: ...

    for outcome, code in ((await run(None), "unknown_tool"), (await run(it, number="x"), "invalid_arguments")):
        assert isinstance(outcome.event, ToolFailed)
        assert (outcome.event.code, outcome.attempts) == (code, 0)
        assert usage_of(call_of(), outcome) is None


@pytest.mark.parametrize("error", [ConnectionError("away"), ToolUnavailableError("away", retry_after_seconds=0)])
async def test_retryable_errors_are_tried_again_and_others_not(error: Exception) -> None:
    calls: list[str] = []

    @tool(retries=2, retry_on=(ConnectionError,))
    def it(fails: int, kind: str, context: ToolContext) -> str:
        calls.append(context.call_id)
        if len(calls) <= fails:
            raise error if kind == "passing" else ValueError("wrong")
        return "done"

    outcome = await run(it, fails=1, kind="passing")
    assert isinstance(outcome.event, ToolReturned)
    assert (outcome.attempts, len(set(calls))) == (2, 1)
    calls.clear()
    assert (await run(it, fails=9, kind="passing")).attempts == 3
    calls.clear()
    assert (await run(it, fails=9, kind="lasting")).attempts == 1


async def test_a_retry_that_would_not_fit_the_time_is_not_waited_for() -> None:
    @tool(retries=5, timeout_seconds=30)
    async def it() -> None:
        raise ToolUnavailableError("come back tomorrow", retry_after_seconds=86_400)

    started = time.monotonic()
    failed = await failure(it)
    assert (failed.code, failed.message) == ("unavailable", "come back tomorrow")
    assert time.monotonic() - started < 10


async def test_usage_of_a_call_that_is_run_twice_is_one_fact() -> None:
    @tool
    def it() -> str:
        return "x"

    call = call_of().model_copy(update={"team_id": "blue"})
    first, second = usage_of(call, await run(it)), usage_of(call, await run(it))
    assert first is not None
    assert second is not None
    assert (first.usage_id, first.occurred_at, first.outcome) == (second.usage_id, second.occurred_at, "ok")
    assert (first.kind, first.tool, first.user_id, first.team_id, first.billable) == (
        "tool",
        "it",
        "u-1",
        "blue",
        True,
    )


class MemoryOutbox:
    """Keeps what would be written."""

    def __init__(self) -> None:
        self.answers: list[tuple[Outcome, UsageRecorded | None, str | None]] = []
        self.rejected: list[RejectReason] = []
        self.events: list[ToolProgress] = []
        self.broken = False

    async def answer(self, outcome: Outcome, usage: UsageRecorded | None, *, traceparent: str | None) -> None:
        if self.broken:
            raise RuntimeError("a fault of ours")
        self.answers.append((outcome, usage, traceparent))

    async def reject(self, record: Record, error: RecordRejectedError) -> None:
        self.rejected.append(error.reason)

    def progress(self, event: ToolProgress) -> None:
        self.events.append(event)


def record_of(value: bytes) -> Record:
    headers = [("traceparent", TRACEPARENT.encode())]
    return Record("tool-calls", 0, 7, 0, 0, b"t-1", value, None, 0, len(value), headers)


def runner_of(outbox: MemoryOutbox, *tools: Tool) -> CallRunner:
    return CallRunner(
        toolbox=Toolbox(tools),
        executor=Executor(threads=Threads(), now=lambda: NOW),
        outbox=outbox,
        failpoints=Failpoints(),
        traces=Traces(),
    )


async def test_a_call_that_is_delivered_twice_at_once_runs_once() -> None:
    release, ran = asyncio.Event(), list[int]()

    @tool
    async def it() -> None:
        ran.append(1)
        await release.wait()

    outbox = MemoryOutbox()
    runner = runner_of(outbox, it)
    both = [asyncio.create_task(runner.handle(record_of(encode_event(call_of())))) for _ in range(2)]
    await until(lambda: bool(ran))
    release.set()
    await asyncio.gather(*both)
    assert (ran, len(outbox.answers)) == ([1], 1)
    assert outbox.answers[0][2] == TRACEPARENT


async def test_progress_comes_from_threads_and_is_bounded() -> None:
    @tool
    def it(context: ToolContext) -> None:
        context.progress("half", 0.5)
        context.progress(None, 7)

    outbox = MemoryOutbox()
    await runner_of(outbox, it).handle(record_of(encode_event(call_of())))
    assert [(each.message, each.fraction) for each in outbox.events] == [("half", 0.5), (None, 1.0)]


@pytest.mark.parametrize(
    ("value", "reason"), [(b"{", "not_json"), (b"[]", "not_an_event"), (b'{"thread_id":"t-1"}', "not_an_event")]
)
async def test_a_record_that_is_no_call_is_rejected(value: bytes, reason: str) -> None:
    outbox = MemoryOutbox()
    await runner_of(outbox).handle(record_of(value))
    assert (outbox.rejected, outbox.answers) == ([reason], [])


async def test_a_fault_of_ours_keeps_the_record_for_an_operator() -> None:
    @tool
    def it() -> None: ...

    outbox = MemoryOutbox()
    outbox.broken = True
    await runner_of(outbox, it).handle(record_of(encode_event(call_of())))
    assert outbox.rejected == ["handler_failed"]


def test_threads_of_tools_do_not_hold_up_the_end_of_the_process() -> None:
    """Daemon threads: the interpreter does not join them as it joins those of a pool."""
    started: list[threading.Thread] = []
    release = threading.Event()

    async def main() -> None:
        work = asyncio.create_task(Threads().run(release.wait, name="hangs"))
        await until(lambda: any(each.name == "tool:hangs" for each in threading.enumerate()))
        started.extend(each for each in threading.enumerate() if each.name == "tool:hangs")
        work.cancel()

    asyncio.run(main())
    assert [each.daemon for each in started] == [True]
    release.set()
    started[0].join(10)
