"""One trace from a prompt to its completion: over HTTP, through every topic, every service, a queue and a kill."""

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
import pytest_asyncio
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.scripted_model.server import ScriptedModel
from tests.support.collector import CollectedSpan, Collector
from tests.support.installation import Installation, installation
from tests.support.waiting import until

pytestmark = [pytest.mark.broker, pytest.mark.asyncio(loop_scope="module")]

TURN_TOPICS = ("prompts", "messages", "tool-calls", "tool-results", "usage", "completions")
SAID = "sesame-4711"
"""In the prompt, in its answer and in the tool's arguments."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def collector() -> AsyncIterator[Collector]:
    async with Collector() as collector:
        yield collector


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def turnlog(
    kafka: str, collector: Collector, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Installation]:
    """An installation that is up and sends its spans to the collector, five times a second."""
    folder = tmp_path_factory.mktemp("traced")
    async with (
        ScriptedModel() as model,
        installation(folder, model_url=model.base_url, kafka=kafka, prefix=f"{uuid4().hex[:10]}.") as made,
    ):
        made.environment |= {
            "TURNLOG_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            "TURNLOG_SESSION_TIMEOUT_MS": "3000",
        }
        await made.up()
        yield made


def new_trace() -> tuple[str, str]:
    """A trace id, and the header that a caller of that trace sends."""
    trace_id = uuid4().hex
    return trace_id, f"00-{trace_id}-b7ad6b7169203331-01"


async def traces_on(turnlog: Installation, topic: str, thread: str) -> dict[str, set[str]]:
    """The trace ids of a thread's records on a topic, by turn."""
    found: dict[str, set[str]] = {}
    for event in await turnlog.log.events(topic):
        if event.get("thread_id") == thread:
            found.setdefault(event.get("turn_id", ""), set()).add(event["headers"]["traceparent"].split("-")[1])
    return found


async def test_one_trace_goes_from_an_http_request_to_the_completion_through_a_tool(
    turnlog: Installation, collector: Collector
) -> None:
    thread, (trace_id, header) = f"t-{uuid4().hex}", new_trace()
    content = f'[[tool calculate {{"expression": "len(\'{SAID}\')"}}]][[then]][[say {SAID}]]'
    await turnlog.post(
        f"/v1/threads/{thread}/prompts?wait=30",
        {"agent": "assistant", "content": content},
        headers={"traceparent": header},
        status=200,
    )

    for topic in TURN_TOPICS:
        assert {each for by_turn in (await traces_on(turnlog, topic, thread)).values() for each in by_turn} == {
            trace_id
        }, topic

    def of_the_trace() -> list[CollectedSpan]:
        return [each for each in collector.spans if each.trace_id == trace_id]

    def projections() -> set[tuple[str, str]]:
        return {(each.service, each.name) for each in collector.spans if trace_id in each.linked}

    await until(lambda: len(of_the_trace()) >= 4 and len(projections()) == 2, "the spans of the turn")
    assert sorted((each.service, each.name, each.kind) for each in of_the_trace()) == [
        ("turnlog-agents", "chat scripted", Span.SPAN_KIND_CLIENT),
        ("turnlog-agents", "chat scripted", Span.SPAN_KIND_CLIENT),
        ("turnlog-gateway", "send prompts", Span.SPAN_KIND_PRODUCER),
        ("turnlog-tools", "execute_tool calculate", Span.SPAN_KIND_INTERNAL),
    ]
    assert projections() == {("turnlog-memory", "process messages"), ("turnlog-usage", "process usage")}
    [sent] = [each for each in of_the_trace() if each.name == "send prompts"]
    assert sent.parent_id == header.split("-")[2]
    assert {each.parent_id for each in of_the_trace() if each is not sent} == {sent.span_id}
    assert thread.encode() in collector.raw
    assert SAID.encode() not in collector.raw


async def test_a_prompt_that_waits_for_its_thread_keeps_its_own_trace(turnlog: Installation) -> None:
    thread, (first, first_header), (second, second_header) = f"t-{uuid4().hex}", new_trace(), new_trace()
    for header, content in ((first_header, "[[think 1]] one"), (second_header, "two")):
        event = {"thread_id": thread, "agent": "assistant", "content": content}
        await turnlog.log.publish("prompts", event, headers=[("traceparent", header.encode())])
    await turnlog.completion(thread, count=2)

    for topic in ("messages", "usage", "completions"):
        by_turn = await traces_on(turnlog, topic, thread)
        assert sorted(map(sorted, by_turn.values())) == sorted([[first], [second]]), topic


async def test_a_header_that_is_no_trace_context_harms_nobody(turnlog: Installation) -> None:
    thread = f"t-{uuid4().hex}"
    event = {"thread_id": thread, "agent": "assistant", "content": "hello"}
    await turnlog.log.publish("prompts", event, headers=[("traceparent", b"\xff" * 10_000)])
    completed = await turnlog.completion(thread)

    assert completed["headers"]["traceparent"].split("-")[1] == completed["turn_id"].replace("-", "")


async def test_a_turn_goes_on_in_its_trace_after_a_kill(turnlog: Installation, collector: Collector) -> None:
    thread, (trace_id, header) = f"t-{uuid4().hex}", new_trace()
    event = {"thread_id": thread, "agent": "assistant", "content": "[[think 4]] after all"}
    await turnlog.log.publish("prompts", event, headers=[("traceparent", header.encode())])
    await turnlog.log.wait_for("messages", lambda event: event.get("thread_id") == thread)
    await asyncio.gather(*(each.kill() for each in turnlog.started))

    await turnlog.up()
    await turnlog.completion(thread)

    for topic in ("messages", "usage", "completions"):
        assert list((await traces_on(turnlog, topic, thread)).values()) == [{trace_id}], topic

    def answered() -> list[CollectedSpan]:
        return [each for each in collector.spans if each.trace_id == trace_id]

    await until(lambda: bool(answered()), "the span of the second attempt")
    assert [(each.name, each.attributes["turnlog.attempt"]) for each in answered()] == [("chat scripted", "2")]
