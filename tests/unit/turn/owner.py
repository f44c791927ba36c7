"""The owner of a partition without Kafka: two logs that are read, groups that are committed, workers that die.

What is decided becomes visible with its group. A crash drops the group and what is in flight; the next worker restores
the states from the committed records, as JSON, and reads the logs on from the committed positions, results first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from pydantic import BaseModel

from schemas.completions import TurnError
from schemas.envelope import decode_event, encode_event
from schemas.topics import TURNS, state_key
from services.agents.turn import state as turn_state
from services.agents.turn.decide import decide
from services.agents.turn.inputs import Decision, Environment, PromptArrived, Recovered, ThreadInput, Tick
from services.agents.turn.state import ThreadState, WantedCall, next_due, wanted_call
from services.runtime.owner.actor import Emit
from tests.unit.turn.reader import Thread
from tests.unit.turn.story import NOON

Decide = Callable[[ThreadState | None, ThreadInput, Environment], Decision]
StateRecords = Callable[[ThreadState | None, ThreadState | None], Sequence[tuple[str, BaseModel | None]]]
LOGS = ("results", "prompts")


@dataclass
class Owner:
    """Checks at every decision that it is a function, that it can be repeated from the log, and that timers ring."""

    agents: dict[str, Any]
    tools: dict[str, Any]
    decide: Decide = decide
    state_records: StateRecords = turn_state.state_records
    used_up: TurnError | None = None
    """The budget of everybody, if it is used up."""
    at: datetime = NOON
    logs: dict[str, list[tuple[Thread, Any]]] = field(default_factory=lambda: {name: [] for name in LOGS})
    read: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LOGS, 0))
    states: dict[str, ThreadState] = field(default_factory=dict)
    calls: list[tuple[str, WantedCall]] = field(default_factory=list)
    """Model calls that this worker has begun, given-up ones among them."""
    group: list[Emit] = field(default_factory=list)
    before: dict[str, ThreadState | None] = field(default_factory=dict)
    """The states of the group's threads as they were when it began."""
    committed: list[Emit] = field(default_factory=list)
    positions: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LOGS, 0))
    records: dict[str, bytes] = field(default_factory=dict)
    """What is left on `turns`."""
    decisions: int = 0

    # The logs.

    def publish(self, log: str, thread: Thread, event: Any) -> None:
        self.logs[log].append((thread, event))

    def take_in(self, log: str, limit: int = 1_000_000) -> None:
        """Reads on. A prompt id that came before is held back, as the worker's window of recent prompts does."""
        for offset in range(self.read[log], min(len(self.logs[log]), self.read[log] + limit)):
            thread, event = self.logs[log][offset]
            self.read[log] = offset + 1
            key = state_key(*thread)
            if isinstance(event, PromptArrived):
                earlier = self.logs[log][:offset]
                seen = any(
                    isinstance(each, PromptArrived) and each.prompt_id == event.prompt_id and where == thread
                    for where, each in earlier
                )
                state = self.states.get(key)
                known = [state.turn.turn_id, *(each.turn_id for each in state.queue)] if state else []
                if seen and event.turn_id not in known:
                    continue
                if seen:
                    assert self.happens(key, event) == (), "a prompt that is known already was taken in again"
                    continue
            self.happens(key, event)

    # Deciding.

    @property
    def environment(self) -> Environment:
        return Environment(
            self.at,
            agent=lambda _, name, __: self.agents.get(name),
            tool=lambda _, name: self.tools.get(name),
            budget=lambda _, __: self.used_up,
            cost=lambda usage: Decimal(usage.input_tokens + usage.output_tokens) / 100,
            model=lambda named: ("acme", named or "m-1"),
        )

    def happens(self, key: str, event: ThreadInput) -> tuple[Emit, ...]:
        """One decision, made three times: as it is, again, and on the state as another worker would read it."""
        self.decisions += 1
        before = self.states.get(key)
        looked = repr(before)
        decision = self.decide(before, event, self.environment)
        assert repr(before) == looked, "a decision changes what it was given"
        assert self.decide(before, event, self.environment) == decision, "the same input gives another decision"
        replayed = self.decide(restored(before), event, self.environment)
        assert replayed == decision, "a decision differs after a restore"
        self.before.setdefault(key, before)
        if decision.state is None:
            self.states.pop(key, None)
        else:
            self.states[key] = decision.state
        self.group += decision.emits
        wanted = wanted_call(decision.state)
        if wanted is not None and (key, wanted) not in self.calls:
            self.calls.append((key, wanted))
        return decision.emits

    # Time.

    def ring(self) -> None:
        """Rings every timer that is due. One that is still due afterwards would ring for ever."""
        for key, state in list(self.states.items()):
            due = next_due(state)
            assert due is not None, "an open turn has no timer"
            if due <= self.at:
                self.happens(key, Tick())
                after = next_due(self.states.get(key))
                assert after is None or after > self.at, "a timer rings and nothing comes of it"

    def pass_time(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)
        self.ring()

    # Commits and crashes.

    def commit(self) -> None:
        for key, old in self.before.items():
            for record_key, value in self.state_records(old, self.states.get(key)):
                if value is None:
                    assert record_key in self.records, "a tombstone of nothing"
                    del self.records[record_key]
                else:
                    self.records[record_key] = encode_event(value)
        self.committed += self.group
        self.positions = dict(self.read)
        self.group, self.before = [], {}
        assert self._restored() == self.states, "a restore would not give back the states"

    def crash(self) -> None:
        """The worker dies and another takes over: states, then what was in flight, then the results that waited."""
        self.group, self.before, self.calls = [], {}, []
        self.read = dict(self.positions)
        self.states = self._restored()
        for key, state in self.states.items():
            if (wanted := wanted_call(state)) is not None:
                self.calls.append((key, wanted))
        for key in list(self.states):
            self.happens(key, Recovered())
        self.take_in("results")

    def _restored(self) -> dict[str, ThreadState]:
        return turn_state.restore_states([decode_event(TURNS, value, {}) for value in self.records.values()])


def restored(state: ThreadState | None) -> ThreadState | None:
    """The state as another worker reads it from the log."""
    if state is None:
        return None
    values = [
        decode_event(TURNS, encode_event(value), {}) for _, value in turn_state.state_records(None, state) if value
    ]
    return turn_state.restore_states(values)[state.key]
