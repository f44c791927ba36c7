"""Traces: OpenTelemetry spans, and the W3C trace context that records carry from service to service.

Without `TURNLOG_OTLP_ENDPOINT` nothing is recorded, and a `traceparent` that came in is handed on all the same. Spans
say how long things took and what they were about, by OpenTelemetry's conventions for generative AI; never what was
said.
"""

import contextlib
from collections.abc import Callable, Generator, Iterable, Mapping
from uuid import UUID

from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from services.runtime.settings import RuntimeSettings

MAX_LINKS = 100
"""Of a batch's span, to the records in it: OpenTelemetry's own limit is 128."""

_PROPAGATOR = TraceContextTextMapPropagator()


def configure_traces(settings: RuntimeSettings, service: str) -> Callable[[], None]:
    """Sends the spans of this process to the endpoint that the settings name. Call once; the result flushes."""
    if settings.otlp_endpoint is None:
        return lambda: None
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: service}))
    endpoint = f"{settings.otlp_endpoint.rstrip('/')}/v1/traces"
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    trace.set_tracer_provider(provider)
    return provider.shutdown


@contextlib.contextmanager
def span(
    name: str,
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    traceparent: str | None = None,
    attributes: Mapping[str, AttributeValue] | None = None,
    links: Iterable[str | None] = (),
) -> Generator[Span]:
    """A span around a block; a child of `traceparent`, else of the span around it. `links`: other trace parents."""
    parent = None if traceparent is None else _context_of(traceparent)
    linked = [Link(each) for each in map(_span_context_of, links) if each is not None][:MAX_LINKS]
    tracer = trace.get_tracer("turnlog")
    with tracer.start_as_current_span(name, context=parent, kind=kind, attributes=attributes, links=linked) as started:
        yield started


def failed(failing: Span, code: str) -> None:
    """Marks a span as failed, with a stable code."""
    failing.set_attribute("error.type", code)
    failing.set_status(Status(StatusCode.ERROR, code))


def current_traceparent() -> str | None:
    """What to put on a record so that its reader's spans are children of the span around here."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier.get("traceparent")


@contextlib.contextmanager
def within(traceparent: str | None) -> Generator[None]:
    """What is done inside belongs to the trace of a request or a record."""
    if traceparent is None:
        yield
        return
    token = context.attach(_context_of(traceparent))
    try:
        yield
    finally:
        context.detach(token)


def traceparent_of_turn(turn_id: str) -> str:
    """The trace of a turn whose prompt brought none: its trace id is the turn's id, so that it can be looked up."""
    turn = UUID(turn_id)
    return f"00-{turn.hex}-{(turn.int & (2**64 - 1)) or 1:016x}-01"


def _context_of(traceparent: str) -> context.Context:
    return _PROPAGATOR.extract({"traceparent": traceparent}, context=context.Context())


def _span_context_of(traceparent: str | None) -> trace.SpanContext | None:
    if traceparent is None:
        return None
    found = trace.get_current_span(_context_of(traceparent)).get_span_context()
    return found if found.is_valid else None
