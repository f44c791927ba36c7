"""The smallest actor that uses all that a partition owner offers: a thread that counts, calls and rings.

Each input has one effect, a numbered message on the journal, so that a lost or a doubled input shows. Commands come as
the text of a prompt:

    count       the next number
    call        a number, then a call, whose answer is the number after it
    spin:N      a number, then N calls, one after the other
    ring:S      a number, and another one S seconds later
    end         a number, and the thread is idle: its count begins anew

A tool result is a number too, and lets a thread that waits to ring wait no longer. Run as a process of its own, which
may be killed: `python -m tests.support.counting_actor`, with the settings of `CountingSettings` in the environment.
"""

import asyncio
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from schemas.envelope import RecordRejectedError, decode_event, header_map
from schemas.http import ComponentHealth
from schemas.ids import EPOCH, derived_id
from schemas.journal import MessageAdded
from schemas.parts import TextPart, parts_of, text_of
from schemas.prompts import PromptSubmitted
from schemas.tool_calls import ToolReturned
from schemas.topics import DEAD_LETTERS, MESSAGES, PROMPTS, TOOL_RESULTS, Topic, state_key
from schemas.turns import ActiveTurn, Calling, Thinking, TurnState
from services.runtime.dead_letters import rejected_record
from services.runtime.errors import UnavailableError
from services.runtime.failpoints import Failpoints
from services.runtime.kafka import KafkaClients, Record
from services.runtime.logs import configure_logs
from services.runtime.owner.actor import Emit, JournalPosition, Prepared, StateRecord
from services.runtime.owner.worker import OwnerWorker
from services.runtime.service import run_service
from services.runtime.settings import RuntimeSettings, load_settings

GROUP = "counting"

TOPICS: Mapping[str, Topic] = {topic.name: topic for topic in (PROMPTS, TOOL_RESULTS)}

IDLE = Calling(calls=[])


@dataclass(frozen=True)
class Commanded:
    tenant_id: str
    thread_id: str
    of: str
    command: str


@dataclass(frozen=True)
class Answered:
    of: str
    attempt: int


@dataclass(frozen=True)
class Sign:
    """`tick` and `recovered` carry nothing."""

    name: str


@dataclass(frozen=True)
class Counted:
    state: TurnState | None
    emits: tuple[Emit, ...] = ()


class CountingActor:
    """Decides purely; what a test wants to know or to hold up beside that stands in its fields."""

    tick = Sign("tick")
    recovered = Sign("recovered")

    def __init__(self) -> None:
        self.gates: dict[str, asyncio.Event] = {}
        """A thread's call waits for its gate, where it has one."""
        self.calls: list[tuple[str, int]] = []
        """Thread and attempt of every call that was begun."""
        self.positions: list[int] = []
        """Of the journal, as the calls were told."""
        self.open: set[str] = set()
        self.most_open = 0
        self.away: str | None = None
        """What preparing needs and does not get."""
        self.faults = 0
        """How often preparing still fails as nobody has foreseen."""
        self.prepared: list[int] = []
        """Records of each call of `prepare`."""

    async def taken(self, partition: int, recent: Sequence[Record], journal_end: int) -> None: ...

    async def prepare(self, topic: str, records: Sequence[Record], journal_end: int) -> list[Prepared]:
        if self.away is not None:
            raise UnavailableError(self.away)
        if self.faults:
            self.faults -= 1
            raise ZeroDivisionError("a fault of the actor")
        self.prepared.append(len(records))
        return [_prepared(TOPICS[topic], record) for record in records]

    def decide(self, state: TurnState | None, happened: Any, at: datetime) -> Counted:
        match happened:
            case Commanded():
                return _command(state, happened, at)
            case Answered():
                return _answer(state, happened, at)
        if state is None or not isinstance(state.turn.phase, Thinking):
            return Counted(state)
        phase = state.turn.phase
        if happened == self.tick and phase.retry_at is not None and phase.retry_at <= at:
            return _next(state, "rang", state.turn.prompt_id, at, phase=IDLE)
        if happened == self.recovered and phase.retry_at is None:
            return Counted(_with(state, phase=phase.model_copy(update={"attempt": phase.attempt + 1})))
        return Counted(state)

    def traceparent(self, state: TurnState) -> str:
        return f"00-{'1' * 32}-{'2' * 16}-01"

    def state_records(self, before: TurnState | None, after: TurnState | None) -> Sequence[StateRecord]:
        known = after or before
        return [] if before == after or known is None else [(_key(known), after)]

    def restore(self, values: Sequence[Any]) -> dict[str, TurnState]:
        return {_key(state): state for state in values}

    def wanted_call(self, state: TurnState | None) -> Hashable | None:
        if state is None or not isinstance(state.turn.phase, Thinking) or state.turn.phase.retry_at is not None:
            return None
        return state.turn.prompt_id, state.turn.phase.attempt

    def next_due(self, state: TurnState | None) -> datetime | None:
        return state.turn.phase.retry_at if state and isinstance(state.turn.phase, Thinking) else None

    def clock_jumped(self, by: timedelta) -> Sign:
        return Sign("clock jumped")

    def decided(self, key: str, outcome: Any) -> None:
        if outcome.state is None:
            self.open.discard(key)
        else:
            self.open.add(key)
        self.most_open = max(self.most_open, len(self.open))

    def forgotten(self, key: str) -> None:
        self.open.discard(key)

    async def call(self, state: TurnState, journal_position: JournalPosition) -> Answered:
        assert isinstance(state.turn.phase, Thinking)
        self.calls.append((state.thread_id, state.turn.phase.attempt))
        self.positions.append(await journal_position())
        if gate := self.gates.get(state.thread_id):
            await gate.wait()
        return Answered(state.turn.prompt_id, state.turn.phase.attempt)


def _prepared(topic: Topic, record: Record) -> Prepared:
    try:
        event = decode_event(topic, record.value, header_map(record.headers))
    except RecordRejectedError as error:
        letter = rejected_record(source=GROUP, record=record, error=error, at=datetime.now(UTC))
        emit = Emit(DEAD_LETTERS.name, letter, letter.rejection_id, key=GROUP, partition=0)
        return Prepared(record.offset + 1, emits=(emit,))
    match event:
        case PromptSubmitted():
            happened = Commanded(
                event.tenant_id, event.thread_id, event.prompt_id or "", text_of(parts_of(event.content))
            )
        case ToolReturned():
            happened = Commanded(event.tenant_id, event.thread_id, event.call_id, "tell")
        case _:
            return Prepared(record.offset + 1)
    return Prepared(record.offset + 1, state_key(event.tenant_id, event.thread_id), happened)


def _command(state: TurnState | None, asked: Commanded, at: datetime) -> Counted:
    state = state or _idle(asked, at)
    verb, _, argument = asked.command.partition(":")
    if verb == "end":
        return Counted(None, _next(state, "ended", asked.of, at).emits)
    if verb == "tell":
        return _next(state, "told", asked.of, at, phase=IDLE)
    if verb == "count":
        return _next(state, "counted", asked.of, at)
    thinking = Thinking(attempt=1, tries=int(argument) if verb == "spin" else 1, started_at=at)
    if verb == "ring":
        thinking = thinking.model_copy(update={"retry_at": at + timedelta(seconds=float(argument))})
    return _next(state, "counted", asked.of, at, phase=thinking, prompt_id=asked.of)


def _answer(state: TurnState | None, answered: Answered, at: datetime) -> Counted:
    if state is None or not isinstance(state.turn.phase, Thinking) or state.turn.prompt_id != answered.of:
        return Counted(state)
    phase = state.turn.phase
    if phase.attempt != answered.attempt:
        return Counted(state)
    if phase.tries > 1:
        again = phase.model_copy(update={"tries": phase.tries - 1, "attempt": phase.attempt + 1})
        return _next(state, "spun", f"{answered.of} {phase.tries}", at, phase=again)
    return _next(state, "answered", answered.of, at, phase=IDLE)


def _next(state: TurnState, text: str, of: str, at: datetime, **changes: Any) -> Counted:
    number = state.turn.step + 1
    attempt = state.turn.phase.attempt if isinstance(state.turn.phase, Thinking) else 0
    event_id = derived_id(state.tenant_id, state.thread_id, text, of, at=EPOCH)
    message = MessageAdded(
        tenant_id=state.tenant_id,
        thread_id=state.thread_id,
        message_id=event_id,
        step=number,
        role="assistant",
        parts=[TextPart(text=text)],
        metadata={"of": of, "attempt": attempt},
        created_at=at,
    )
    return Counted(_with(state, step=number, **changes), (Emit(MESSAGES.name, message, event_id),))


def _with(state: TurnState, **changes: Any) -> TurnState:
    return state.model_copy(update={"turn": state.turn.model_copy(update=changes)})


def _idle(asked: Commanded, at: datetime) -> TurnState:
    turn = ActiveTurn(
        turn_id=derived_id(asked.thread_id, at=EPOCH),
        prompt_id=asked.of,
        agent="counter",
        agent_version="1",
        opened_at=at,
        deadline_at=at,
        step=0,
        phase=IDLE,
    )
    return TurnState(tenant_id=asked.tenant_id, thread_id=asked.thread_id, turn=turn)


def _key(state: TurnState) -> str:
    return state_key(state.tenant_id, state.thread_id)


class CountingSettings(RuntimeSettings):
    failpoints: str = ""
    instance_id: str | None = None
    session_timeout_ms: int = 10_000
    max_open: int = 1_000


def counting_worker(settings: CountingSettings, actor: CountingActor) -> OwnerWorker[TurnState]:
    return OwnerWorker(
        actor=actor,
        group_id=f"{settings.topic_prefix}{GROUP}",
        clients=KafkaClients(settings, client_id=GROUP),
        settings=settings,
        failpoints=Failpoints(settings.failpoints),
        max_open=settings.max_open,
        session_timeout_ms=settings.session_timeout_ms,
        instance_id=settings.instance_id,
    )


class CountingService:
    """A worker as a service of its own."""

    name = "counting"

    def __init__(self, settings: CountingSettings) -> None:
        self._worker = counting_worker(settings, CountingActor())

    async def start(self) -> None:
        await self._worker.start()

    async def stop(self) -> None:
        await self._worker.stop(grace_seconds=10)

    async def readiness(self) -> dict[str, ComponentHealth]:
        return {"partitions": self._worker.health()}


def main() -> None:
    settings = load_settings(CountingSettings)
    configure_logs(settings)
    asyncio.run(run_service(lambda: CountingService(settings)))


if __name__ == "__main__":
    main()
