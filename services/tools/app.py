"""Wiring of the tools worker."""

from schemas.http import ComponentHealth
from schemas.tool_calls import ToolCalled, ToolFailed, ToolReturned
from schemas.topics import TOOLS, tool_queue
from services.runtime.failpoints import Failpoints
from services.runtime.health import HealthServer
from services.runtime.kafka import KafkaClients
from services.runtime.registry import apply_spec
from services.runtime.stream import build_broker
from services.runtime.topics import ensure_queue
from services.tools.execution import execute
from services.tools.kafka import CallConsumer
from services.tools.registration import collect
from services.tools.settings import ToolsSettings


class ToolsService:
    """One worker. Start as many as needed; they share the partitions of the queues."""

    name = "tools"

    def __init__(self, settings: ToolsSettings) -> None:
        self._settings = settings
        self._tools = collect(settings.tools_modules)
        self._clients = KafkaClients(settings, client_id="turnlog-tools")
        self._broker = build_broker(settings, client_id="turnlog-tools")
        self._queues = sorted({tool.spec.queue for tool in self._tools.values() if tool.spec.queue})
        self._consumer = CallConsumer(
            self._broker,
            settings=settings,
            clients=self._clients,
            topics=[tool_queue(None), *map(tool_queue, self._queues)],
            execute=self._execute,
            concurrency=settings.tools_concurrency,
            failpoints=Failpoints(settings.failpoints),
        )
        self._health = HealthServer(self.readiness, host=settings.http_host, port=settings.tools_port)
        self._started = False

    async def start(self) -> None:
        """Announces the tools, then takes calls."""
        await self._health.start()
        for queue in self._queues:
            await ensure_queue(self._clients, self._settings, queue)
        producer = self._clients.producer()
        await producer.start()
        try:
            for tool in self._tools.values():
                await apply_spec(producer, self._clients, self._settings, TOOLS, tool.spec)
        finally:
            await producer.stop()
        await self._consumer.start()
        await self._broker.start()
        self._started = True

    async def stop(self) -> None:
        self._started = False
        await self._consumer.stop(self._settings.tools_grace_seconds)
        await self._broker.stop()
        await self._health.stop()

    async def readiness(self) -> dict[str, ComponentHealth]:
        return {"calls": ComponentHealth(ready=self._started, detail=f"{len(self._tools)} tools")}

    async def _execute(self, call: ToolCalled) -> ToolReturned | ToolFailed:
        tool = self._tools.get(call.name)
        return await execute(tool, call, max_result_bytes=self._settings.tools_max_result_bytes)
