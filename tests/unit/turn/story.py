"""A thread told as a story: what happens to it, line by line, and what was written because of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from pydantic import BaseModel

from schemas.agents import AgentSpec
from schemas.base import TokenCounts
from schemas.budgets import Spender
from schemas.completions import ErrorCode, TurnError
from schemas.envelope import decode_event, encode_event
from schemas.ids import record_id, turn_id_of
from schemas.prompts import HumanReply, PromptSubmitted, ToolApproval, TurnCancel
from schemas.tool_calls import ToolFailed, ToolReturned
from schemas.tools import ToolSpec
from schemas.topics import COMPLETIONS, MAX_RECORD_BYTES, MESSAGES, TOOL_CALLS, TURNS, USAGE, Topic
from schemas.turns import Calling, PendingCall, TurnQueued, TurnState
from services.agents.turn.decide import decide
from services.agents.turn.inputs import (
    AskedTool,
    CommandArrived,
    Decision,
    Environment,
    InFlight,
    ModelAnswered,
    ModelFailed,
    PromptArrived,
    Recovered,
    ThreadCommand,
    ThreadInput,
    Tick,
)
from services.agents.turn.state import ThreadState, WantedCall, next_due, restore_states, state_records, wanted_call
from services.runtime.owner.actor import Emit

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
TERMINAL = ("turn.completed", "turn.failed", "turn.cancelled", "turn.rejected")
NOTHING = TokenCounts()
SPENT = TokenCounts(input_tokens=10, output_tokens=3)

TOOLS = tuple(ToolSpec(name=name) for name in ("look", "delete"))
ASSISTANT = AgentSpec(name="assistant", tools=["look", "delete"])


def asks(name: str = "look", arguments: str = "{}", provider_call_id: str = "c") -> AskedTool:
    return AskedTool(provider_call_id, name, arguments)


def as_read(event: BaseModel, topic: Topic) -> Any:
    """An event as its readers find it on the log."""
    return decode_event(topic, encode_event(event), {}, max_bytes=MAX_RECORD_BYTES)


def topic_of(name: str) -> Topic:
    if name.startswith(f"{TOOL_CALLS.name}."):
        return TOOL_CALLS
    return next(each for each in (MESSAGES, TOOL_CALLS, COMPLETIONS, USAGE) if each.name == name)


@dataclass
class Story:
    """One thread, its agents and tools, a clock. Everything written is read back, as JSON, at each line."""

    agents: Iterable[AgentSpec] = (ASSISTANT,)
    tools: Iterable[ToolSpec] = TOOLS
    at: datetime = NOON
    thread_id: str = "t-1"
    tenant_id: str = "default"
    state: ThreadState | None = None
    emits: list[Emit] = field(default_factory=list)
    records: dict[str, TurnState | TurnQueued] = field(default_factory=dict)
    """What is left on `turns`."""
    offset: int = 0
    in_flight: InFlight | None = None
    """What the worker knows of the model call that it has sent."""
    used_up: TurnError | None = None
    """The budget of everybody, if it is used up."""
    asked_budgets: list[tuple[Spender, bool]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.agents = {spec.name: spec for spec in self.agents}
        self.tools = {spec.name: spec for spec in self.tools}

    # What happens.

    def happens(self, event: ThreadInput) -> list[Any]:
        """Decides, and gives the events of this line alone."""
        before = self.state
        decision = self.decides(event)
        self.state = decision.state
        self.emits += decision.emits
        for emit in decision.emits:
            as_read(emit.event, topic_of(emit.topic))
        for key, value in state_records(before, decision.state):
            if value is None:
                self.records.pop(key, None)
            else:
                self.records[key] = as_read(value, TURNS)
        return [emit.event for emit in decision.emits]

    def decides(self, event: ThreadInput) -> Decision:
        return decide(self.state, event, self.environment)

    def prompt(
        self, content: Any = "hello", prompt_id: str | None = None, agent: str = "assistant", **fields: Any
    ) -> list[Any]:
        return self.happens(self.prompted(content, prompt_id, agent, **fields))

    def prompted(
        self, content: Any = "hello", prompt_id: str | None = None, agent: str = "assistant", **fields: Any
    ) -> PromptArrived:
        self.offset += 1
        prompt_id = prompt_id or f"p-{self.offset}"
        event = PromptSubmitted(
            **self.identity, agent=agent, content=content, prompt_id=prompt_id, user_id="u-1", **fields
        )
        turn_id = turn_id_of(self.tenant_id, self.thread_id, prompt_id)
        return PromptArrived(as_prompt(event), prompt_id, turn_id, self.offset)

    def answers(self, text: str = "", *tools: AskedTool, call: WantedCall | None = None, **fields: Any) -> list[Any]:
        return self.happens(self.answered(text, *tools, call=call, **fields))

    def answered(self, text: str = "", *tools: AskedTool, call: WantedCall | None = None, **fields: Any) -> Any:
        call = call or self.wants
        given: dict[str, Any] = {
            "usage": SPENT,
            "finish_reason": "tool_calls" if tools else "stop",
            "latency_ms": 120,
            "provider": "acme",
            "model": "m-1",
        }
        return ModelAnswered(call.turn_id, call.step, call.attempt, text=text, tool_calls=tools, **(given | fields))

    def model_fails(
        self,
        code: ErrorCode = "provider_error",
        *,
        retryable: bool = True,
        retry_after: float | None = None,
        message: str = "no",
        usage: TokenCounts = NOTHING,
    ) -> list[Any]:
        call = self.wants
        failure = ModelFailed(
            call.turn_id,
            call.step,
            call.attempt,
            provider="acme",
            model="m-1",
            code=code,
            message=message,
            retryable=retryable,
            usage=usage,
            retry_after_seconds=retry_after,
        )
        return self.happens(failure)

    def tool_returns(self, call: PendingCall | str, result: Any = "done") -> list[Any]:
        return self.happens(ToolReturned(**self.identity, call_id=_id(call), result=result))

    def tool_fails(self, call: PendingCall | str, message: str, code: str = "error") -> list[Any]:
        return self.happens(ToolFailed(**self.identity, call_id=_id(call), code=code, message=message))

    def approves(self, call: PendingCall | str) -> list[Any]:
        return self.happens(ToolApproval(**self.identity, call_id=_id(call), approved=True))

    def denies(self, call: PendingCall | str, reason: str | None = None, user_id: str | None = None) -> list[Any]:
        event = ToolApproval(**self.identity, call_id=_id(call), approved=False, reason=reason, user_id=user_id)
        return self.happens(event)

    def human_replies(self, content: str = "me", turn_id: str | None = None) -> list[Any]:
        turn_id = turn_id or self.turn.turn_id
        return self.happens(HumanReply(**self.identity, turn_id=turn_id, content=content, user_id="u-2"))

    def cancels(self, turn_id: str | None = None, reason: str | None = None) -> list[Any]:
        return self.happens(TurnCancel(**self.identity, turn_id=turn_id, reason=reason))

    def command(self, command: ThreadCommand) -> list[Any]:
        self.offset += 1
        return self.happens(CommandArrived(command, record_id("prompts", 0, self.offset)))

    def waits(self, seconds: float) -> list[Any]:
        """Time passes, and the timer rings if it is due."""
        self.at += timedelta(seconds=seconds)
        due = next_due(self.state)
        return self.happens(Tick()) if due is not None and due <= self.at else []

    def crashes(self) -> list[Any]:
        """Another worker takes the thread over, with what it finds on `turns`."""
        self.in_flight = None
        self.state = restore_states(self.records.values()).get(self.key)
        return self.happens(Recovered()) if self.state is not None else []

    def apply(self, spec: AgentSpec) -> None:
        self.agents = {**self.agents, spec.name: spec}

    def model_writes(self, text: str, usage: TokenCounts = SPENT) -> None:
        """So much has come of the answer."""
        self.in_flight = InFlight("acme", "m-1", usage, text)

    # What there is now.

    @property
    def identity(self) -> dict[str, Any]:
        return {"tenant_id": self.tenant_id, "thread_id": self.thread_id}

    @property
    def key(self) -> str:
        return self.thread_id if self.tenant_id == "default" else f"{self.tenant_id}/{self.thread_id}"

    @property
    def environment(self) -> Environment:
        def budget(spender: Spender, opening: bool) -> TurnError | None:
            self.asked_budgets.append((spender, opening))
            return self.used_up

        return Environment(
            self.at,
            agent=lambda _, name, __: self.agents.get(name),
            tool=lambda _, n: self.tools.get(n),
            budget=budget,
            cost=lambda usage: Decimal(usage.input_tokens + usage.output_tokens) / 100,
            model=lambda named: ("acme", (named or "m-1").removeprefix("acme/")),
            in_flight=self.in_flight,
        )

    @property
    def turn(self) -> Any:
        assert self.state is not None
        return self.state.turn

    @property
    def wants(self) -> WantedCall:
        """The model call that should be in flight."""
        call = wanted_call(self.state)
        assert call is not None
        return call

    @property
    def calls(self) -> list[PendingCall]:
        assert isinstance(self.turn.phase, Calling)
        return self.turn.phase.calls

    @property
    def queue(self) -> list[str]:
        return [each.prompt_id for each in self.state.queue] if self.state else []

    # What was written.

    def written(self, *types: str) -> list[Any]:
        return [emit.event for emit in self.emits if emit.event.type in types]

    @property
    def usage(self) -> list[Any]:
        return self.written("usage.recorded")

    @property
    def ends(self) -> list[Any]:
        """Terminal events."""
        return self.written(*TERMINAL)

    @property
    def results(self) -> list[Any]:
        """Tool results in the journal."""
        return [part for each in self.written("message.added") if each.role == "tool" for part in each.parts]


def as_prompt(event: PromptSubmitted) -> PromptSubmitted:
    return PromptSubmitted.model_validate_json(encode_event(event))


def types(events: Sequence[Any]) -> list[str]:
    return [each.type for each in events]


def texts(events: Sequence[Any]) -> list[str]:
    """The first text of each message."""
    return [each.parts[0].text for each in events if each.type == "message.added"]


def another(spec: AgentSpec = ASSISTANT, **changes: Any) -> AgentSpec:
    """The agent, otherwise."""
    return spec.model_copy(update=changes)


def _id(call: PendingCall | str) -> str:
    return call if isinstance(call, str) else call.call_id
