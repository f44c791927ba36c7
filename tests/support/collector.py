"""A collector of traces: what OTLP over HTTP brings, kept in memory."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from aiohttp import web
from aiohttp.test_utils import TestServer
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue


@dataclass(frozen=True)
class CollectedSpan:
    """A span as it arrived. Ids are in hexadecimal, `kind` by OTLP's numbers."""

    service: str
    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    linked: frozenset[str]
    """Trace ids of its links."""
    attributes: dict[str, str]


class Collector:
    """Takes spans at `url` while it is open."""

    def __init__(self) -> None:
        self.spans: list[CollectedSpan] = []
        self.raw = b""
        """Everything that arrived, undecoded: what is not in here did not leave."""
        app = web.Application()
        app.router.add_post("/v1/traces", self._collect)
        self._server = TestServer(app)

    @property
    def url(self) -> str:
        return str(self._server.make_url("/"))

    async def __aenter__(self) -> Self:
        await self._server.start_server()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.close()

    async def _collect(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.raw += body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = _texts(resource.resource.attributes)["service.name"]
            for scope in resource.scope_spans:
                self.spans += [
                    CollectedSpan(
                        service=service,
                        name=span.name,
                        kind=span.kind,
                        trace_id=span.trace_id.hex(),
                        span_id=span.span_id.hex(),
                        parent_id=span.parent_span_id.hex(),
                        linked=frozenset(link.trace_id.hex() for link in span.links),
                        attributes=_texts(span.attributes),
                    )
                    for span in scope.spans
                ]
        return web.Response()


def _texts(attributes: Iterable[KeyValue]) -> dict[str, str]:
    return {each.key: each.value.string_value or str(each.value.int_value) for each in attributes}
