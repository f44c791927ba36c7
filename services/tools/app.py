"""Wiring of the tools worker."""

import asyncio
import os
from collections.abc import Sequence
from datetime import UTC, datetime

import structlog

from schemas.http import ComponentHealth
from schemas.topics import TOOL_CALLS, TOOLS, tool_queue
from services.runtime.failpoints import Failpoints
from services.runtime.groups import TOOLS_GROUP
from services.runtime.health import HealthServer
from services.runtime.kafka import AIOKafkaProducer, KafkaClients
from services.runtime.registry import apply_spec
from services.runtime.stream import build_broker
from services.runtime.telemetry import traces_of
from services.runtime.topics import count_partitions, ensure_queue
from services.tools.calls import CallRunner
from services.tools.execution import Executor
from services.tools.http_tools import HttpTools
from services.tools.kafka import CallConsumer
from services.tools.mcp_tools import McpServer
from services.tools.modules import load_tools
from services.tools.results import KafkaOutbox
from services.tools.settings import ToolsSettings
from services.tools.threads import Threads
from services.tools.tool import Tool
from services.tools.toolbox import Toolbox
from services.tools.tools_file import ToolsFile, read_tools_file

log = structlog.get_logger(__name__)

MCP_START_SECONDS = 10.0
"""How long the start waits for MCP servers; their tools are taken up later too, and readiness says who is missing."""


class ToolsService:
    """One worker. Start as many as needed; they share the partitions of the queues that their tools name."""

    name = "tools"

    def __init__(self, settings: ToolsSettings) -> None:
        """Raises ConfigurationError when a module or the file of tools cannot be used."""
        self._settings = settings
        path = settings.tools_file
        file, secrets = read_tools_file(path, os.environ) if path else (ToolsFile(), frozenset[str]())
        self._http = HttpTools(file.http, secrets=secrets)
        self._toolbox = Toolbox([*load_tools(settings.tools_modules), *self._http.tools])
        self._mcp = [McpServer(entry, on_tools=self._take_up) for entry in file.mcp]
        self._announced: dict[str, str] = {}
        self._announcer: AIOKafkaProducer | None = None
        self._queues = {tool.spec.queue for tool in self._toolbox.all()} | {entry.queue for entry in file.mcp} or {None}
        self._threads = Threads()
        self._clients = KafkaClients(settings, client_id="turnlog-tools")
        self._outbox = KafkaOutbox(self._clients)
        self._broker = build_broker(settings, client_id="turnlog-tools")
        self._traces = traces_of(settings, self.name)
        runner = CallRunner(
            toolbox=self._toolbox,
            executor=Executor(threads=self._threads, now=lambda: datetime.now(UTC)),
            outbox=self._outbox,
            failpoints=Failpoints(settings.failpoints),
            traces=self._traces,
        )
        self._consumer = CallConsumer(
            self._broker,
            topics=sorted(settings.topic(tool_queue(queue)) for queue in self._queues),
            group_id=f"{settings.topic_prefix}{TOOLS_GROUP}",
            handle=runner.handle,
            concurrency=settings.tools_concurrency,
            session_timeout_ms=settings.tools_session_timeout_ms,
        )
        self._health = HealthServer(self.readiness, host=settings.http_host, port=settings.tools_port)

    @property
    def port(self) -> int:
        """The port of health and metrics, once started."""
        return self._health.port

    async def start(self) -> None:
        """Announces the tools on `tools`, then joins the group; partitions follow."""
        await self._health.start()
        await count_partitions(self._clients, self._settings, TOOL_CALLS)
        for queue in sorted(queue for queue in self._queues if queue is not None):
            await ensure_queue(self._clients, self._settings, queue)
        await self._outbox.start()
        await self._http.start()
        self._announcer = self._clients.producer()
        await self._announcer.start()
        await self._announce(self._toolbox.all())
        for server in self._mcp:
            server.start()
        await asyncio.gather(*(server.listed(timeout_seconds=MCP_START_SECONDS) for server in self._mcp))
        self._consumer.start()
        await self._broker.start()

    async def stop(self) -> None:
        """Running calls get the grace time to end and be answered; the rest is run again by another worker."""
        await self._consumer.stop(self._settings.tools_grace_seconds)
        await self._broker.stop()
        await asyncio.gather(*(server.stop() for server in self._mcp))
        await self._http.stop()
        await self._outbox.stop()
        if self._announcer is not None:
            await self._announcer.stop()
        await self._health.stop()
        await self._traces.close()

    async def readiness(self) -> dict[str, ComponentHealth]:
        hanging = self._threads.abandoned
        return {
            "calls": await self._consumer.health(),
            "results": self._outbox.health(),
            "threads": ComponentHealth(
                ready=hanging < self._settings.tools_concurrency,
                detail=f"{hanging} threads hang in sync tools past their time limit" if hanging else "",
            ),
        } | {f"mcp:{server.entry.name}": server.health() for server in self._mcp}

    async def _take_up(self, server: str, tools: Sequence[Tool]) -> None:
        """The tools that an MCP server has now."""
        taken = self._toolbox.replace(server, tools)
        if taken:
            log.warning("tool_names_taken", server=server, names=taken)
        await self._announce([tool for tool in tools if tool.spec.name not in taken])

    async def _announce(self, tools: Sequence[Tool]) -> None:
        """Writes the specs that this worker has not written yet."""
        assert self._announcer is not None
        for spec in (tool.spec for tool in tools):
            if self._announced.get(spec.name) != spec.version:
                await apply_spec(self._announcer, self._clients, self._settings, TOOLS, spec)
                self._announced[spec.name] = spec.version
