"""What can happen to a thread, and what a decision gives back."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal

from schemas.agents import AgentSpec
from schemas.base import TokenCounts
from schemas.budgets import Spender
from schemas.completions import ErrorCode, TurnError
from schemas.prompts import (
    HumanReply,
    MessagesAppend,
    MessagesDelete,
    PromptSubmitted,
    ThreadCreate,
    ThreadDelete,
    ThreadUpdate,
    ToolApproval,
    TurnCancel,
)
from schemas.tool_calls import ToolFailed, ToolProgress, ToolReturned
from schemas.tools import ToolSpec
from schemas.usage import UsageRecorded
from services.agents.turn.state import ThreadState
from services.runtime.owner.actor import Emit


@dataclass(frozen=True, slots=True)
class PromptArrived:
    prompt: PromptSubmitted
    prompt_id: str
    turn_id: str
    sequence: int
    """The prompt's offset: prompts of a thread are queued in the order of the log."""
    traceparent: str | None = None


ThreadCommand = ThreadCreate | ThreadUpdate | ThreadDelete | MessagesAppend | MessagesDelete


@dataclass(frozen=True, slots=True)
class CommandArrived:
    """A change of the thread that is no turn."""

    command: ThreadCommand
    record_id: str


@dataclass(frozen=True, slots=True)
class AskedTool:
    """A tool call as the model wrote it."""

    provider_call_id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ModelAnswered:
    """The model call of an attempt came to its end."""

    turn_id: str
    step: int
    attempt: int
    provider: str
    model: str
    text: str
    usage: TokenCounts
    finish_reason: str
    latency_ms: int
    reasoning: str = ""
    tool_calls: tuple[AskedTool, ...] = ()
    first_token_ms: int | None = None
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class ModelFailed:
    """An attempt gave no answer. `retryable`: the same call may succeed later."""

    turn_id: str
    step: int
    attempt: int
    provider: str
    model: str
    code: ErrorCode
    message: str
    retryable: bool
    usage: TokenCounts = field(default_factory=TokenCounts)
    retry_after_seconds: float | None = None
    latency_ms: int = 0


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed. What is due follows from the state."""


@dataclass(frozen=True, slots=True)
class ClockJumped:
    """The clock went forward by itself: it was set, or the machine slept. Nobody has had that time."""

    by: timedelta


@dataclass(frozen=True, slots=True)
class Recovered:
    """A new owner took the thread over; a model call that was in flight is lost."""


ThreadInput = (
    PromptArrived
    | CommandArrived
    | TurnCancel
    | ToolApproval
    | HumanReply
    | ToolReturned
    | ToolFailed
    | ToolProgress
    | ModelAnswered
    | ModelFailed
    | Tick
    | ClockJumped
    | Recovered
)


@dataclass(frozen=True, slots=True)
class InFlight:
    """A model call that has not ended, as far as this worker knows it; its tokens are estimated."""

    provider: str
    model: str
    usage: TokenCounts
    written: str = ""
    """The text of the answer so far."""


@dataclass(frozen=True, slots=True)
class Environment:
    """What a decision may look at besides the state: the time, the registries, budgets and prices as they are now."""

    at: datetime
    agent: Callable[[str, str, str | None], AgentSpec | None]
    """Tenant, name and version (None: the current one) to the definition; a version that is gone: the current one."""
    tool: Callable[[str, str], ToolSpec | None]
    """Tenant and name to the definition."""
    budget: Callable[[Spender, bool], TurnError | None]
    """Who spends, and whether to open a turn, to the budget that is used up; None when there is room."""
    cost: Callable[[UsageRecorded], Decimal]
    """What the provider takes for a model call, in USD; 0 when nobody knows."""
    model: Callable[[str | None], tuple[str, str]]
    """What a turn asks for (None: nothing by name) to the provider and the model's name there."""
    in_flight: InFlight | None = None
    """The model call that the state waits for, or whose failure is decided; None when this worker has not sent it."""


@dataclass(frozen=True, slots=True)
class Decision:
    state: ThreadState | None
    emits: tuple[Emit, ...] = ()
