"""`/v1/budgets`: what may be spent, and what is."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from schemas.budgets import BudgetSpec, BudgetState, Level
from schemas.http import Page
from schemas.topics import BUDGETS
from services.gateway.ports import Ports, PortsDep, TenantDep
from services.gateway.routes.catalog import apply, no_slips, operators_own
from services.runtime.web import problem

router = APIRouter(tags=["usage"])


@router.get("/v1/budgets")
async def list_budgets(ports: PortsDep, tenant_id: TenantDep) -> Page[BudgetSpec]:
    """The budgets that hold now; where tenants ask, those that are about the tenant."""
    return Page[BudgetSpec](items=_seen(ports, tenant_id))


@router.post("/v1/budgets", status_code=201, dependencies=[Depends(operators_own), Depends(no_slips(BudgetSpec))])
async def apply_budget(spec: BudgetSpec, ports: PortsDep) -> dict[str, Any]:
    """Applies a version of a budget; running workers go by it at once."""
    return await apply(ports, BUDGETS, spec)


@router.get("/v1/budgets/{name}/accounts")
async def list_accounts(
    name: str,
    ports: PortsDep,
    tenant_id: TenantDep,
    level: Level | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: Annotated[int, Query(ge=0)] = 0,
) -> Page[BudgetState]:
    """Where the accounts of a budget stand, most spent first; where tenants ask, those of the tenant.

    Pages are cut when they are asked for: an account that spends between two of them can move from one to the other.
    """
    if all(spec.name != name for spec in _seen(ports, tenant_id)):
        raise problem(404, "not-found", "Not found", f"there is no budget {name!r}")
    whose = tenant_id if ports.settings.trust_tenant_header else None
    found = [state for state in ports.budgets.accounts(name, tenant_id=whose) if level in (None, state.level)]
    end = cursor + limit
    return Page[BudgetState](items=found[cursor:end], next_cursor=str(end) if len(found) > end else None)


def _seen(ports: Ports, tenant_id: str) -> list[BudgetSpec]:
    budgets = ports.budgets.budgets
    return list(budgets.of(tenant_id) if ports.settings.trust_tenant_header else budgets.all())
