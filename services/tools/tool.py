"""What a tool is, whatever runs behind it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from schemas.base import JsonObject
from schemas.tools import ToolSpec

Progress = Callable[[str | None, float | None], None]


def no_progress(message: str | None, fraction: float | None) -> None:
    """For calls that nobody watches."""


@dataclass(frozen=True, slots=True)
class ToolContext:
    """Which call this is. A tool that has a parameter of this type gets it; the model does not see the parameter.

    `call_id` is the idempotency key: after a crash the same call is made again with the same id, never with another.
    """

    call_id: str
    tenant_id: str
    thread_id: str
    turn_id: str
    user_id: str | None = None
    send_progress: Progress = field(default=no_progress, repr=False, compare=False)

    def progress(self, message: str | None = None, fraction: float | None = None) -> None:
        """Tells whoever watches the turn how far the call is; `fraction` is between 0 and 1. May be called from any
        thread, never blocks, and is lost without harm."""
        self.send_progress(message, fraction)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Which failures are tried again within the call's time limit, and how soon.

    An exception is tried again when it is one of `on`, or has an attribute `retryable` that is true.
    """

    retries: int = 0
    on: tuple[type[BaseException], ...] = ()
    first_delay_seconds: float = 0.2
    longest_delay_seconds: float = 10.0

    def delay_seconds(self, error: BaseException, attempt: int) -> float | None:
        """How long to wait after the failed attempt number `attempt` (from 1); None: that was the last one."""
        if attempt > self.retries:
            return None
        if not isinstance(error, self.on) and getattr(error, "retryable", False) is not True:
            return None
        asked = getattr(error, "retry_after_seconds", None)
        if isinstance(asked, int | float):
            return max(0.0, float(asked))
        return min(self.longest_delay_seconds, self.first_delay_seconds * 2.0 ** (attempt - 1))


@dataclass(frozen=True, slots=True)
class Invocation:
    """One call with its arguments checked. `call` may be called once per attempt; it gives the result, or an
    awaitable of it; `blocking` ones are called in a thread."""

    call: Callable[[], Any]
    blocking: bool = False


class Tool(Protocol):
    """Something that a model can call."""

    @property
    def spec(self) -> ToolSpec: ...

    @property
    def retry(self) -> RetryPolicy: ...

    def bind(self, arguments: JsonObject, context: ToolContext) -> Invocation:
        """Checks the arguments. Raises InvalidArgumentsError; calls nothing."""
        ...
