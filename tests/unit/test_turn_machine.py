"""Histories of threads drawn at random: prompts, answers, failures, tools, approvals, cancels, timers and crashes.

The machine plays the partition owner. What is decided waits in a group until it is committed; a crash drops the group,
restores the states from what was committed, and delivers the records of the log again, as a new owner does.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from schemas.agents import AgentSpec, RetryPolicy, StopConditions
from schemas.base import TokenCounts
from schemas.completions import TurnError
from schemas.ids import turn_id_of
from schemas.prompts import (
    HumanReply,
    MessagesAppend,
    NewMessage,
    PromptSubmitted,
    ThreadDelete,
    ThreadUpdate,
    ToolApproval,
    TurnCancel,
)
from schemas.tool_calls import ToolFailed, ToolReturned
from schemas.tools import ToolSpec
from schemas.topics import state_key
from schemas.turns import AwaitingHuman, Calling, Thinking
from services.agents.turn.decide import decide
from services.agents.turn.inputs import (
    AskedTool,
    CommandArrived,
    Environment,
    ModelAnswered,
    ModelFailed,
    PromptArrived,
    Recovered,
    ThreadInput,
    Tick,
)
from services.agents.turn.queue import size_of
from services.agents.turn.state import ThreadState, next_due, restore_states, state_records, wanted_call

TENANT = "default"
THREADS = ("t-1", "t-2", "t-3")
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)

AGENTS = {
    spec.name: spec
    for spec in (
        AgentSpec(name="plain", tools=["look", "delete"], retries=RetryPolicy(max_attempts=2)),
        AgentSpec(name="careful", tools=["look", "delete"], approval=["delete"], fallbacks=["other"]),
        AgentSpec(name="short", tools=["look"], stop=StopConditions(max_steps=2, max_seconds=30)),
        AgentSpec(name="rude", tools=["look"], on_busy="reject"),
        AgentSpec(name="hasty", tools=["look"], on_busy="interrupt"),
        AgentSpec(name="person", kind="human"),
    )
}
TOOLS = {name: ToolSpec(name=name, description=name, parameters={"type": "object"}) for name in ("look", "delete")}

TERMINAL = {"turn.completed", "turn.failed", "turn.cancelled", "turn.rejected"}


@dataclass
class Group:
    """Decided and not committed yet."""

    emits: list[Any] = field(default_factory=list)
    records: list[tuple[str, Any]] = field(default_factory=list)
    inputs: list[tuple[str, ThreadInput]] = field(default_factory=list)
    """Records of the log, which come again when the group is lost."""


class Threads(RuleBasedStateMachine):
    """What is below `committed_` is what readers of committed records see."""

    @initialize()
    def begin(self) -> None:
        self.now = BEGIN
        self.offset = 0
        self.states: dict[str, ThreadState] = {}
        self.group = Group()
        self.committed_states: dict[str, Any] = {}
        self.committed_emits: list[Any] = []
        self.accepted: set[tuple[str, str]] = set()
        self.taken_in: set[tuple[str, str]] = set()
        self.committed_taken_in: set[tuple[str, str]] = set()
        self.called: list[Any] = []
        self.deleted: set[str] = set()
        self.used_up: TurnError | None = None

    # What happens.

    @rule(thread=st.sampled_from(THREADS), agent=st.sampled_from([*AGENTS, "nobody"]), again=st.booleans())
    def prompt(self, thread: str, agent: str, again: bool) -> None:
        if not again or not self.offset:
            self.offset += 1
        prompt_id = f"p-{self.offset}"
        event = PromptSubmitted(tenant_id=TENANT, thread_id=thread, agent=agent, content="hello", prompt_id=prompt_id)
        self.accepted.add((thread, prompt_id))
        turn_id = turn_id_of(TENANT, thread, prompt_id)
        self.deliver(thread, PromptArrived(event, prompt_id, turn_id, self.offset))

    @rule(thread=st.sampled_from(THREADS), kind=st.sampled_from(["append", "update", "delete"]))
    def command(self, thread: str, kind: str) -> None:
        self.offset += 1
        event: Any
        match kind:
            case "append":
                message = NewMessage(role="user", content="by the way")
                event = MessagesAppend(tenant_id=TENANT, thread_id=thread, messages=[message])
            case "update":
                event = ThreadUpdate(tenant_id=TENANT, thread_id=thread, title="new")
            case _:
                event = ThreadDelete(tenant_id=TENANT, thread_id=thread)
        self.deliver(thread, CommandArrived(event, f"record-{self.offset}"))

    @rule(
        data=st.data(),
        answer=st.sampled_from(["text", "one", "two", "unknown", "not json", "retry", "fail", "slow down"]),
    )
    def model_ends(self, data: st.DataObject, answer: str) -> None:
        wanted = [(key, call) for key, state in self.states.items() if (call := wanted_call(state))]
        if not wanted:
            return
        key, call = data.draw(st.sampled_from(wanted))
        ids = {"turn_id": call.turn_id, "step": call.step, "attempt": call.attempt}
        if answer in ("retry", "fail", "slow down"):
            wait = 7.0 if answer == "slow down" else None
            failure = ModelFailed(
                **ids,
                provider="p",
                model="m",
                code="rate_limited" if wait else "provider_error",
                message="no",
                retryable=answer != "fail",
                retry_after_seconds=wait,
            )
            self.happen(key, failure)
            return
        asked = {
            "one": (AskedTool("c0", "look", '{"at": 1}'),),
            "two": (AskedTool("c0", "look", "{}"), AskedTool("c1", "delete", "{}")),
            "unknown": (AskedTool("c0", "nothing", "{}"), AskedTool("c1", "look", "{}")),
            "not json": (AskedTool("c0", "look", "{"),),
        }.get(answer, ())
        answered = ModelAnswered(
            **ids,
            provider="p",
            model="m",
            text="" if asked else "done",
            usage=TokenCounts(input_tokens=3, output_tokens=2),
            finish_reason="tool_calls" if asked else "stop",
            latency_ms=1,
            tool_calls=asked,
        )
        self.happen(key, answered)

    @precondition(lambda self: self.called)
    @rule(data=st.data(), good=st.booleans())
    def tool_ends(self, data: st.DataObject, good: bool) -> None:
        """Any call that was ever made: late and repeated results are among these."""
        call = data.draw(st.sampled_from(self.called))
        base = {"tenant_id": TENANT, "thread_id": call.thread_id, "call_id": call.call_id}
        event = (
            ToolReturned(**base, result=1) if good else ToolFailed(**base, code="error", message="no", retryable=False)
        )
        self.deliver(call.thread_id, event)

    @rule(data=st.data(), approved=st.booleans())
    def approval(self, data: st.DataObject, approved: bool) -> None:
        waiting = [
            (state.thread_id, call.call_id)
            for state in self.states.values()
            if isinstance(state.turn.phase, Calling)
            for call in state.turn.phase.calls
        ]
        if not waiting:
            return
        thread, call_id = data.draw(st.sampled_from(waiting))
        event = ToolApproval(tenant_id=TENANT, thread_id=thread, call_id=call_id, approved=approved)
        self.deliver(thread, event)

    @rule(data=st.data())
    def human_answers(self, data: st.DataObject) -> None:
        waiting = [each for each in self.states.values() if isinstance(each.turn.phase, AwaitingHuman)]
        if not waiting:
            return
        state = data.draw(st.sampled_from(waiting))
        event = HumanReply(tenant_id=TENANT, thread_id=state.thread_id, turn_id=state.turn.turn_id, content="me")
        self.deliver(state.thread_id, event)

    @rule(data=st.data(), which=st.sampled_from(["open", "queued"]))
    def cancel(self, data: st.DataObject, which: str) -> None:
        turns = [
            (state.thread_id, turn_id)
            for state in self.states.values()
            for turn_id in ([state.turn.turn_id] if which == "open" else [each.turn_id for each in state.queue])
        ]
        if turns:
            thread, turn_id = data.draw(st.sampled_from(turns))
            self.deliver(thread, TurnCancel(tenant_id=TENANT, thread_id=thread, turn_id=turn_id))

    @rule(seconds=st.sampled_from([0.5, 5, 40, 4000]))
    def time_passes(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        for key, state in list(self.states.items()):
            due = next_due(state)
            if due is not None and due <= self.now:
                self.happen(key, Tick())

    @rule(used_up=st.booleans())
    def budget_changes(self, used_up: bool) -> None:
        self.used_up = TurnError(code="budget", message="used up", retryable=True) if used_up else None

    @rule()
    def commit(self) -> None:
        self.committed_emits += self.group.emits
        self.committed_taken_in |= self.taken_in
        for key, value in self.group.records:
            if value is None:
                self.committed_states.pop(key, None)
            else:
                self.committed_states[key] = value
        self.group = Group()

    @rule()
    def crash(self) -> None:
        lost, self.group, self.taken_in = self.group, Group(), set()
        self.states = restore_states(list(self.committed_states.values()))
        self.called = [each.event for each in self.committed_emits if each.event.type == "tool.called"]
        for key in list(self.states):
            self.happen(key, Recovered())
        for thread, event in lost.inputs:
            self.deliver(thread, event)

    # How it is decided.

    def deliver(self, thread: str, event: ThreadInput) -> None:
        """A record of the log. A prompt id that was taken in before is held back by the worker's window of those."""
        if isinstance(event, PromptArrived):
            if (thread, event.prompt_id) in self.taken_in | self.committed_taken_in:
                return
            self.taken_in.add((thread, event.prompt_id))
        self.group.inputs.append((thread, event))
        self.happen(state_key(TENANT, thread), event)

    def happen(self, key: str, event: ThreadInput) -> None:
        before = self.states.get(key)
        frozen = repr(before)
        decision = decide(before, event, self.environment)
        assert repr(before) == frozen, "a decision changes nothing that it was given"
        assert decide(before, event, self.environment) == decision, "the same input gives the same decision"
        if decision.state is None:
            self.states.pop(key, None)
        else:
            self.states[key] = decision.state
        self.group.emits += decision.emits
        self.group.records += state_records(before, decision.state)
        self.called += [each.event for each in decision.emits if each.event.type == "tool.called"]

    @property
    def environment(self) -> Environment:
        return Environment(
            at=self.now,
            agent=lambda _, name, __: AGENTS.get(name),
            tool=lambda _, name: TOOLS.get(name),
            budget=lambda _, __: self.used_up,
            cost=lambda usage: Decimal(usage.input_tokens + usage.output_tokens) / 100,
            model=lambda named: ("acme", named or "m-1"),
        )

    @property
    def emits(self) -> list[Any]:
        return [*self.committed_emits, *self.group.emits]

    # What always holds.

    @invariant()
    def an_open_turn_waits_for_something(self) -> None:
        for state in self.states.values():
            due = next_due(state)
            assert due is not None
            phase = state.turn.phase
            if isinstance(phase, Thinking):
                assert wanted_call(state) is not None or phase.retry_at is not None
            elif isinstance(phase, Calling):
                assert phase.calls

    @invariant()
    def the_records_give_back_the_states(self) -> None:
        written = dict(self.committed_states)
        for key, value in self.group.records:
            if value is None:
                written.pop(key, None)
            else:
                written[key] = value
        assert restore_states(list(written.values())) == self.states

    @invariant()
    def a_queue_weighs_what_is_in_it(self) -> None:
        for state in self.states.values():
            assert state.queue.bytes == sum(map(size_of, state.queue))

    @invariant()
    def every_event_has_an_id_of_its_own(self) -> None:
        ids = Counter(each.event_id for each in self.emits)
        assert not [each for each, count in ids.items() if count > 1]

    @invariant()
    def a_prompt_has_one_end_and_it_is_not_in_the_middle(self) -> None:
        ended = Counter(
            (each.event.thread_id, each.event.prompt_id) for each in self.emits if each.event.type in TERMINAL
        )
        assert all(count == 1 for count in ended.values()), ended
        waiting = [(state.thread_id, state.turn.prompt_id) for state in self.states.values()]
        waiting += [(state.thread_id, each.prompt_id) for state in self.states.values() for each in state.queue]
        assert Counter([*ended, *waiting]) == Counter(self.accepted)

    @invariant()
    def each_threads_journal_is_a_legal_history(self) -> None:
        journals: dict[str, list[Any]] = defaultdict(list)
        for emit in self.emits:
            if emit.topic == "messages":
                journals[emit.event.thread_id].append(emit.event)
        for thread, journal in journals.items():
            check_journal(journal)
            state = self.states.get(state_key(TENANT, thread))
            open_turns = [each.turn_id for each in journal if each.type == "turn.opened"]
            closed = {each.turn_id for each in journal if each.type == "turn.closed"}
            assert [each for each in open_turns if each not in closed] == ([state.turn.turn_id] if state else [])

    @invariant()
    def a_step_is_metered_once(self) -> None:
        steps = Counter(
            (each.event.turn_id, each.event.step)
            for each in self.emits
            if each.topic == "messages" and each.event.type == "message.added" and each.event.role == "assistant"
            if each.event.model is not None
        )
        usage = [each.event for each in self.emits if each.topic == "usage"]
        assert Counter((each.turn_id, each.step) for each in usage if each.outcome == "ok") == steps
        assert len({each.usage_id for each in usage}) == len(usage)
        lost = [each for each in usage if each.outcome == "lost"]
        assert not any(each.billable for each in lost)
        assert all(each.estimated and each.input_tokens and each.provider and each.model for each in lost)

    def teardown(self) -> None:
        """Everything that is open comes to its end when the model answers, tools return and time passes."""
        if not hasattr(self, "states"):
            return
        self.crash()
        for _ in range(100):
            if not self.states:
                break
            self.time_passes(5000)
        assert not self.states
        self.commit()
        assert not self.committed_states, "an idle thread leaves nothing behind"
        self.a_prompt_has_one_end_and_it_is_not_in_the_middle()


def check_journal(journal: Sequence[Any]) -> None:
    """A thread's journal: a turn opens, its steps follow each other, every call gets its result, it closes."""
    turn: str | None = None
    seen: set[str] = set()
    step, pending = 0, set()
    for event in journal:
        match event.type:
            case "turn.opened":
                assert turn is None, "a turn opens while another one is open"
                assert event.turn_id not in seen, "a turn opens twice"
                turn, step, pending = event.turn_id, 0, set()
                seen.add(turn)
            case "turn.closed":
                assert event.turn_id == turn, "a turn closes that is not open"
                turn = None
            case "turn.waiting":
                assert event.turn_id == turn
            case "message.added" if event.turn_id is not None:
                assert event.turn_id == turn, "a message of a turn that is not open"
                if event.role == "assistant":
                    assert not pending, "a step begins before the results of the last one"
                    assert event.step == step + 1, "steps follow each other"
                    step = event.step
                    pending = {part.call_id for part in event.parts if part.type == "tool_call"}
                elif event.role == "tool":
                    for part in event.parts:
                        assert part.call_id in pending, "a result that nobody asked for, or a second one"
                        pending.discard(part.call_id)
            case _:
                pass


TestThreads = Threads.TestCase
TestThreads.settings = settings(
    max_examples=120, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)


def events(*kinds: tuple[str, dict[str, Any]]) -> list[Any]:
    return [type("Event", (), {"type": kind, "turn_id": "1", **fields})() for kind, fields in kinds]


@pytest.mark.parametrize(
    ("journal", "complaint"),
    [
        (events(("turn.opened", {}), ("turn.opened", {"turn_id": "2"})), "another one is open"),
        (events(("turn.opened", {}), ("turn.closed", {}), ("turn.opened", {})), "opens twice"),
        (events(("turn.closed", {})), "not open"),
        (events(("turn.opened", {}), ("message.added", {"role": "assistant", "step": 2, "parts": []})), "follow"),
    ],
)
def test_the_check_of_a_journal_finds_what_is_wrong(journal: list[Any], complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        check_journal(journal)


def test_the_machine_finds_a_decision_that_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that can't fail proves nothing: here a result that is late is written all the same."""
    machine = Threads()
    machine.begin()
    machine.prompt("t-1", "plain", False)
    lost: Callable[[], None] = machine.a_prompt_has_one_end_and_it_is_not_in_the_middle
    lost()
    machine.states.clear()
    with pytest.raises(AssertionError):
        lost()
