"""Traces: what is handed on without a collector, and what is recorded with one."""

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp.test_utils import unused_port
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from schemas.agents import AgentSpec
from schemas.base import TokenCounts
from schemas.envelope import encode_event
from schemas.http import ContextResponse
from schemas.ids import turn_id_of
from schemas.prompts import PromptSubmitted, ThreadUpdate
from schemas.tool_calls import ToolCalled
from services.agents.actor import TurnActor
from services.agents.budgets import BudgetGate
from services.agents.context_handlers import ContextHandlers
from services.agents.model import ModelAnswer, ModelFailure
from services.agents.turn.inputs import CommandArrived, ModelAnswered, PromptArrived
from services.agents.turn.state import restore_states
from services.runtime.budgets import Budgets
from services.runtime.failpoints import Failpoints
from services.runtime.kafka import Record
from services.runtime.settings import RuntimeSettings
from services.runtime.telemetry import (
    EXPORT_SECONDS,
    MAX_LINKS,
    Traces,
    current_traceparent,
    failed,
    traceparent_in,
    traceparent_of_turn,
    traces_of,
    within,
)
from services.tools.calls import CallRunner
from services.tools.execution import Executor
from services.tools.registration import tool
from services.tools.threads import Threads
from services.tools.toolbox import Toolbox
from tests.support.collector import Collector
from tests.support.prices import book_of

AT = datetime(2026, 1, 1, tzinfo=UTC)
CAME_IN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ANOTHER = "00-11111111111111111111111111111111-2222222222222222-01"
SECRET = "sesame-4711"
"""Said in prompts, arguments, answers and errors; no span may say it."""


@pytest.fixture
def exported() -> InMemorySpanExporter:
    """What a collector would get."""
    return InMemorySpanExporter()


@pytest.fixture
def traces(exported: InMemorySpanExporter) -> Iterator[Traces]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exported))
    yield Traces(provider)
    provider.shutdown()


def parent_of(span: ReadableSpan) -> str:
    assert span.parent is not None
    return f"00-{span.parent.trace_id:032x}-{span.parent.span_id:016x}-01"


# What is handed on.


def test_without_a_collector_a_trace_is_handed_on_as_it_came() -> None:
    with Traces().span("anything", traceparent=CAME_IN) as started:
        assert not started.is_recording()
        assert current_traceparent() == CAME_IN
    assert current_traceparent() is None


def test_without_a_collector_and_without_a_trace_there_is_none() -> None:
    with Traces().span("anything"):
        assert current_traceparent() is None


def test_without_a_collector_the_links_of_a_batch_are_not_even_read() -> None:
    def links() -> Iterator[str]:
        raise AssertionError("read")
        yield CAME_IN

    with Traces().span("process messages", links=links()):
        pass


@pytest.mark.parametrize(
    "header",
    [
        "",
        "nonsense",
        CAME_IN.upper(),
        CAME_IN + "-more",
        "ff" + CAME_IN[2:],
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-{'a' * 32}-{'0' * 16}-01",
        "x" * 1_000_000,
    ],
)
def test_a_trace_context_that_is_none_is_ignored(header: str) -> None:
    assert traceparent_in({"traceparent": header}) is None


def test_a_trace_context_is_found_among_headers() -> None:
    assert traceparent_in({"ce_id": "1", "traceparent": CAME_IN}) == CAME_IN
    assert traceparent_in({"ce_id": "1"}) is None


# What is recorded.


def test_a_span_is_a_child_of_the_trace_that_came_in(traces: Traces, exported: InMemorySpanExporter) -> None:
    attributes = {"gen_ai.request.model": "m"}
    with traces.span("chat m", kind=SpanKind.CLIENT, traceparent=CAME_IN, attributes=attributes) as started:
        handed_on = current_traceparent()
        failed(started, "rate_limited")

    [finished] = exported.get_finished_spans()
    assert handed_on == f"{CAME_IN[:36]}{finished.context.span_id:016x}-01"
    assert parent_of(finished) == CAME_IN
    assert finished.status.status_code is StatusCode.ERROR
    assert finished.attributes == {"gen_ai.request.model": "m", "error.type": "rate_limited"}


async def test_what_is_done_within_a_request_belongs_to_its_trace(
    traces: Traces, exported: InMemorySpanExporter
) -> None:
    async def publish() -> None:
        with traces.span("send prompts", kind=SpanKind.PRODUCER):
            pass

    with within(CAME_IN):
        await asyncio.create_task(publish())

    [finished] = exported.get_finished_spans()
    assert parent_of(finished) == CAME_IN


def test_a_batch_links_to_the_records_in_it_up_to_a_limit(traces: Traces, exported: InMemorySpanExporter) -> None:
    with traces.span("process messages", links=[CAME_IN, None, "nonsense"]):
        pass
    with traces.span("process messages", links=[CAME_IN] * 1000):
        pass

    few, many = exported.get_finished_spans()
    assert [f"{link.context.span_id:016x}" for link in few.links] == [CAME_IN.split("-")[2]]
    assert len(many.links) == MAX_LINKS


def test_the_trace_of_a_turn_is_found_by_the_turns_id(traces: Traces, exported: InMemorySpanExporter) -> None:
    turn_id = turn_id_of("default", "t-1", "p-1")

    with traces.span("chat m", traceparent=traceparent_of_turn(turn_id)):
        pass

    [finished] = exported.get_finished_spans()
    assert f"{finished.context.trace_id:032x}" == turn_id.replace("-", "")


def test_an_error_is_named_by_its_class_and_not_by_what_it_quotes(
    traces: Traces, exported: InMemorySpanExporter
) -> None:
    with pytest.raises(ValueError, match=SECRET), traces.span("process messages"):
        raise ValueError(f"cannot store {SECRET}")

    [finished] = exported.get_finished_spans()
    assert finished.attributes == {"error.type": "ValueError"}
    assert finished.status.status_code is StatusCode.ERROR
    assert SECRET not in finished.to_json()


# Services.


def test_without_an_endpoint_nothing_is_set_up() -> None:
    before = trace.get_tracer_provider()

    with traces_of(RuntimeSettings(), "agents").span("chat m") as started:
        assert not started.is_recording()
    assert trace.get_tracer_provider() is before


async def test_services_of_one_process_reach_the_collector_under_their_own_names() -> None:
    async with Collector() as collector:
        settings = RuntimeSettings(otlp_endpoint=collector.url)
        agents, tools = traces_of(settings, "agents"), traces_of(settings, "tools")
        with agents.span("chat m", traceparent=CAME_IN), tools.span("execute_tool it"):
            pass
        await agents.close()
        await tools.close()

    assert sorted((each.service, each.name) for each in collector.spans) == [
        ("turnlog-agents", "chat m"),
        ("turnlog-tools", "execute_tool it"),
    ]
    assert {each.trace_id for each in collector.spans} == {CAME_IN.split("-")[1]}


async def test_a_collector_that_is_away_holds_up_neither_work_nor_the_end() -> None:
    traces = traces_of(RuntimeSettings(otlp_endpoint=f"http://127.0.0.1:{unused_port()}"), "agents")
    began = time.monotonic()
    with traces.span("chat m"):
        pass
    assert time.monotonic() - began < 1
    await traces.close()
    assert time.monotonic() - began < EXPORT_SECONDS + 5


# A turn.


class Definitions:
    """A registry with one agent for everybody, or with nothing."""

    def __init__(self, spec: AgentSpec | None = None) -> None:
        self._spec = spec

    def get(self, name: str, **_: Any) -> AgentSpec | None:
        return self._spec if self._spec is not None and self._spec.name == name else None


class Scripted:
    """A model that gives one outcome, or none until it is cancelled; and a memory without a past."""

    def __init__(self, outcome: ModelAnswer | ModelFailure | None) -> None:
        self._outcome = outcome
        self.asked = asyncio.Event()

    def resolve(self, model: str) -> tuple[str, str]:
        return "openai", model.removeprefix("openai/")

    async def attempt(self, *_: Any) -> ModelAnswer | ModelFailure:
        self.asked.set()
        if self._outcome is None:
            await asyncio.Event().wait()
        assert self._outcome is not None
        return self._outcome

    async def context(self, _: Any) -> ContextResponse:
        return ContextResponse(messages=[])

    def partition_of(self, _: str) -> int:
        return 0


ANSWER = ModelAnswer(
    "openai", "gpt-x", f"it is {SECRET}", "", (), "stop", TokenCounts(input_tokens=7, output_tokens=3), 5
)


def actor_of(traces: Traces, outcome: ModelAnswer | ModelFailure | None = ANSWER) -> tuple[TurnActor, Scripted]:
    scripted: Any = Scripted(outcome)
    agents: Any = Definitions(AgentSpec(name="assistant", instructions=SECRET))
    tools: Any = Definitions()
    unlimited: Any = SimpleNamespace(budgets=Budgets())
    actor = TurnActor(
        intake=scripted,
        memory=scripted,
        model=scripted,
        context_handlers=ContextHandlers(None),
        agents=agents,
        tools=tools,
        budgets=BudgetGate(unlimited, book_of),
        prices=book_of,
        default_model="openai/gpt-x",
        call_seconds=60,
        send_delta=lambda _: None,
        traces=traces,
    )
    return actor, scripted


def arrived(prompt_id: str, traceparent: str | None, *, agent: str = "assistant", offset: int = 0) -> PromptArrived:
    prompt = PromptSubmitted(thread_id="t-1", agent=agent, content=f"what is {SECRET}?", prompt_id=prompt_id)
    return PromptArrived(prompt, prompt_id, turn_id_of("default", "t-1", prompt_id), offset, traceparent)


async def nothing_committed() -> int:
    return 0


async def test_a_model_call_says_who_was_asked_and_what_it_cost_and_nothing_of_what_was_said(
    traces: Traces, exported: InMemorySpanExporter
) -> None:
    actor, _ = actor_of(traces)
    opened = actor.decide(None, arrived("p-1", CAME_IN), datetime.now(UTC))
    assert opened.state is not None
    await actor.call(opened.state, nothing_committed)

    [finished] = exported.get_finished_spans()
    assert (finished.name, finished.kind, parent_of(finished)) == ("chat gpt-x", SpanKind.CLIENT, CAME_IN)
    assert finished.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-x",
        "gen_ai.agent.name": "assistant",
        "gen_ai.conversation.id": "t-1",
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.response.finish_reasons": ("stop",),
        "turnlog.tenant_id": "default",
        "turnlog.turn_id": turn_id_of("default", "t-1", "p-1"),
        "turnlog.step": 1,
        "turnlog.attempt": 1,
    }
    assert SECRET not in finished.to_json()


async def test_a_model_call_that_fails_says_why_in_a_word(traces: Traces, exported: InMemorySpanExporter) -> None:
    failure = ModelFailure("openai", "gpt-x", "rate_limited", f"slow down, {SECRET}", retryable=True, latency_ms=5)
    actor, _ = actor_of(traces, failure)
    opened = actor.decide(None, arrived("p-1", CAME_IN), datetime.now(UTC))
    assert opened.state is not None
    await actor.call(opened.state, nothing_committed)

    [finished] = exported.get_finished_spans()
    assert finished.attributes is not None
    assert finished.attributes["error.type"] == "rate_limited"
    assert SECRET not in finished.to_json()


async def test_a_model_call_that_is_given_up_is_on_record_too(traces: Traces, exported: InMemorySpanExporter) -> None:
    actor, scripted = actor_of(traces, None)
    opened = actor.decide(None, arrived("p-1", CAME_IN), datetime.now(UTC))
    assert opened.state is not None
    calling = asyncio.ensure_future(actor.call(opened.state, nothing_committed))
    await scripted.asked.wait()
    calling.cancel()
    await asyncio.gather(calling, return_exceptions=True)

    [finished] = exported.get_finished_spans()
    assert finished.attributes is not None
    assert (finished.attributes["gen_ai.operation.name"], finished.attributes["error.type"]) == ("chat", "cancelled")


def test_each_event_is_in_the_trace_of_its_own_turn_also_after_a_crash() -> None:
    actor, _ = actor_of(Traces())
    opened = actor.decide(None, arrived("p-1", CAME_IN), AT)
    assert {emit.traceparent for emit in opened.emits} == {CAME_IN}
    queued = actor.decide(opened.state, arrived("p-2", ANOTHER, offset=1), AT)
    rejected = actor.decide(queued.state, arrived("p-3", ANOTHER, agent="nobody", offset=2), AT)
    assert [(emit.event.type, emit.traceparent) for emit in rejected.emits] == [("turn.rejected", ANOTHER)]

    written = [value for _, value in actor.state_records(None, rejected.state) if value is not None]
    [state] = restore_states([type(each).model_validate_json(encode_event(each)) for each in written]).values()
    answer = ModelAnswered(
        state.turn.turn_id,
        1,
        1,
        provider="p",
        model="m",
        text="it",
        usage=TokenCounts(),
        finish_reason="stop",
        latency_ms=1,
    )
    closed = actor.decide(state, answer, AT)

    first, second = turn_id_of("default", "t-1", "p-1"), turn_id_of("default", "t-1", "p-2")
    assert {(emit.event.turn_id, emit.traceparent) for emit in closed.emits} == {(first, CAME_IN), (second, ANOTHER)}


def test_a_turn_whose_prompt_brought_no_trace_has_one_by_its_id_and_a_command_none_of_a_turn() -> None:
    actor, _ = actor_of(Traces())
    opened = actor.decide(None, arrived("p-1", None), AT)
    assert {emit.traceparent for emit in opened.emits} == {traceparent_of_turn(turn_id_of("default", "t-1", "p-1"))}

    created = actor.decide(opened.state, CommandArrived(ThreadUpdate(thread_id="t-1", title="Plans"), "r-1"), AT)
    assert [emit.traceparent for emit in created.emits] == [None]


# A tool.


class Outbox:
    """Keeps the trace of each answer."""

    def __init__(self) -> None:
        self.traceparents: list[str | None] = []

    async def answer(self, *_: Any, traceparent: str | None) -> None:
        self.traceparents.append(traceparent)

    async def reject(self, *_: Any) -> None: ...

    def progress(self, _: Any) -> None: ...


@pytest.mark.parametrize("breaks", [False, True])
async def test_a_tool_call_is_a_span_and_its_answer_a_child_of_it(
    traces: Traces, exported: InMemorySpanExporter, breaks: bool
) -> None:
    @tool
    async def unlock(word: str) -> str:
        if breaks:
            raise ValueError(f"wrong word: {word}")
        return word

    outbox = Outbox()
    executor = Executor(threads=Threads(), now=lambda: AT)
    runner = CallRunner(
        toolbox=Toolbox([unlock]), executor=executor, outbox=outbox, failpoints=Failpoints(), traces=traces
    )
    call = ToolCalled(
        thread_id="t-1",
        call_id="01990000-0000-7000-8000-000000000002",
        turn_id="turn-1",
        step=1,
        name="unlock",
        arguments={"word": SECRET},
        agent="assistant",
        called_at=AT,
        deadline_at=datetime(2026, 1, 2, tzinfo=UTC),
    )
    value = encode_event(call)
    headers = [("traceparent", CAME_IN.encode())]
    await runner.handle(Record("tool-calls", 0, 7, 0, 0, b"t-1", value, None, 0, len(value), headers))

    [finished] = exported.get_finished_spans()
    assert (finished.name, parent_of(finished)) == ("execute_tool unlock", CAME_IN)
    assert finished.attributes is not None
    assert (finished.attributes["gen_ai.tool.name"], finished.attributes["gen_ai.tool.call.id"]) == (
        "unlock",
        call.call_id,
    )
    assert finished.status.status_code is (StatusCode.ERROR if breaks else StatusCode.UNSET)
    assert outbox.traceparents == [f"{CAME_IN[:36]}{finished.context.span_id:016x}-01"]
    assert SECRET not in finished.to_json()
