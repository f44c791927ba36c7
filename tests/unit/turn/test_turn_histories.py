"""Histories of threads drawn at random, and what holds in every one of them: see `world.py` and `reader.py`."""

import random
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from schemas.tool_calls import ToolFailed, ToolReturned
from schemas.tools import ToolSpec
from services.agents.turn.decide import decide
from services.agents.turn.inputs import Decision, Environment, PromptArrived, Recovered, ThreadInput, Tick
from services.agents.turn.queue import PromptQueue
from services.agents.turn.state import ThreadState, state_records
from tests.unit.turn.owner import Decide
from tests.unit.turn.world import HAPPENINGS, World


class Histories(RuleBasedStateMachine):
    """One rule, so that every run has something of everything."""

    @initialize()
    def begin(self) -> None:
        self.world = World(lambda options: self.data.draw(st.sampled_from(options)))

    @rule(what=st.sampled_from(HAPPENINGS), data=st.data())
    def happens(self, what: str, data: st.DataObject) -> None:
        self.data = data
        self.world.happens(what)

    def teardown(self) -> None:
        if hasattr(self, "world") and sys.exc_info()[0] is None:  # Begun, and nothing found yet.
            self.world.end(helping=self.world.owner.decisions % 2 == 0)


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=100,
    stateful_step_count=50,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


def live(seed: int, steps: int, **owner: Any) -> World:
    """A long history from a seed."""
    chance = random.Random(seed)
    world = World(chance.choice, **owner)
    for _ in range(steps):
        world.happens(chance.choice(HAPPENINGS))
    world.end(helping=seed % 2 == 0)
    return world


@pytest.mark.parametrize("seed", range(40))
def test_a_long_history_holds_together(seed: int) -> None:
    live(seed, steps=250)


def test_the_histories_have_something_of_everything() -> None:
    """Else what holds in them says little."""
    seen: Counter[str] = Counter()
    for seed in range(20):
        world = live(seed, steps=250)
        for event in (emit.event for emit in world.owner.committed):
            seen[event.type] += 1
            for detail in ("outcome", "reason"):
                seen[f"{event.type} {getattr(event, detail, None)}"] += 1
            if hasattr(event, "error"):
                seen[f"{event.type} {event.error.code}"] += 1
    assert {
        *("turn.opened", "turn.completed", "turn.cancelled", "tool.called", "message.deleted", "thread.deleted"),
        *("turn.waiting approval", "turn.waiting human"),
        *(f"turn.closed {outcome}" for outcome in ("completed", "failed", "cancelled")),
        *(f"usage.recorded {outcome}" for outcome in ("ok", "error", "lost")),
        *(
            f"turn.failed {code}"
            for code in ("deadline", "max_steps", "budget", "rate_limited", "auth", "response_schema")
        ),
        *(f"turn.rejected {code}" for code in ("busy", "budget", "unknown_agent", "unknown_tool")),
    } <= set(seen)


# A machine that cannot fail proves nothing: each of these faults must be found.


def without(before: Decision, kind: str) -> Decision:
    return replace(before, emits=tuple(each for each in before.emits if each.event.type != kind))


def loses_queued_prompts(state: ThreadState | None, happened: ThreadInput, env: Environment) -> Decision:
    if state is not None and isinstance(happened, PromptArrived):
        return Decision(state)
    return decide(state, happened, env)


def forgets(kind: str, state: ThreadState | None, happened: ThreadInput, env: Environment) -> Decision:
    return without(decide(state, happened, env), kind)


def takes_results_twice(state: ThreadState | None, happened: ThreadInput, env: Environment) -> Decision:
    decision = decide(state, happened, env)
    if isinstance(happened, ToolReturned) and decision.emits:
        again = [replace(each, event_id=f"{each.event_id}-again") for each in decision.emits]
        return replace(decision, emits=(*decision.emits, *again))
    return decision


def keeps_the_attempt_after_a_crash(state: ThreadState | None, happened: ThreadInput, env: Environment) -> Decision:
    decision = decide(state, happened, env)
    return replace(decision, state=state) if isinstance(happened, Recovered) else decision


def says_nothing_of_lost_attempts(state: ThreadState | None, happened: ThreadInput, env: Environment) -> Decision:
    decision = decide(state, happened, env)
    return without(decision, "usage.recorded") if isinstance(happened, Recovered) else decision


def asks_nobody_for_approval(state: ThreadState | None, happened: ThreadInput, env: Environment) -> Decision:
    def tool(tenant: str, name: str) -> ToolSpec | None:
        spec = env.tool(tenant, name)
        return spec and spec.model_copy(update={"approval": False})

    return decide(state, happened, replace(env, tool=tool))


def hears_no_timer(state: ThreadState | None, happened: ThreadInput, env: Environment) -> Decision:
    return Decision(state) if isinstance(happened, Tick) else decide(state, happened, env)


def draws_lots(state: ThreadState | None, happened: ThreadInput, env: Environment) -> Decision:
    decision = decide(state, happened, env)
    return replace(decision, emits=tuple(replace(each, event_id=str(id(decision))) for each in decision.emits))


def opens_the_last_prompt_first(state: ThreadState | None, happened: ThreadInput, env: Environment) -> Decision:
    if state is not None and not isinstance(happened, PromptArrived):
        state = replace(state, queue=PromptQueue(state.queue[::-1]))
    return decide(state, happened, env)


def ends_when_interrupted_by_a_result(state: ThreadState | None, happened: ThreadInput, env: Environment) -> Decision:
    if state is not None and isinstance(happened, ToolFailed):
        return Decision(None)
    return decide(state, happened, env)


FAULTS: list[Decide] = [
    loses_queued_prompts,
    *(
        partial(forgets, kind)
        for kind in (
            "turn.opened",
            "turn.closed",
            "turn.completed",
            "turn.failed",
            "turn.cancelled",
            "turn.rejected",
            "usage.recorded",
            "message.added",
            "tool.called",
        )
    ),
    takes_results_twice,
    keeps_the_attempt_after_a_crash,
    says_nothing_of_lost_attempts,
    asks_nobody_for_approval,
    hears_no_timer,
    draws_lots,
    opens_the_last_prompt_first,
    ends_when_interrupted_by_a_result,
]


def live_often(**owner: Any) -> None:
    for seed in range(20):
        live(seed, steps=150, **owner)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda each: getattr(each, "__name__", None) or f"forgets {each.args[0]}")
def test_the_world_finds_a_decision_that(fault: Decide) -> None:
    with pytest.raises(AssertionError):
        live_often(decide=fault)


@pytest.mark.parametrize("kind", ["turn.state", "turn.queued", None])
def test_the_world_finds_a_state_record_that_is_not_written(kind: str | None) -> None:
    def forgetful(before: ThreadState | None, after: ThreadState | None) -> list[Any]:
        return [(key, value) for key, value in state_records(before, after) if (value and value.type) != kind]

    with pytest.raises(AssertionError):
        live_often(state_records=forgetful)
