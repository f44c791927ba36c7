"""Wiring of the tools worker."""

from datetime import UTC, datetime

from schemas.http import ComponentHealth
from schemas.topics import TOOL_CALLS, TOOLS, tool_queue
from services.runtime.failpoints import Failpoints
from services.runtime.groups import TOOLS_GROUP
from services.runtime.health import HealthServer
from services.runtime.kafka import KafkaClients
from services.runtime.registry import apply_spec
from services.runtime.stream import build_broker
from services.runtime.topics import count_partitions, ensure_queue
from services.tools.calls import CallRunner
from services.tools.execution import Executor
from services.tools.kafka import CallConsumer
from services.tools.modules import load_tools
from services.tools.results import KafkaOutbox
from services.tools.settings import ToolsSettings
from services.tools.threads import Threads
from services.tools.tool import Tool
from services.tools.toolbox import Toolbox


class ToolsService:
    """One worker. Start as many as needed; they share the partitions of the queues that their tools name."""

    name = "tools"

    def __init__(self, settings: ToolsSettings) -> None:
        """Raises ConfigurationError when a module or the file of tools cannot be used."""
        self._settings = settings
        self._toolbox = Toolbox(load_tools(settings.tools_modules))
        self._queues = {tool.spec.queue for tool in self._toolbox.all()} or {None}
        self._threads = Threads()
        self._clients = KafkaClients(settings, client_id="turnlog-tools")
        self._outbox = KafkaOutbox(self._clients)
        self._broker = build_broker(settings, client_id="turnlog-tools")
        runner = CallRunner(
            toolbox=self._toolbox,
            executor=Executor(threads=self._threads, now=lambda: datetime.now(UTC)),
            outbox=self._outbox,
            failpoints=Failpoints(settings.failpoints),
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
        await self._announce(self._toolbox.all())
        self._consumer.start()
        await self._broker.start()

    async def stop(self) -> None:
        """Running calls get the grace time to end and be answered; the rest is run again by another worker."""
        await self._consumer.stop(self._settings.tools_grace_seconds)
        await self._broker.stop()
        await self._outbox.stop()
        await self._health.stop()

    async def readiness(self) -> dict[str, ComponentHealth]:
        hanging = self._threads.abandoned
        return {
            "calls": await self._consumer.health(),
            "results": self._outbox.health(),
            "threads": ComponentHealth(
                ready=hanging < self._settings.tools_concurrency,
                detail=f"{hanging} threads hang in sync tools past their time limit" if hanging else "",
            ),
        }

    async def _announce(self, tools: list[Tool]) -> None:
        producer = self._clients.producer()
        await producer.start()
        try:
            for tool in tools:
                await apply_spec(producer, self._clients, self._settings, TOOLS, tool.spec)
        finally:
            await producer.stop()
