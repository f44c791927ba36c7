"""Model calls that were given up: metered by whom they had asked and what they had spent, as far as is known."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest

from schemas.agents import AgentSpec, StopConditions
from schemas.base import TokenCounts
from schemas.http import ContextMessage, ContextResponse, MessageView
from schemas.ids import turn_id_of
from schemas.parts import TextPart
from schemas.prompts import PromptSubmitted, TurnCancel, TurnOptions
from schemas.usage import UsageRecorded
from services.agents.actor import TurnActor
from services.agents.budgets import BudgetGate
from services.agents.context_handlers import ContextHandlers
from services.agents.model import DeltaSink, ModelAnswer, ModelFailure, ModelRequest
from services.agents.turn.inputs import PromptArrived, Recovered
from services.agents.turn.state import ThreadState
from services.runtime.budgets import Budgets
from services.runtime.telemetry import Traces
from tests.support.prices import book_of
from tests.unit.turn.story import ASSISTANT, NOON, SPENT, Story, another, asks

INSTRUCTIONS = "Be brief." * 10
"""90 characters, and `hello` 5: 24 tokens by the rule of thumb."""


def counted(usage: UsageRecorded) -> tuple[str | None, str | None, int, int]:
    assert (usage.outcome, usage.estimated, usage.billable) == ("lost", True, False)
    return usage.provider, usage.model, usage.input_tokens, usage.output_tokens


def test_a_cancelled_call_is_metered_by_what_it_had_spent() -> None:
    story = Story()
    story.prompt()
    story.model_writes("half an answer", SPENT)
    assert counted(story.cancels()[0]) == ("acme", "m-1", 10, 3)


def test_a_call_that_ran_out_of_time_is_metered_by_what_it_had_spent() -> None:
    story = Story()
    story.prompt()
    story.model_writes("half an answer", SPENT)
    assert counted(story.waits(601)[0]) == ("acme", "m-1", 10, 3)


@pytest.mark.parametrize("end", ["crashes", "cancels"])
def test_of_a_call_that_this_worker_has_not_sent_the_prompt_and_the_instructions_are_known(end: str) -> None:
    story = Story([another(instructions=INSTRUCTIONS, model="acme/m-2")])
    story.prompt("hello")
    assert counted(getattr(story, end)()[0]) == ("acme", "m-2", 24, 0)


def test_the_instructions_of_a_prompt_count_in_place_of_the_agents() -> None:
    story = Story([another(instructions=INSTRUCTIONS)])
    story.prompt("hello", options=TurnOptions(instructions="Rhyme", model="acme/m-3"))
    assert counted(story.crashes()[0]) == ("acme", "m-3", 3, 0)


def test_of_a_later_step_the_counts_of_the_one_before_and_the_results_are_known() -> None:
    story = Story()
    story.prompt()
    story.answers("", asks("look"), asks("delete"), usage=TokenCounts(input_tokens=400, output_tokens=20))
    story.tool_returns(story.calls[0], "x" * 40)
    story.tool_returns(story.calls[0], {"a": 1})
    assert counted(story.crashes()[0]) == ("acme", "m-1", 400 + 20 + 10 + 2, 0)


def test_what_an_attempt_before_was_sent_is_known() -> None:
    story = Story()
    story.prompt()
    story.model_fails(usage=TokenCounts(input_tokens=400, output_tokens=20))
    story.waits(60)
    assert counted(story.crashes()[0]) == ("acme", "m-1", 400, 0)


def test_the_fallback_that_was_asked_is_named() -> None:
    story = Story([another(model="acme/m-2", fallbacks=["acme/m-3"])])
    story.prompt()
    story.model_fails(retryable=False)
    assert counted(story.crashes()[0])[:2] == ("acme", "m-3")


def test_what_was_lost_with_a_worker_is_part_of_the_cost_that_a_turn_may_have() -> None:
    story = Story([another(instructions=INSTRUCTIONS, stop=StopConditions(max_cost=Decimal("0.3")))])
    story.prompt("hello")
    story.crashes()
    assert story.turn.cost == Decimal("0.24")
    story.answers("", asks("look"))
    assert [each.error.code for each in story.ends] == ["max_cost"]


def test_a_decision_that_is_made_again_meters_the_same() -> None:
    story = Story()
    story.prompt()
    story.model_writes("half an answer")
    cancel = TurnCancel(**story.identity)
    assert story.decides(cancel) == story.decides(cancel)
    assert story.decides(Recovered()) == story.decides(Recovered())


# What the worker knows of its calls.


class Streaming:
    """A model that writes and does not end; a memory with a past; registries of one agent."""

    def __init__(self, agent: AgentSpec, *, past: str = "", says_its_name: bool = True) -> None:
        self._agent = agent
        self._past = past
        self._says_its_name = says_its_name
        self.wrote = asyncio.Event()

    def resolve(self, model: str) -> tuple[str, str]:
        return "default", model.removeprefix("default/")

    async def attempt(self, request: ModelRequest, sink: DeltaSink) -> ModelAnswer | ModelFailure:
        if self._says_its_name:
            sink.model("scripted-2026")
        sink.text("x" * 30)
        sink.reasoning("y" * 8)
        sink.tool_arguments(0, "look", "{}")
        self.wrote.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def context(self, _: Any) -> ContextResponse:
        said = MessageView(
            message_id="m",
            thread_id="t-1",
            position=1,
            role="user",
            parts=[TextPart(text=self._past)],
            text=self._past,
            created_at=NOON,
        )
        return ContextResponse(messages=[ContextMessage(message=said, reason="recent")])

    def partition_of(self, _: str) -> int:
        return 0

    def get(self, name: str, **_: Any) -> AgentSpec | None:
        return self._agent if name == self._agent.name else None


@asynccontextmanager
async def answering(model: Streaming) -> AsyncIterator[tuple[TurnActor, ThreadState]]:
    """An actor with a call that has written so far."""
    anything: Any = model
    unlimited: Any = SimpleNamespace(budgets=Budgets())
    actor = TurnActor(
        intake=anything,
        memory=anything,
        model=anything,
        context_handlers=ContextHandlers(None),
        agents=anything,
        tools=anything,
        budgets=BudgetGate(unlimited, book_of),
        prices=book_of,
        default_model="default/scripted",
        call_seconds=60,
        send_delta=lambda _: None,
        traces=Traces(),
    )
    prompt = PromptSubmitted(thread_id="t-1", agent="assistant", content="hello", prompt_id="p")
    arrived = PromptArrived(prompt, "p", turn_id_of("default", "t-1", "p"), 0)
    opened = actor.decide(None, arrived, datetime.now(UTC))
    assert opened.state is not None
    actor.decided("t-1", opened)

    async def journal_position() -> int:
        return 0

    call = asyncio.create_task(actor.call(opened.state, journal_position))
    await asyncio.wait_for(model.wrote.wait(), 10)
    try:
        yield actor, opened.state
    finally:
        call.cancel()
        await asyncio.wait([call])


def lost(actor: TurnActor, state: ThreadState) -> UsageRecorded:
    decision = actor.decide(state, TurnCancel(thread_id="t-1"), datetime.now(UTC))
    (usage,) = (emit.event for emit in decision.emits if isinstance(emit.event, UsageRecorded))
    return usage


@pytest.mark.parametrize(("says_its_name", "model"), [(True, "scripted-2026"), (False, "scripted")])
async def test_a_call_in_flight_is_known_by_the_whole_context_and_all_that_was_streamed(
    says_its_name: bool, model: str
) -> None:
    agent = another(ASSISTANT, tools=[])
    streaming = Streaming(agent, past="z" * 395, says_its_name=says_its_name)
    async with answering(streaming) as (actor, state):
        assert counted(lost(actor, state)) == ("default", model, 100, 11)


async def test_a_worker_that_has_lost_the_partition_and_taken_it_again_does_not_know_of_its_old_call() -> None:
    async with answering(Streaming(another(ASSISTANT, tools=[]), past="z" * 395)) as (actor, state):
        actor.forgotten("t-1")
        assert counted(lost(actor, state)) == ("default", "scripted", 2, 0)
