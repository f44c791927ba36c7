"""Traces: OpenTelemetry spans, and the W3C trace context that records carry from service to service.

Without `TURNLOG_OTLP_ENDPOINT` nothing is recorded, and a `traceparent` that came in is handed on all the same. Spans
say how long things took and what they were about, by OpenTelemetry's conventions for generative AI and for messaging;
never what was said, nor what an error's message quotes.
"""

import asyncio
import contextlib
import re
from collections.abc import Generator, Iterable, Mapping
from itertools import islice
from uuid import UUID

from opentelemetry import context, trace
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, NoOpTracer, Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from services.runtime.settings import RuntimeSettings

MAX_LINKS = 100
"""Of a batch's span, to the records in it: OpenTelemetry's own limit is 128."""

EXPORT_SECONDS = 5
"""For one export with its retries: what the end of a service waits for a collector that does not answer."""

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
"""W3C Trace Context, section 3.2. What does not fit is to be ignored, by section 4.3."""

_PROPAGATOR = TraceContextTextMapPropagator()


class Traces:
    """The spans of one service. Several services of a process have one each; nothing is global.

    Args:
        provider: records and exports. Without it no span is recorded, and the context is still handed on.
    """

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._provider = provider
        self._tracer: Tracer = NoOpTracer() if provider is None else provider.get_tracer("turnlog")

    @contextlib.contextmanager
    def span(
        self,
        name: str,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        traceparent: str | None = None,
        attributes: Mapping[str, AttributeValue] | None = None,
        links: Iterable[str | None] = (),
    ) -> Generator[Span]:
        """A span around a block; a child of `traceparent`, else of the span around it. `links`: other trace parents.

        An exception that leaves the block is named by its class alone.
        """
        parent = None if traceparent is None else _context_of(traceparent)
        linked = [] if self._provider is None else _links(links)
        started = self._tracer.start_span(name, context=parent, kind=kind, attributes=attributes, links=linked)
        with trace.use_span(started, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            try:
                yield started
            except asyncio.CancelledError:
                failed(started, "cancelled")
                raise
            except Exception as error:
                failed(started, type(error).__name__)
                raise

    async def close(self) -> None:
        """Exports what is left, for EXPORT_SECONDS at most."""
        if self._provider is not None:
            await asyncio.to_thread(self._provider.shutdown)


def traces_of(settings: RuntimeSettings, service: str) -> Traces:
    """Sends a service's spans, in batches, to the collector that the settings name; None named: records none."""
    if settings.otlp_endpoint is None:
        return Traces()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415 - a tenth of the start of a service
        OTLPSpanExporter,
    )

    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: f"turnlog-{service}"}))
    endpoint = f"{settings.otlp_endpoint.rstrip('/')}/v1/traces"
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_SECONDS)))
    return Traces(provider)


def failed(failing: Span, code: str) -> None:
    """Marks a span as failed, with a stable code."""
    failing.set_attribute("error.type", code)
    failing.set_status(Status(StatusCode.ERROR, code))


def traceparent_in(headers: Mapping[str, str]) -> str | None:
    """The trace context of a record or a request; None without a valid one."""
    found = headers.get("traceparent")
    return found if found is not None and _TRACEPARENT.fullmatch(found) else None


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


def _links(traceparents: Iterable[str | None]) -> list[Link]:
    contexts = (_span_context_of(each) for each in traceparents if each is not None)
    return list(islice((Link(each) for each in contexts if each.is_valid), MAX_LINKS))


def _context_of(traceparent: str) -> context.Context:
    return _PROPAGATOR.extract({"traceparent": traceparent}, context=context.Context())


def _span_context_of(traceparent: str) -> trace.SpanContext:
    return trace.get_current_span(_context_of(traceparent)).get_span_context()
