"""The turn as an actor of the partition owner: `decide` for what happens, a model call for what it wants."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import structlog
from opentelemetry.trace import Span, SpanKind

from schemas.agents import AgentSpec
from schemas.base import TokenCounts
from schemas.completions import TurnFailed, TurnRejected
from schemas.http import ContextHandlerRequest, ContextRequest, ContextResponse, MessageView
from schemas.journal import MessageAdded, TurnClosed, TurnOpened
from schemas.parts import text_of
from schemas.tokens import estimated_tokens
from schemas.tools import ToolSpec
from schemas.topics import state_key
from schemas.turns import AwaitingHuman, Thinking
from schemas.usage import UsageRecorded
from services.agents.budgets import BudgetGate, Claim
from services.agents.chat import chat_messages, function_specs, sent_tokens
from services.agents.context_handlers import ContextHandlers
from services.agents.deltas import DeltaEvent, DeltaStream
from services.agents.failures import CallFailed
from services.agents.intake import Intake
from services.agents.memory import MemoryClient
from services.agents.model import ModelAnswer, ModelClient, ModelFailure, ModelRequest
from services.agents.turn.closing import model_ref
from services.agents.turn.decide import decide
from services.agents.turn.inputs import (
    AskedTool,
    ClockJumped,
    Decision,
    Environment,
    InFlight,
    ModelAnswered,
    ModelFailed,
    Recovered,
    ThreadInput,
    Tick,
)
from services.agents.turn.state import (
    StateRecord,
    ThreadState,
    WantedCall,
    next_due,
    restore_states,
    spender,
    state_records,
    wanted_call,
)
from services.agents.turn.traces import traced, traceparent_of
from services.runtime import metrics
from services.runtime.errors import UnavailableError
from services.runtime.kafka import Record
from services.runtime.owner.actor import JournalPosition, Outcome, Prepared
from services.runtime.pricing.book import PriceBook
from services.runtime.pricing.sums import amounts_of_one
from services.runtime.registry import Registry
from services.runtime.telemetry import Traces, failed

log = structlog.get_logger(__name__)

MEMORY_RETRY_SECONDS = 0.5


@dataclass(slots=True)
class _Working:
    """What the model sees of a turn while this worker has it: the past once, then each message as it is decided."""

    turn_id: str
    whole: bool
    """Whether this worker has decided every message of the turn; after a takeover memory gives them."""
    past: list[MessageView] | None = None
    own: list[MessageAdded | MessageView] = field(default_factory=list[MessageAdded | MessageView])


@dataclass(frozen=True, slots=True)
class _Sent:
    """A model call from the moment on when its request is known."""

    provider: str
    model: str
    input_tokens: int
    stream: DeltaStream

    @property
    def in_flight(self) -> InFlight:
        stream = self.stream
        usage = TokenCounts(input_tokens=self.input_tokens, output_tokens=estimated_tokens(stream.characters))
        return InFlight(self.provider, stream.answering or self.model, usage, stream.written)


class TurnActor:
    """Runs turns. Decisions are pure; this class feeds them registries and time, and makes their model calls."""

    tick = Tick()
    recovered = Recovered()

    def __init__(
        self,
        *,
        intake: Intake,
        memory: MemoryClient,
        model: ModelClient,
        context_handlers: ContextHandlers,
        agents: Registry[AgentSpec],
        tools: Registry[ToolSpec],
        budgets: BudgetGate,
        prices: Callable[[], PriceBook],
        default_model: str,
        call_seconds: float,
        send_delta: Callable[[DeltaEvent], None],
        traces: Traces,
    ) -> None:
        self._intake = intake
        self._memory = memory
        self._model = model
        self._context_handlers = context_handlers
        self._agents = agents
        self._tools = tools
        self._budgets = budgets
        self._prices = prices
        self._default_model = default_model
        self._call_seconds = call_seconds
        self._send_delta = send_delta
        self._traces = traces
        self._working: dict[str, _Working] = {}
        self._sent: dict[str, _Sent] = {}
        self._waiting_for_context = 0

    async def taken(self, partition: int, recent: Sequence[Record], journal_end: int) -> None:
        self._intake.taken(partition, recent, journal_end)

    async def prepare(self, topic: str, records: Sequence[Record], journal_end: int) -> list[Prepared]:
        return await self._intake.prepare(topic, records, journal_end)

    def decide(self, state: ThreadState | None, happened: ThreadInput, at: datetime) -> Decision:
        return traced(decide(state, happened, self._environment(at, self._in_flight(state))), state, happened)

    def state_records(self, before: ThreadState | None, after: ThreadState | None) -> Sequence[StateRecord]:
        return state_records(before, after)

    def restore(self, values: Sequence[Any]) -> dict[str, ThreadState]:
        return restore_states(values)

    def wanted_call(self, state: ThreadState | None) -> WantedCall | None:
        return wanted_call(state)

    def next_due(self, state: ThreadState | None) -> datetime | None:
        return next_due(state)

    def clock_jumped(self, by: timedelta) -> ClockJumped:
        return ClockJumped(by)

    def decided(self, key: str, outcome: Outcome[ThreadState]) -> None:
        """Adds the messages that were decided to what the model will see of the turn."""
        for emit in outcome.emits:
            event = emit.event
            if isinstance(event, TurnOpened):
                self._working[key] = _Working(event.turn_id, whole=True)
            elif isinstance(event, MessageAdded) and event.turn_id is not None:
                working = self._working.get(key)
                if working is not None and working.turn_id == event.turn_id:
                    working.own.append(event)
            elif isinstance(event, TurnClosed):
                metrics.TURNS.labels(event.outcome).inc()
            elif isinstance(event, TurnRejected | TurnFailed) and event.error.code == "budget":
                metrics.BUDGET_STOPS.labels(event.type).inc()
            elif isinstance(event, UsageRecorded) and event.outcome == "ok":
                self._budgets.spent(event)
        self._budgets.in_flight(key, self._claim(outcome.state))
        if outcome.state is None:
            self.forgotten(key)

    def _claim(self, state: ThreadState | None) -> Claim | None:
        """What the open turn of a thread may spend; nothing of a person's."""
        if state is None or isinstance(state.turn.phase, AwaitingHuman):
            return None
        model = model_ref(state, self._environment(datetime.now(UTC))) or self._default_model
        return Claim(spender(state), *self._model.resolve(model), state.turn.context_tokens)

    def forgotten(self, key: str) -> None:
        self._working.pop(key, None)
        self._sent.pop(key, None)
        self._budgets.in_flight(key, None)

    async def call(self, state: ThreadState, journal_position: JournalPosition) -> ThreadInput:
        """Asks the model for the next step. Whatever goes wrong with it becomes a ModelFailed.

        While memory is down the turn waits: that is no attempt of the model. The turn's deadline cancels the wait.
        """
        turn, phase = state.turn, state.turn.phase
        assert isinstance(phase, Thinking)
        environment = self._environment(datetime.now(UTC))
        model = model_ref(state, environment) or self._default_model
        with self._traces.span(
            f"chat {model}",
            kind=SpanKind.CLIENT,
            traceparent=traceparent_of(state),
            attributes=_asked(state, model, phase.attempt),
        ) as calling:
            try:
                outcome = await self._ask(state, model, journal_position)
            except Exception as error:
                log.exception("model_call_crashed", turn_id=turn.turn_id)
                outcome = ModelFailure("", model, "provider_error", repr(error), retryable=False, latency_ms=0)
            _describe(calling, outcome)
        metrics.MODEL_CALLS.labels(outcome.provider, "ok" if isinstance(outcome, ModelAnswer) else outcome.code).inc()
        metrics.MODEL_SECONDS.labels(outcome.provider).observe(outcome.latency_ms / 1000)
        return _as_input(state, phase.attempt, outcome)

    async def _ask(
        self, state: ThreadState, model: str, journal_position: JournalPosition
    ) -> ModelAnswer | ModelFailure:
        turn = state.turn
        spec = self._agents.get(turn.agent, tenant_id=state.tenant_id, version=turn.agent_version)
        if spec is None:
            return ModelFailure("", model, "unknown_agent", f"agent {turn.agent!r} is gone", False, 0)
        names = turn.options.tools if turn.options.tools is not None else spec.tools
        tools = [tool for name in names if (tool := self._tools.get(name, tenant_id=state.tenant_id))]
        instructions = turn.options.instructions if turn.options.instructions is not None else spec.instructions
        try:
            messages = await self._messages(state, spec, instructions, journal_position)
        except CallFailed as failure:
            return ModelFailure("", model, failure.code, failure.message, failure.retryable, 0)
        left = (turn.deadline_at - datetime.now(UTC)).total_seconds()
        request = ModelRequest(
            model=model,
            messages=chat_messages(instructions, messages),
            tools=function_specs(tools),
            call=spec.call | (turn.options.call or {}),
            response_schema=turn.options.response_schema or spec.response_schema,
            timeout_seconds=max(0.001, min(self._call_seconds, left)),
            tenant_id=state.tenant_id,
        )
        stream = DeltaStream(state.tenant_id, state.thread_id, turn, spec.stream, self._send_delta)
        self._sent[state.key] = _Sent(*self._model.resolve(model), sent_tokens(request.messages), stream)
        try:
            outcome = await self._model.attempt(request, stream)
        except BaseException:
            stream.abort("cancelled")
            raise
        if isinstance(outcome, ModelFailure):
            stream.abort(outcome.code)
        else:
            stream.finish()
        return outcome

    async def _messages(
        self, state: ThreadState, spec: AgentSpec, instructions: str, journal_position: JournalPosition
    ) -> list[MessageAdded | MessageView]:
        """The past once a turn, and the turn's own messages; after a takeover those come from memory too.

        Raises CallFailed when the agent's context handler gives no past.
        """
        key = state_key(state.tenant_id, state.thread_id)
        turn = state.turn
        working = self._working.get(key)
        if working is None or working.turn_id != turn.turn_id:
            working = self._working[key] = _Working(turn.turn_id, whole=False)
        if working.past is None:
            position = await journal_position()
            own = list(working.own)
            answer = await self._context(
                ContextRequest(
                    tenant_id=state.tenant_id,
                    thread_id=state.thread_id,
                    turn_id=turn.turn_id,
                    user_id=turn.user_id,
                    query=next((text_of(each.parts) for each in own if each.role == "user"), None),
                    options=turn.options.context or spec.context,
                    min_offset=position,
                    partition=self._intake.partition_of(state.thread_id),
                )
            )
            remembered = [each.message for each in answer.messages]
            past = [message for message in remembered if message.turn_id != turn.turn_id]
            if spec.context_handler is not None:
                request = ContextHandlerRequest(
                    tenant_id=state.tenant_id,
                    thread_id=state.thread_id,
                    turn_id=turn.turn_id,
                    user_id=turn.user_id,
                    agent=turn.agent,
                    agent_version=turn.agent_version,
                    instructions=instructions,
                    messages=answer.messages,
                )
                past = await self._context_handlers.handle(spec.context_handler, request)
            working.past = past
            if not working.whole:
                decided = {message.message_id for message in working.own}
                earlier = [m for m in remembered if m.turn_id == turn.turn_id and m.message_id not in decided]
                working.own = [*earlier, *working.own]
        return [*working.past, *working.own]

    async def _context(self, request: ContextRequest) -> ContextResponse:
        """Waits for memory as long as it takes; the first of the turns that wait says why."""
        waits = False
        try:
            while True:
                try:
                    return await self._memory.context(request)
                except UnavailableError as error:
                    if not waits and not self._waiting_for_context:
                        log.warning("context_waits", turn_id=request.turn_id, reason=str(error))
                    self._waiting_for_context += not waits
                    waits = True
                await asyncio.sleep(MEMORY_RETRY_SECONDS)
                await self._memory.until_reachable()
        finally:
            self._waiting_for_context -= waits

    def _in_flight(self, state: ThreadState | None) -> InFlight | None:
        """The call that the state waits for, if this worker has sent it."""
        sent = self._sent.get(state.key) if state is not None else None
        return sent.in_flight if sent is not None and wanted_call(state) == sent.stream.call else None

    def _environment(self, at: datetime, in_flight: InFlight | None = None) -> Environment:
        return Environment(
            at=at,
            in_flight=in_flight,
            model=lambda named: self._model.resolve(named or self._default_model),
            agent=lambda tenant, name, version: self._agents.get(name, tenant_id=tenant, version=version),
            tool=lambda tenant, name: self._tools.get(name, tenant_id=tenant),
            cost=lambda usage: amounts_of_one(usage, self._prices()).cost.get("USD", Decimal(0)),
            budget=lambda spender, opening: self._budgets.closed(spender, at, opening=opening),
        )


def _as_input(state: ThreadState, attempt: int, outcome: ModelAnswer | ModelFailure) -> ModelAnswered | ModelFailed:
    turn = state.turn
    if isinstance(outcome, ModelFailure):
        return ModelFailed(
            turn.turn_id,
            turn.step,
            attempt,
            provider=outcome.provider,
            model=outcome.model,
            code=outcome.code,
            message=outcome.message,
            retryable=outcome.retryable,
            usage=outcome.usage,
            retry_after_seconds=outcome.retry_after_seconds,
            latency_ms=outcome.latency_ms,
        )
    return ModelAnswered(
        turn.turn_id,
        turn.step,
        attempt,
        provider=outcome.provider,
        model=outcome.model,
        text=outcome.text,
        usage=outcome.usage,
        finish_reason=outcome.finish_reason,
        latency_ms=outcome.latency_ms,
        reasoning=outcome.reasoning,
        tool_calls=tuple(AskedTool(call.call_id, call.name, call.arguments) for call in outcome.tool_calls),
        first_token_ms=outcome.first_token_ms,
        estimated=outcome.estimated,
    )


def _asked(state: ThreadState, model: str, attempt: int) -> dict[str, str | int]:
    """By OpenTelemetry's semantic conventions for generative AI; ours are `turnlog.*`."""
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": model,
        "gen_ai.agent.name": state.turn.agent,
        "gen_ai.conversation.id": state.thread_id,
        "turnlog.tenant_id": state.tenant_id,
        "turnlog.turn_id": state.turn.turn_id,
        "turnlog.step": state.turn.step,
        "turnlog.attempt": attempt,
    }


def _describe(calling: Span, outcome: ModelAnswer | ModelFailure) -> None:
    """What is known after the call: its provider, the model's name there, and what it spent."""
    if not calling.is_recording():
        return
    calling.update_name(f"chat {outcome.model}")
    calling.set_attribute("gen_ai.request.model", outcome.model)
    calling.set_attribute("gen_ai.usage.input_tokens", outcome.usage.input_tokens)
    calling.set_attribute("gen_ai.usage.output_tokens", outcome.usage.output_tokens)
    if outcome.provider:
        calling.set_attribute("gen_ai.provider.name", outcome.provider)
    if isinstance(outcome, ModelFailure):
        failed(calling, outcome.code)
    else:
        calling.set_attribute("gen_ai.response.finish_reasons", [outcome.finish_reason])
