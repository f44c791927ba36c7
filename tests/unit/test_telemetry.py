"""Traces: what is handed on without a collector, and what is recorded with one."""

import asyncio
import sys
from collections.abc import Iterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from schemas.ids import turn_id_of
from services.runtime.settings import RuntimeSettings
from services.runtime.telemetry import configure_traces, current_traceparent, failed, span, traceparent_of_turn, within
from tests.conftest import ROOT

CAME_IN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """What a collector would get."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield exporter
    provider.shutdown()


def test_without_a_collector_a_trace_is_handed_on_as_it_came() -> None:
    with span("anything", traceparent=CAME_IN) as started:
        assert not started.is_recording()
        assert current_traceparent() == CAME_IN
    assert current_traceparent() is None


def test_without_a_collector_and_without_a_trace_there_is_none() -> None:
    with span("anything"):
        assert current_traceparent() is None


def test_a_span_is_a_child_of_the_trace_that_came_in(exported: InMemorySpanExporter) -> None:
    with span("chat m", kind=SpanKind.CLIENT, traceparent=CAME_IN, attributes={"gen_ai.request.model": "m"}) as started:
        handed_on = current_traceparent()
        failed(started, "rate_limited")

    [finished] = exported.get_finished_spans()
    assert handed_on is not None
    assert handed_on.split("-")[1:3] == [CAME_IN.split("-")[1], f"{finished.context.span_id:016x}"]
    assert finished.parent is not None
    assert f"{finished.parent.span_id:016x}" == CAME_IN.split("-")[2]
    assert finished.status.status_code is StatusCode.ERROR
    assert finished.attributes == {"gen_ai.request.model": "m", "error.type": "rate_limited"}


async def test_what_is_done_within_a_request_belongs_to_its_trace(exported: InMemorySpanExporter) -> None:
    async def publish() -> None:
        with span("send prompts", kind=SpanKind.PRODUCER):
            pass

    with within(CAME_IN):
        await asyncio.create_task(publish())

    [finished] = exported.get_finished_spans()
    assert f"{finished.context.trace_id:032x}" == CAME_IN.split("-")[1]


def test_a_batch_links_to_the_records_in_it(exported: InMemorySpanExporter) -> None:
    with span("project messages", links=[CAME_IN, None, "nonsense"]):
        pass

    [finished] = exported.get_finished_spans()
    assert [f"{link.context.span_id:016x}" for link in finished.links] == [CAME_IN.split("-")[2]]


def test_the_trace_of_a_turn_is_found_by_the_turns_id(exported: InMemorySpanExporter) -> None:
    turn_id = turn_id_of("default", "t-1", "p-1")

    with span("chat m", traceparent=traceparent_of_turn(turn_id)):
        pass

    [finished] = exported.get_finished_spans()
    assert f"{finished.context.trace_id:032x}" == turn_id.replace("-", "")


def test_without_an_endpoint_nothing_is_set_up() -> None:
    before = trace.get_tracer_provider()
    configure_traces(RuntimeSettings(), "turnlog-test")()

    assert trace.get_tracer_provider() is before


async def test_spans_reach_the_collector_that_is_named() -> None:
    received: list[ExportTraceServiceRequest] = []

    async def collect(request: web.Request) -> web.Response:
        received.append(ExportTraceServiceRequest.FromString(await request.read()))
        return web.Response()

    app = web.Application()
    app.router.add_post("/v1/traces", collect)
    script = (
        "import sys; from services.runtime.settings import RuntimeSettings; "
        "from services.runtime.telemetry import configure_traces, span\n"
        "end = configure_traces(RuntimeSettings(otlp_endpoint=sys.argv[1]), 'turnlog-agents')\n"
        "with span('chat m'): pass\n"
        "end()"
    )
    async with TestServer(app) as server:
        url = str(server.make_url("/"))
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, url, cwd=ROOT)
        assert await asyncio.wait_for(process.wait(), 30) == 0

    [resource] = received[0].resource_spans
    assert {each.key: each.value.string_value for each in resource.resource.attributes}["service.name"] == (
        "turnlog-agents"
    )
    assert [each.name for each in resource.scope_spans[0].spans] == ["chat m"]
