"""State of a thread that has work left, its records on `turns`, and what should be running for it."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime

from schemas.budgets import Spender
from schemas.topics import state_key
from schemas.turns import ActiveTurn, Calling, QueuedPrompt, Thinking, TurnQueued, TurnState
from services.agents.turn.queue import PromptQueue


@dataclass(frozen=True, slots=True)
class ThreadState:
    """A thread with an open turn and the prompts that wait for its end. An idle thread has no state."""

    tenant_id: str
    thread_id: str
    turn: ActiveTurn
    queue: PromptQueue = field(default_factory=PromptQueue)

    @property
    def key(self) -> str:
        return state_key(self.tenant_id, self.thread_id)

    def with_turn(self, **changes: object) -> "ThreadState":
        return replace(self, turn=self.turn.model_copy(update=changes))


def spender(state: ThreadState) -> Spender:
    """Whom the open turn spends for."""
    turn = state.turn
    return Spender(state.tenant_id, turn.user_id, turn.agent, state.thread_id, turn.team_id)


@dataclass(frozen=True, slots=True)
class WantedCall:
    """The model call that a thread's state asks for. Another attempt is another call."""

    turn_id: str
    step: int
    attempt: int


def wanted_call(state: ThreadState | None) -> WantedCall | None:
    """The model call that should be in flight, if any."""
    if state is None or not isinstance(state.turn.phase, Thinking) or state.turn.phase.retry_at is not None:
        return None
    return WantedCall(state.turn.turn_id, state.turn.step, state.turn.phase.attempt)


def next_due(state: ThreadState | None) -> datetime | None:
    """When the thread wants a `Tick` if nothing happens before."""
    if state is None:
        return None
    due = [state.turn.deadline_at]
    match state.turn.phase:
        case Thinking(retry_at=datetime() as retry_at):
            due.append(retry_at)
        case Calling(calls=calls):
            due += [call.deadline_at for call in calls if call.state == "running"]
        case _:
            pass
    return min(due)


StateRecord = tuple[str, TurnState | TurnQueued | None]
"""Key and value on `turns`; None is the tombstone."""


def state_records(before: ThreadState | None, after: ThreadState | None) -> list[StateRecord]:
    """What must be written so that a restore gives `after`. A queued prompt is written once and removed once."""
    records: list[StateRecord] = []
    if after is None:
        if before is not None:
            records.append((before.key, None))
    elif before is None or before.turn is not after.turn:
        value = TurnState(tenant_id=after.tenant_id, thread_id=after.thread_id, turn=after.turn)
        records.append((after.key, value))
    known = after or before
    if known is not None:
        gone, come = (before.queue if before else PromptQueue()).gone_and_come(after.queue if after else PromptQueue())
        records += [(_queue_key(known, prompt), None) for prompt in gone]
        records += [
            (
                _queue_key(known, prompt),
                TurnQueued(tenant_id=known.tenant_id, thread_id=known.thread_id, prompt=prompt),
            )
            for prompt in come
        ]
    return records


def restore_states(records: Iterable[TurnState | TurnQueued]) -> dict[str, ThreadState]:
    """States by key, from the values that are left on `turns`."""
    turns: dict[str, TurnState] = {}
    queues: dict[str, list[QueuedPrompt]] = {}
    for record in records:
        key = state_key(record.tenant_id, record.thread_id)
        if isinstance(record, TurnState):
            turns[key] = record
        else:
            queues.setdefault(key, []).append(record.prompt)
    return {
        key: ThreadState(turn.tenant_id, turn.thread_id, turn.turn, _in_order(queues.get(key, [])))
        for key, turn in turns.items()
    }


def _in_order(prompts: Iterable[QueuedPrompt]) -> PromptQueue:
    return PromptQueue(sorted(prompts, key=lambda prompt: prompt.sequence))


def _queue_key(state: ThreadState, prompt: QueuedPrompt) -> str:
    return f"{state.tenant_id}/{state.thread_id}/{prompt.turn_id}"
