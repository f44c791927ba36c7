"""`/v1/plans`, `/v1/subscriptions`, `/v1/invoices` and `/v1/credits`.

What is paid is the operator's to set: tenants read what is theirs.
"""

from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse

from schemas.billing import (
    BillingDocument,
    CreditBalance,
    CreditNoteTerms,
    DocumentForm,
    FinalizeInvoice,
    GrantCredit,
    InvoiceDraft,
)
from schemas.http import Page, PageLimit
from schemas.invoices import CreditGranted, CreditNoteIssued, InvoiceFinalized
from schemas.plans import Currency, Period, PlanSpec, SubscriptionSpec
from schemas.topics import PLANS
from services.gateway.ports import PortsDep
from services.gateway.routes.catalog import AskedTenant, apply, no_slips, operators_own
from services.gateway.upstream import path_of

router = APIRouter(tags=["billing"])

OPERATORS = [Depends(operators_own)]


@router.get("/v1/plans", dependencies=OPERATORS)
async def list_plans(ports: PortsDep) -> Page[PlanSpec | SubscriptionSpec]:
    """Every version of every plan and subscription that was applied, the latest last."""
    return Page[PlanSpec | SubscriptionSpec](items=list(ports.plans.history()))


@router.post("/v1/plans", status_code=201, dependencies=[*OPERATORS, Depends(no_slips(PlanSpec))])
async def apply_plan(spec: PlanSpec, ports: PortsDep) -> dict[str, Any]:
    """Applies a version of a plan; drafts follow at once, invoices that are final never."""
    return await apply(ports, PLANS, spec)


@router.post("/v1/subscriptions", status_code=201, dependencies=[*OPERATORS, Depends(no_slips(SubscriptionSpec))])
async def apply_subscription(spec: SubscriptionSpec, ports: PortsDep) -> dict[str, Any]:
    """Gives a tenant, or all that have none of their own, a plan from a month on."""
    return await apply(ports, PLANS, spec)


@router.get("/v1/invoices", response_model=Page[BillingDocument])
async def list_invoices(
    ports: PortsDep, tenant_id: AskedTenant, limit: PageLimit = 100, cursor: str | None = None
) -> Any:
    """Invoices and credit notes of a tenant, the latest first."""
    return await ports.usage.get("invoices", tenant_id=tenant_id, limit=limit, cursor=cursor)


@router.get("/v1/invoices/draft", response_model=InvoiceDraft)
async def draft_invoice(
    ports: PortsDep,
    tenant_id: AskedTenant,
    period: Period,
    form: DocumentForm = "json",
    currency: Currency | None = None,
) -> Any:
    """The bill of a month as of now: what was used, adjustments of months before, and what credits would pay."""
    return await ports.usage.stream("invoices/draft", tenant_id=tenant_id, period=period, form=form, currency=currency)


@router.post("/v1/invoices", response_model=InvoiceFinalized, dependencies=OPERATORS)
async def finalize_invoice(asked: FinalizeInvoice, ports: PortsDep) -> Any:
    """Makes the invoice of a month that is over. Asked again it is the same one."""
    return JSONResponse(await ports.usage.post("invoices", asked.model_dump_json()))


@router.get("/v1/invoices/{number}", response_model=InvoiceFinalized | CreditNoteIssued)
async def get_invoice(number: str, ports: PortsDep, tenant_id: AskedTenant, form: DocumentForm = "json") -> Any:
    """An invoice or a credit note, to the byte as it is on the log; or as `csv`, or as an `html` page to print."""
    return await ports.usage.stream(path_of("invoices", number), tenant_id=tenant_id, form=form)


@router.post("/v1/invoices/{number}/credit-notes", response_model=CreditNoteIssued, dependencies=OPERATORS)
async def issue_credit_note(number: str, terms: CreditNoteTerms, ports: PortsDep, tenant_id: AskedTenant) -> Any:
    """Takes off an invoice what its month comes to less by now, or an amount of goodwill. A `key` is used once."""
    path = f"{path_of('invoices', number, 'credit-notes')}?{urlencode({'tenant_id': tenant_id})}"
    return JSONResponse(await ports.usage.post(path, terms.model_dump_json()))


@router.get("/v1/credits", response_model=Page[CreditBalance])
async def list_credits(
    ports: PortsDep, tenant_id: AskedTenant, limit: PageLimit | None = None, cursor: str | None = None
) -> Any:
    """Grants of a tenant and what is left of each, in the order in which they are consumed; all without a `limit`."""
    return await ports.usage.get("credits", tenant_id=tenant_id, limit=limit, cursor=cursor)


@router.post("/v1/credits", response_model=CreditGranted, dependencies=OPERATORS)
async def grant_credit(terms: GrantCredit, ports: PortsDep) -> Any:
    """Grants credit, or takes note of what was paid in advance. The same `grant_id` again is the same grant."""
    return await ports.usage.post("credits", terms.model_dump_json())
