"""One call: arguments checked, run within its time, tried again where that helps, answered in JSON of bounded size.

Nothing here speaks to Kafka. Whatever a tool does, the answer is a `tool.returned` or a `tool.failed`.
"""

import asyncio
import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pydantic_core

from schemas.tool_calls import ToolCalled, ToolFailed, ToolReturned
from services.tools.errors import (
    FailureCode,
    InvalidArgumentsError,
    ResultTooLargeError,
    ToolError,
    ToolUnavailableError,
)
from services.tools.threads import Threads
from services.tools.tool import Invocation, Progress, Tool, ToolContext, no_progress

MAX_RESULT_BYTES = 256 * 1024
"""Of the result as JSON. Larger ones would fill the model's context and the turn's state."""

MAX_MESSAGE_CHARACTERS = 2_000

CANCEL_SECONDS = 1.0
"""How long an async tool that ran out of time may take to clean up before it is left alone."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call ended. `attempts` 0: the tool was not run at all, so that there is nothing to meter."""

    event: ToolReturned | ToolFailed
    attempts: int = 0


class Executor:
    """Runs calls, any number at once."""

    def __init__(self, *, threads: Threads, now: Callable[[], datetime]) -> None:
        self._threads = threads
        self._now = now

    async def run(self, tool: Tool | None, call: ToolCalled, *, progress: Progress = no_progress) -> Outcome:
        """The answer to a call. Raises nothing but CancelledError.

        The time limit is the tool's own or the call's `deadline_at`, whichever ends first, for all attempts together.
        """
        left = (call.deadline_at - self._now()).total_seconds()
        if left <= 0:
            return _failed(call, "timeout", f"not run: its time ended at {call.deadline_at.isoformat()}")
        if tool is None:
            return _failed(call, "unknown_tool", f"no worker of this queue has a tool named {call.name!r}")
        context = ToolContext(
            call_id=call.call_id,
            tenant_id=call.tenant_id,
            thread_id=call.thread_id,
            turn_id=call.turn_id,
            user_id=call.user_id,
            send_progress=progress,
        )
        try:
            invocation = tool.bind(call.arguments, context)
        except InvalidArgumentsError as error:
            return _failed(call, "invalid_arguments", str(error))
        return await self._attempts(tool, call, invocation, min(left, tool.spec.timeout_seconds))

    async def _attempts(self, tool: Tool, call: ToolCalled, invocation: Invocation, limit_seconds: float) -> Outcome:
        started = time.monotonic()
        attempt = 0
        while True:
            attempt += 1
            remaining = limit_seconds - (time.monotonic() - started)
            try:
                result = await self._attempt(invocation, remaining, name=tool.spec.name)
            except _OutOfTime:
                message = f"{tool.spec.name} gave no result within {limit_seconds:g} s"
                return _failed(call, "timeout", message, started=started, attempts=attempt)
            except Exception as error:  # noqa: BLE001 - whatever a tool raises is told to the model
                delay = tool.retry.delay_seconds(error, attempt)
                if delay is None or delay >= limit_seconds - (time.monotonic() - started):
                    return _failed(call, _code(error), _message(error), started=started, attempts=attempt)
                await asyncio.sleep(delay)
                continue
            return _returned(call, result, started=started, attempts=attempt)

    async def _attempt(self, invocation: Invocation, limit_seconds: float, *, name: str) -> Any:
        """Raises _OutOfTime, or what the tool raises. A TimeoutError of the tool's own stays what it is."""
        work = asyncio.create_task(self._call(invocation, name), name=f"tool:{name}")
        try:
            await asyncio.wait({work}, timeout=max(0.0, limit_seconds))
            if work.done():
                if work.cancelled():
                    raise RuntimeError("the tool cancelled itself")
                return work.result()
            raise _OutOfTime
        finally:
            if not work.done():
                work.cancel()
                await asyncio.wait({work}, timeout=CANCEL_SECONDS)
            if work.done() and not work.cancelled():
                work.exception()  # seen, so that asyncio does not report it as lost

    async def _call(self, invocation: Invocation, name: str) -> Any:
        try:
            if not invocation.blocking:
                return await _settled(invocation.call())
            return await _settled(await self._threads.run(invocation.call, name=name))
        except (SystemExit, KeyboardInterrupt) as error:
            raise RuntimeError(f"{type(error).__name__}: {error}") from error


class _OutOfTime(Exception):
    """The limit passed; unlike TimeoutError, no tool can raise it."""


async def _settled(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def _returned(call: ToolCalled, result: Any, *, started: float, attempts: int) -> Outcome:
    try:
        raw = pydantic_core.to_json(result, inf_nan_mode="null")
        value = pydantic_core.from_json(raw)
    except ValueError as error:
        message = f"expected a result that is JSON, got {type(result).__name__}: {error}"
        return _failed(call, "result_not_json", message, started=started, attempts=attempts)
    if len(raw) > MAX_RESULT_BYTES:
        message = f"expected a result of at most {MAX_RESULT_BYTES} bytes of JSON, got {len(raw)}"
        return _failed(call, "result_too_large", message, started=started, attempts=attempts)
    event = ToolReturned(
        tenant_id=call.tenant_id,
        thread_id=call.thread_id,
        call_id=call.call_id,
        result=value,
        latency_ms=_since(started),
    )
    return Outcome(event, attempts)


def _failed(
    call: ToolCalled, code: FailureCode, message: str, *, started: float | None = None, attempts: int = 0
) -> Outcome:
    event = ToolFailed(
        tenant_id=call.tenant_id,
        thread_id=call.thread_id,
        call_id=call.call_id,
        code=code,
        message=_encodable(message)[:MAX_MESSAGE_CHARACTERS],
        latency_ms=None if started is None else _since(started),
    )
    return Outcome(event, attempts)


def _code(error: Exception) -> FailureCode:
    match error:
        case InvalidArgumentsError():
            return "invalid_arguments"
        case ResultTooLargeError():
            return "result_too_large"
        case ToolUnavailableError():
            return "unavailable"
        case _:
            return "error"


def _message(error: Exception) -> str:
    """Type and message, never a traceback. Turnlog's own errors speak for themselves."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - an exception of a tool that cannot even be shown
        text = ""
    if isinstance(error, ToolError | InvalidArgumentsError | ResultTooLargeError | ToolUnavailableError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _encodable(text: str) -> str:
    return text.encode(errors="replace").decode()


def _since(started: float) -> int:
    return round((time.monotonic() - started) * 1000)
