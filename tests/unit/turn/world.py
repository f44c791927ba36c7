"""The world around an owner: clients that send prompts, some twice; people; tools that answer well, badly, late, twice
or unasked; models; definitions that come and go; workers that die at any moment.

All chance is in `choose`, which picks one of several things: whoever gives it decides what history there is.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from schemas.agents import AgentSpec, Limits, RetryPolicy, StopConditions
from schemas.base import TokenCounts
from schemas.completions import TurnError
from schemas.ids import record_id, turn_id_of
from schemas.prompts import (
    HumanReply,
    MessagesAppend,
    MessagesDelete,
    NewMessage,
    PromptSubmitted,
    ThreadCreate,
    ThreadDelete,
    ThreadUpdate,
    ToolApproval,
    TurnCancel,
    TurnOptions,
)
from schemas.tool_calls import ToolFailed, ToolProgress, ToolReturned
from schemas.tools import ToolSpec
from schemas.topics import state_key
from schemas.turns import AwaitingHuman, Calling, Thinking
from services.agents.turn.decide import decide
from services.agents.turn.inputs import AskedTool, CommandArrived, ModelAnswered, ModelFailed, PromptArrived, Tick
from services.agents.turn.state import WantedCall, state_records, wanted_call
from services.runtime.owner.actor import Emit
from tests.unit.turn.owner import Decide, Owner, StateRecords
from tests.unit.turn.reader import Reader, Thread

T = TypeVar("T")

THREADS: tuple[Thread, ...] = (("default", "t-1"), ("default", "t-2"), ("acme", "t-1"))

AGENTS = {
    spec.name: spec
    for spec in (
        AgentSpec(name="plain", tools=["look", "delete"], retries=RetryPolicy(max_attempts=2)),
        AgentSpec(name="careful", tools=["look", "delete"], model="first", fallbacks=["second", "third"]),
        AgentSpec(name="short", tools=["look"], stop=StopConditions(max_steps=2, max_seconds=30)),
        AgentSpec(name="strict", tools=["look"], response_schema={"type": "object"}),
        AgentSpec(name="rude", tools=["look"], on_busy="reject"),
        AgentSpec(name="hasty", tools=["look"], on_busy="interrupt"),
        AgentSpec(name="person", kind="human"),
    )
}
TOOLS = {
    spec.name: spec
    for spec in (ToolSpec(name="look", timeout_seconds=5, queue="slow"), ToolSpec(name="delete", approval=True))
}
USED_UP = TurnError(code="budget", message="used up", retryable=True)
ANSWERS = {
    "object": (),
    "text": (),
    "one": (AskedTool("c0", "look", '{"at": 1}'),),
    "two": (AskedTool("c0", "look", "{}"), AskedTool("c0", "delete", "{}")),
    "three": (AskedTool("", "delete", "{}"), AskedTool("", "look", "{}"), AskedTool("", "look", "{}")),
    "bad": (AskedTool("c0", "nothing", "{}"), AskedTool("c1", "look", "{"), AskedTool("c2", "look", "[]")),
    "both": (AskedTool("c0", "nothing", "{}"), AskedTool("c1", "look", "{}")),
}
FAILURES: dict[str, dict[str, Any]] = {
    "retry": {"code": "provider_error", "retryable": True},
    "slow down": {"code": "rate_limited", "retryable": True, "retry_after_seconds": 7.0},
    "much later": {"code": "rate_limited", "retryable": True, "retry_after_seconds": 1e9},
    "refused": {"code": "auth", "retryable": False},
}
OPTIONS = (
    *[TurnOptions()] * 4,
    TurnOptions(model="mine", limits=Limits(max_steps=1)),
    TurnOptions(tools=["look"], limits=Limits(max_seconds=8)),
)

HAPPENINGS = (
    *["goes_on"] * 8,
    *["prompt"] * 3,
    *["commit"] * 2,
    "crash",
    "prompt_again",
    "cancel",
    "word_on_any_call",
    "reply_to_any_turn",
    "given_up_model_ends",
    "command",
    "read",
    "time_passes",
    "timer_rings_early",
    "definitions_change",
    "budget_changes",
)


class World:
    """Everything that can happen, each a method; the owner and the reader complain of what must not be."""

    def __init__(
        self,
        choose: Callable[[Sequence[Any]], Any],
        *,
        decide: Decide = decide,
        state_records: StateRecords = state_records,
    ) -> None:
        self._choose = choose
        self.owner = Owner(dict(AGENTS), dict(TOOLS), decide=decide, state_records=state_records)
        self.approved: set[str] = set()
        self.reader = Reader(
            interrupting=frozenset({"hasty"}), may_be_called=self.approved, needs_approval=frozenset({"delete"})
        )
        self.offset = 0
        self.prompts: dict[Thread, list[str]] = {thread: [] for thread in THREADS}
        self.turns: list[tuple[Thread, str]] = []
        self.calls: list[tuple[Thread, str]] = []
        """Calls that a model asked for, made or not."""

    def choose(self, options: Sequence[T]) -> T:
        return self._choose(options)

    def happens(self, what: str) -> None:
        getattr(self, what)()
        self.check()

    # Clients and people.

    def prompt(self) -> None:
        thread = self.choose([THREADS[0], *THREADS])
        prompt_id = f"p-{len(self.prompts[thread])}"
        self.prompts[thread].append(prompt_id)
        self.turns.append((thread, turn_id_of(*thread, prompt_id)))
        self._send_prompt(thread, prompt_id, self.choose([*AGENTS, "nobody"]), self.choose(OPTIONS))
        self.owner.take_in("prompts")

    def prompt_again(self) -> None:
        """The same id; what else it says does not count."""
        thread = self.choose(THREADS)
        if self.prompts[thread]:
            self._send_prompt(thread, self.choose(self.prompts[thread]), self.choose(list(AGENTS)), TurnOptions())

    def _send_prompt(self, thread: Thread, prompt_id: str, agent: str, options: TurnOptions) -> None:
        self.offset += 1
        event = PromptSubmitted(**where(thread), agent=agent, content="hi", prompt_id=prompt_id, options=options)
        arrived = PromptArrived(event, prompt_id, turn_id_of(*thread, prompt_id), self.offset)
        self.reader.sequences.setdefault((thread, prompt_id), self.offset)
        self.owner.publish("prompts", thread, arrived)

    def command(self) -> None:
        self.offset += 1
        thread = self.choose(THREADS)
        command: Any = self.choose(
            [
                ThreadCreate(**where(thread)),
                ThreadUpdate(**where(thread), title="new"),
                MessagesAppend(**where(thread), messages=[NewMessage(role="user", content="by the way")] * 2),
                MessagesDelete(**where(thread), message_ids=["m"]),
                ThreadDelete(**where(thread)),
            ]
        )
        self.owner.publish("prompts", thread, CommandArrived(command, record_id("prompts", 0, self.offset)))

    def cancel(self) -> None:
        """A turn that is open, queued, over, or of another thread; or all of the thread."""
        thread = self.choose(THREADS)
        turn_id = self.choose([*[turn_id for _, turn_id in self.turns[-8:]], None])
        self.owner.publish("prompts", thread, TurnCancel(**where(thread), turn_id=turn_id))

    # What a thread waits for.

    def goes_on(self) -> None:
        """What some open turn waits for comes: an answer, a result, a person's word, or the time to try again."""
        if not self.owner.states:
            return
        key = self.choose(sorted(self.owner.states))
        state = self.owner.states[key]
        phase = state.turn.phase
        thread = (state.tenant_id, state.thread_id)
        match phase:
            case Thinking(retry_at=None):
                call = wanted_call(state)
                assert call is not None
                self._model_ends(key, call)
            case Thinking():
                assert phase.retry_at is not None
                self.owner.pass_time(max(0.0, (phase.retry_at - self.owner.at).total_seconds()))
            case Calling():
                call, good = self.choose(phase.calls), self.choose([True, False])
                if call.state == "approval":
                    if good:
                        self.approved.add(call.call_id)
                    word = ToolApproval(**where(thread), call_id=call.call_id, approved=good)
                    self.owner.publish("prompts", thread, word)
                elif good:
                    result = ToolReturned(**where(thread), call_id=call.call_id, result={"n": 1})
                    self.owner.publish("results", thread, result)
                else:
                    failure = ToolFailed(**where(thread), call_id=call.call_id, message="no")
                    self.owner.publish("results", thread, failure)
            case _:
                reply = HumanReply(**where(thread), turn_id=state.turn.turn_id, content="me")
                self.owner.publish("prompts", thread, reply)
        for log in self.choose([("results", "prompts"), ("results",), ()]):
            self.owner.take_in(log)

    def _model_ends(self, key: str, call: WantedCall) -> tuple[Emit, ...]:
        kind = self.choose([*ANSWERS, *ANSWERS, *FAILURES])
        ids: Any = {"turn_id": call.turn_id, "step": call.step, "attempt": call.attempt, "provider": "p", "model": "m"}
        if kind in FAILURES:
            failure = ModelFailed(**ids, message="no", usage=TokenCounts(input_tokens=3), **FAILURES[kind])
            return self.owner.happens(key, failure)
        answer = ModelAnswered(
            **ids,
            text={"text": "done", "object": '{"a": 1}'}.get(kind, ""),
            usage=TokenCounts(input_tokens=3, output_tokens=2),
            finish_reason="tool_calls" if ANSWERS[kind] else "stop",
            latency_ms=1,
            tool_calls=ANSWERS[kind],
        )
        emits = self.owner.happens(key, answer)
        for event in (emit.event for emit in emits):
            if event.type == "message.added" and event.role == "assistant":
                thread = (event.tenant_id, event.thread_id)
                self.calls += [(thread, part.call_id) for part in event.parts if part.type == "tool_call"]
        return emits

    # What no thread waits for.

    def word_on_any_call(self) -> None:
        """Any call that was ever asked for: one that nobody approved, one that was answered, one of an ended turn."""
        thread, call_id = self.choose([*self.calls[-6:], (THREADS[0], "unknown")])
        base: Any = {**where(thread), "call_id": call_id}
        log, event = self.choose(
            [
                ("results", ToolReturned(**base, result={"n": 1})),
                ("results", ToolFailed(**base, message="no")),
                ("results", ToolProgress(**base, fraction=0.5)),
                ("prompts", ToolApproval(**base, approved=True)),
                ("prompts", ToolApproval(**base, approved=False)),
            ]
        )
        if isinstance(event, ToolApproval) and event.approved:
            self.approved.add(call_id)
        self.owner.publish(log, thread, event)

    def reply_to_any_turn(self) -> None:
        if self.turns:
            thread, turn_id = self.choose(self.turns[-8:])
            self.owner.publish("prompts", thread, HumanReply(**where(thread), turn_id=turn_id, content="me"))

    def given_up_model_ends(self) -> None:
        given_up = [(key, call) for key, call in self.owner.calls if wanted_call(self.owner.states.get(key)) != call]
        if given_up:
            key, call = self.choose(given_up[-6:])
            assert self._model_ends(key, call) == (), "an answer that nobody waits for was taken"

    # Time, definitions, the log, workers.

    def read(self) -> None:
        log, limit = self.choose([(log, limit) for log in ("prompts", "results") for limit in (1, 1_000_000)])
        self.owner.take_in(log, limit)

    def time_passes(self) -> None:
        self.owner.pass_time(self.choose([0.5, 5, 36, 700]))

    def timer_rings_early(self) -> None:
        self.owner.ring()
        emits = self.owner.happens(state_key(*self.choose(THREADS)), Tick())
        assert emits == (), "a timer rang early and something came of it"

    def definitions_change(self) -> None:
        """An agent or a tool goes, or an agent has fewer fallbacks, until the next change."""
        gone = self.choose([None, "plain", "hasty", "look", "delete", "fallbacks"])
        agents = dict(AGENTS)
        if gone == "fallbacks":
            agents["careful"] = AGENTS["careful"].model_copy(update={"fallbacks": []})
        self.owner.agents = {name: spec for name, spec in agents.items() if name != gone}
        self.owner.tools = {name: spec for name, spec in TOOLS.items() if name != gone}

    def budget_changes(self) -> None:
        """It is used up, or raised."""
        self.owner.used_up = self.choose([USED_UP, None, None])

    def commit(self) -> None:
        known = len(self.owner.committed)
        self.owner.commit()
        for emit in self.owner.committed[known:]:
            self.reader.read(emit)

    def crash(self) -> None:
        self.owner.crash()

    # What always holds, and how it ends.

    def check(self) -> None:
        """Whatever is open waits for something, and every prompt that was read is waiting or has one end."""
        emits = [*self.owner.committed, *self.owner.group]
        called = {each.event_id for each in emits if each.event.type == "tool.called"}
        fates: Counter[Any] = Counter(
            (each.event.tenant_id, each.event.thread_id, each.event.prompt_id)
            for each in emits
            if each.topic == "completions"
        )
        for state in self.owner.states.values():
            fates.update((state.tenant_id, state.thread_id, each.prompt_id) for each in (state.turn, *state.queue))
            match state.turn.phase:
                case Thinking(retry_at=retry_at):
                    assert (wanted_call(state) is None) == (retry_at is not None), "a turn waits for nothing"
                case Calling(calls=calls):
                    assert calls, "a turn waits for no call"
                    running = {call.call_id for call in calls if call.state == "running"}
                    assert running <= called, "a turn waits for a call that was never made"
                case AwaitingHuman():
                    assert state.turn.agent == "person", "a turn waits for a person where there is none"
        read = self.owner.logs["prompts"][: self.owner.read["prompts"]]
        taken = {(*thread, event.prompt_id) for thread, event in read if isinstance(event, PromptArrived)}
        assert fates == Counter(taken), "a prompt is lost, or has two fates"

    def end(self, *, helping: bool) -> None:
        """Models answer, tools return and people decide, or time alone passes: all turns come to an end."""
        owner = self.owner
        owner.agents, owner.tools, owner.used_up = dict(AGENTS), dict(TOOLS), None
        self._choose = _first
        self.crash()
        owner.take_in("prompts")
        for _ in range(20 * (len(self.turns) + 1)):
            if not owner.states:
                break
            if helping:
                self.goes_on()
            else:
                owner.pass_time(601)
        assert not owner.states, "a turn does not come to its end"
        self.commit()
        assert not owner.records, "an idle thread leaves something behind"
        assert not self.reader.open, "a turn is open though its thread is idle"
        for thread, prompts in self.prompts.items():
            assert set(self.reader.ended[thread]) == set(prompts), "a prompt without an end"


def where(thread: Thread) -> Any:
    return {"tenant_id": thread[0], "thread_id": thread[1]}


def _first(options: Sequence[T]) -> T:
    return options[0]
