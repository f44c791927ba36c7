"""What routes work with."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from schemas.agents import AgentSpec
from schemas.base import DEFAULT_TENANT
from schemas.plans import PlanSpec, SubscriptionSpec
from schemas.prices import PriceSpec
from schemas.tools import ToolSpec
from services.gateway.kafka import ThreadLog
from services.gateway.settings import GatewaySettings
from services.gateway.upstream import Upstream
from services.runtime.budgets import BudgetBoard
from services.runtime.registry import Registry


@dataclass(frozen=True)
class Ports:
    """Everything behind the gateway."""

    settings: GatewaySettings
    log: ThreadLog
    memory: Upstream
    usage: Upstream
    agents: Registry[AgentSpec]
    tools: Registry[ToolSpec]
    prices: Registry[PriceSpec]
    budgets: BudgetBoard
    plans: Registry[PlanSpec | SubscriptionSpec]


def ports_of(request: Request) -> Ports:
    return request.app.state.ports


def tenant_of(request: Request) -> str:
    """The tenant of a request; its header counts only behind a proxy that is trusted to set it."""
    ports = ports_of(request)
    if ports.settings.trust_tenant_header:
        return request.headers.get("x-tenant-id") or DEFAULT_TENANT
    return DEFAULT_TENANT


PortsDep = Annotated[Ports, Depends(ports_of)]
TenantDep = Annotated[str, Depends(tenant_of)]
