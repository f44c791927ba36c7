"""Wiring of the agents worker."""

from schemas.agents import AgentSpec
from schemas.http import ComponentHealth
from schemas.tools import ToolSpec
from schemas.topics import AGENTS, PROMPTS, TOOLS
from services.agents.actor import TurnActor
from services.agents.budgets import BudgetGate
from services.agents.chat_completions import ChatCompletions
from services.agents.context_handlers import ContextHandlers
from services.agents.intake import Intake
from services.agents.kafka import DeltaPublisher
from services.agents.memory import MemoryClient
from services.agents.providers import providers_from
from services.agents.settings import AgentsSettings
from services.agents.turn.state import ThreadState
from services.runtime.budgets import BudgetBoard
from services.runtime.definitions import DefinitionsCheck
from services.runtime.failpoints import Failpoints
from services.runtime.groups import AGENTS_GROUP
from services.runtime.health import HealthServer
from services.runtime.kafka import KafkaClients
from services.runtime.owner.worker import OwnerWorker
from services.runtime.prices import Prices
from services.runtime.registry import Registry
from services.runtime.telemetry import traces_of
from services.runtime.topics import count_partitions


class AgentsService:
    """One worker. Start as many as there are partitions; they share them."""

    name = "agents"

    def __init__(self, settings: AgentsSettings) -> None:
        self._settings = settings
        self._clients = KafkaClients(settings, client_id="turnlog-agents")
        self._agents: Registry[AgentSpec] = Registry(self._clients, settings, AGENTS)
        self._tools: Registry[ToolSpec] = Registry(self._clients, settings, TOOLS)
        self._budgets = BudgetBoard(self._clients, settings)
        self._prices = Prices(self._clients, settings)
        self._definitions = DefinitionsCheck(self._clients, settings)
        self._memory = MemoryClient(settings.memory_base_url)
        self._models = ChatCompletions(providers_from(settings))
        self._context_handlers = ContextHandlers(settings.context_handlers)
        self._deltas = DeltaPublisher(self._clients)
        self._failpoints = Failpoints(settings.failpoints)
        self._traces = traces_of(settings, self.name)
        self._worker: OwnerWorker[ThreadState] | None = None
        self._health = HealthServer(self.readiness, host=settings.http_host, port=settings.agents_port)

    async def start(self) -> None:
        """Returns when the worker has joined the group; partitions follow."""
        settings = self._settings
        await self._health.start()
        partitions = await count_partitions(self._clients, settings, PROMPTS)
        await self._memory.start()
        await self._models.start()
        await self._context_handlers.start()
        await self._deltas.start()
        await self._agents.start()
        await self._tools.start()
        await self._budgets.start()
        await self._prices.start()
        await self._definitions.start()
        intake = Intake(memory=self._memory, agents=self._agents, tools=self._tools, partitions=partitions)
        actor = TurnActor(
            intake=intake,
            memory=self._memory,
            model=self._models,
            context_handlers=self._context_handlers,
            agents=self._agents,
            tools=self._tools,
            budgets=BudgetGate(self._budgets, self._prices.book),
            prices=self._prices.book,
            default_model=settings.model,
            call_seconds=settings.model_timeout_seconds,
            send_delta=self._deltas.send,
            traces=self._traces,
        )
        self._worker = OwnerWorker(
            actor=actor,
            group_id=f"{settings.topic_prefix}{AGENTS_GROUP}",
            clients=self._clients,
            settings=settings,
            failpoints=self._failpoints,
            max_open=settings.max_open_turns,
            session_timeout_ms=settings.session_timeout_ms,
            instance_id=settings.instance_id,
        )
        await self._worker.start()

    async def stop(self) -> None:
        """Model calls in flight get the grace time to end and be committed; the rest is left to the next owner."""
        if self._worker is not None:
            await self._worker.stop(self._settings.grace_seconds)
        await self._definitions.stop()
        await self._deltas.stop()
        await self._prices.stop()
        await self._budgets.stop()
        await self._tools.stop()
        await self._agents.stop()
        await self._context_handlers.stop()
        await self._models.stop()
        await self._memory.stop()
        await self._health.stop()
        await self._traces.close()

    async def readiness(self) -> dict[str, ComponentHealth]:
        worker = self._worker
        unreachable = await self._models.reachable()
        return {
            "partitions": worker.health() if worker else ComponentHealth(ready=False, detail="starting"),
            "memory": ComponentHealth(ready=await self._memory.ready(), detail=self._settings.memory_base_url),
            "model": ComponentHealth(ready=unreachable is None, detail=unreachable or ""),
        }
