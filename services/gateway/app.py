"""Wiring of the gateway."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import RedirectResponse

from schemas.agents import AgentSpec
from schemas.http import ComponentHealth, Problem
from schemas.plans import PlanSpec, SubscriptionSpec
from schemas.prices import PriceSpec
from schemas.tools import ToolSpec
from schemas.topics import AGENTS, MAX_EVENT_BYTES, PLANS, PRICES, PROMPTS, TOOLS
from services.gateway.bodies import ReadableBodies
from services.gateway.kafka import ThreadLog
from services.gateway.ports import Ports
from services.gateway.routes import billing, budgets, catalog, openai, prompts, threads
from services.gateway.settings import GatewaySettings
from services.gateway.upstream import Upstream
from services.runtime.budgets import BudgetBoard
from services.runtime.groups import AGENTS_GROUP
from services.runtime.health import ReadinessCheck
from services.runtime.kafka import KafkaClients
from services.runtime.membership import group_members
from services.runtime.registry import Registry
from services.runtime.service import Service
from services.runtime.telemetry import traceparent_in, traces_of, within
from services.runtime.topics import count_partitions
from services.runtime.web import PROBLEM_JSON, WebServer, install_health, install_problems

MEMORY_SECONDS, USAGE_SECONDS = 15, 60
"""Longest wait for an answer of memory, which waits 5 s for what it has not read yet, and of usage, which gives a
question 50 s at most."""


PROBLEMS: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "A problem document (RFC 9457)",
        "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
}


class _Described(FastAPI):
    """Its reference has the schema of problems: as the model of a route FastAPI would say that they are plain JSON."""

    def openapi(self) -> dict[str, Any]:
        reference = super().openapi()
        problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        reference["components"]["schemas"] |= {**problem.pop("$defs"), "Problem": problem}
        return reference


def build_api(ports: Ports, check: ReadinessCheck) -> FastAPI:
    """The public API over the ports."""
    app = _Described(
        title="Turnlog", description="Threads, turns and usage of AI agents, on a log.", responses=PROBLEMS
    )
    app.state.ports = ports
    install_problems(app)
    install_health(app, check)
    for router in (threads.router, prompts.router, catalog.router, budgets.router, billing.router, openai.router):
        app.include_router(router)

    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        return RedirectResponse("/docs")

    @app.middleware("http")
    async def enter(request: Request, following: Callable[[Request], Awaitable[Response]]) -> Response:
        with within(traceparent_in(request.headers)):
            return await following(request)

    app.add_middleware(ReadableBodies, max_bytes=MAX_EVENT_BYTES)
    return app


class GatewayService:
    """The public HTTP interface. Has no state of its own: start as many as needed.

    Args:
        beside: services of the same process, which its readiness includes.
    """

    name = "gateway"

    def __init__(self, settings: GatewaySettings, *, beside: Sequence[Service] = ()) -> None:
        self._settings = settings
        self._clients = KafkaClients(settings, client_id="turnlog-gateway")
        self._traces = traces_of(settings, self.name)
        self._ports = Ports(
            settings=settings,
            log=ThreadLog(self._clients, settings, traces=self._traces),
            memory=Upstream("memory", settings.memory_base_url, seconds=MEMORY_SECONDS),
            usage=Upstream("usage", settings.usage_base_url, seconds=USAGE_SECONDS),
            agents=Registry[AgentSpec](self._clients, settings, AGENTS),
            tools=Registry[ToolSpec](self._clients, settings, TOOLS),
            prices=Registry[PriceSpec](self._clients, settings, PRICES),
            budgets=BudgetBoard(self._clients, settings),
            plans=Registry[PlanSpec | SubscriptionSpec](self._clients, settings, PLANS),
        )
        self._beside = beside
        self._server = WebServer(
            build_api(self._ports, self.readiness), host=settings.http_host, port=settings.http_port
        )

    async def start(self) -> None:
        ports = self._ports
        await ports.memory.start()
        await ports.usage.start()
        await ports.log.start(await count_partitions(self._clients, self._settings, PROMPTS))
        await ports.agents.start()
        await ports.tools.start()
        await ports.prices.start()
        await ports.budgets.start()
        await ports.plans.start()
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop()
        await self._ports.plans.stop()
        await self._ports.budgets.stop()
        await self._ports.prices.stop()
        await self._ports.tools.stop()
        await self._ports.agents.stop()
        await self._ports.log.stop()
        await self._ports.usage.stop()
        await self._ports.memory.stop()
        await self._traces.close()

    async def readiness(self) -> dict[str, ComponentHealth]:
        """Ready when a prompt would be answered: Kafka, memory, usage, agents in their group, and what is beside."""
        memory = await self._ports.memory.ready()
        usage = await self._ports.usage.ready()
        workers = await group_members(self._clients, f"{self._settings.topic_prefix}{AGENTS_GROUP}")
        components = {
            "kafka": self._ports.log.health(),
            "memory": ComponentHealth(ready=memory is None, detail=memory or ""),
            "usage": ComponentHealth(ready=usage is None, detail=usage or ""),
            "agents": ComponentHealth(
                ready=bool(workers),
                detail=f"{workers} workers" if workers else "no agents worker: `turnlog run agents`",
            ),
        }
        for service in self._beside:
            failing = [each for each in (await service.readiness()).values() if not each.ready]
            if failing:
                detail = "; ".join(each.detail for each in failing)
                components[service.name] = ComponentHealth(ready=False, detail=detail)
        return components
