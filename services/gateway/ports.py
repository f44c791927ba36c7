"""What routes work with."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError

from schemas.agents import AgentSpec
from schemas.base import DEFAULT_TENANT, TenantId
from schemas.plans import PlanSpec, SubscriptionSpec
from schemas.prices import PriceSpec
from schemas.tools import ToolSpec
from services.gateway.kafka import ThreadLog
from services.gateway.settings import GatewaySettings
from services.gateway.upstream import Upstream
from services.runtime.budgets import BudgetBoard
from services.runtime.registry import Registry

_TENANT_ID = TypeAdapter[str](TenantId)


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
    """The tenant of a request; its header counts only behind a proxy that is trusted to set it.

    Raises RequestValidationError where it names none.
    """
    named = request.headers.get("x-tenant-id") if ports_of(request).settings.trust_tenant_header else None
    try:
        return _TENANT_ID.validate_python(named or DEFAULT_TENANT)
    except ValidationError as error:
        raise RequestValidationError([{**each, "loc": ("header", "X-Tenant-Id")} for each in error.errors()]) from error


PortsDep = Annotated[Ports, Depends(ports_of)]
TenantDep = Annotated[str, Depends(tenant_of)]
