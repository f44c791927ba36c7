"""`/v1/agents`, `/v1/tools`, `/v1/prices` and `/v1/usage`."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from schemas.agents import AgentSpec
from schemas.analytics import UsageQuality, UsageRow
from schemas.base import Spec, TenantId
from schemas.http import Page
from schemas.prices import PriceSpec
from schemas.tools import ToolSpec
from schemas.topics import AGENTS, PRICES, TOOLS, Topic
from services.gateway.ports import Ports, PortsDep, TenantDep
from services.runtime.registry import spec_key
from services.runtime.web import problem

router = APIRouter()


@router.get("/v1/agents", tags=["agents"])
async def list_agents(ports: PortsDep, tenant_id: TenantDep) -> Page[AgentSpec]:
    return Page[AgentSpec](items=ports.agents.all(tenant_id))


@router.get("/v1/agents/{name}", tags=["agents"])
async def get_agent(name: str, ports: PortsDep, tenant_id: TenantDep, version: str | None = None) -> AgentSpec:
    spec = ports.agents.get(name, tenant_id=tenant_id, version=version)
    if spec is None:
        raise problem(404, "not-found", "Not found", f"there is no agent {name!r}")
    return spec


@router.post("/v1/agents", status_code=201, tags=["agents"])
async def apply_agent(spec: AgentSpec, ports: PortsDep, tenant_id: TenantDep) -> dict[str, Any]:
    """Applies a version of an agent; running workers take it up at once."""
    _check_owner(ports, spec, tenant_id)
    return await apply(ports, AGENTS, spec)


@router.get("/v1/tools", tags=["tools"])
async def list_tools(ports: PortsDep, tenant_id: TenantDep) -> Page[ToolSpec]:
    return Page[ToolSpec](items=ports.tools.all(tenant_id))


@router.post("/v1/tools", status_code=201, tags=["tools"])
async def apply_tool(spec: ToolSpec, ports: PortsDep, tenant_id: TenantDep) -> dict[str, Any]:
    """Announces a tool whose calls a worker of your own answers."""
    _check_owner(ports, spec, tenant_id)
    return await apply(ports, TOOLS, spec)


def operators_own(ports: PortsDep) -> None:
    """No tenant sets what it pays or may spend, or sees what others pay."""
    if ports.settings.trust_tenant_header:
        raise problem(403, "operators-only", "Not for tenants", "the operator does this with `turnlog`")


def asked_tenant(ports: PortsDep, own: TenantDep, tenant_id: TenantId | None = None) -> str:
    """Whose usage or bill is asked for: the operator names any tenant, a tenant no other one."""
    if ports.settings.trust_tenant_header and tenant_id not in (None, own):
        raise problem(403, "other-tenant", "Not yours", f"tenant_id must be {own!r}, the tenant that asks")
    return tenant_id or own


AskedTenant = Annotated[str, Depends(asked_tenant)]


def no_slips(kind: type[Spec]) -> Callable[[Request], Awaitable[None]]:
    """A field that a definition does not have is refused: somebody would pay for the slip of the pen."""

    async def check(request: Request) -> None:
        try:
            kind.model_validate_json(await request.body(), extra="forbid")
        except ValidationError as error:
            raise RequestValidationError([{**e, "loc": ("body", *e["loc"])} for e in error.errors()]) from error

    return check


@router.get("/v1/prices", tags=["usage"], dependencies=[Depends(operators_own)])
async def list_prices(ports: PortsDep) -> Page[PriceSpec]:
    """Every version of every price that was applied, the latest last."""
    return Page[PriceSpec](items=list(ports.prices.history()))


@router.post(
    "/v1/prices", status_code=201, tags=["usage"], dependencies=[Depends(operators_own), Depends(no_slips(PriceSpec))]
)
async def apply_price(spec: PriceSpec, ports: PortsDep) -> dict[str, Any]:
    """Applies a version of a price; sums of usage follow at once."""
    return await apply(ports, PRICES, spec)


@router.get("/v1/usage", response_model=Page[UsageRow], tags=["usage"])
async def usage(request: Request, ports: PortsDep, tenant_id: AskedTenant) -> Any:
    """Sums of usage: `group_by=user,model`, `bucket`, `from`, `to`, `compare`, `per`, filters, `order_by`, `limit`.

    Of the tenant that asks, or of the one that the operator names.
    `format=csv` and `format=parquet` answer with a file of every group.
    """
    parameters: dict[str, object] = {**request.query_params, "tenant_id": tenant_id}
    if request.query_params.get("format", "json") != "json":
        return await ports.usage.stream("usage", **parameters)
    return await ports.usage.get("usage", **parameters)


@router.get("/v1/usage/quality", response_model=Page[UsageQuality], tags=["usage"])
async def quality(request: Request, ports: PortsDep, tenant_id: AskedTenant) -> Any:
    """Latency, time to the first token, errors, retries and lost attempts: `group_by`, `bucket`, times, filters."""
    return await ports.usage.get("usage/quality", **{**request.query_params, "tenant_id": tenant_id})


async def apply(ports: Ports, topic: Topic, spec: Spec) -> dict[str, Any]:
    """Writes a version of a definition onto its topic, and says which one it is. Raises UnavailableError."""
    await ports.log.send(topic, spec, spec_key(spec))
    return {"name": spec.name, "version": spec.version}


def _check_owner(ports: Ports, spec: Spec, tenant_id: str) -> None:
    if ports.settings.trust_tenant_header and spec.tenant_id != tenant_id:
        raise problem(403, "other-tenant", "Not yours", f"tenant_id must be {tenant_id!r}, the tenant that asks")
