"""The HTTP interface of billing: inside the platform only; the gateway is the door, and the command line."""

from typing import Annotated

from fastapi import FastAPI, Query, Request, Response

from schemas.base import DEFAULT_TENANT, TenantId
from schemas.billing import BillingDocument, CreditBalance, CreditNoteTerms, DocumentForm, FinalizeInvoice, GrantCredit
from schemas.envelope import encode_event
from schemas.http import Page, PageLimit, Problem
from schemas.invoices import CreditGranted
from schemas.plans import Currency, Period
from services.runtime.web import problem_response
from services.usage.billing.billing import Billing
from services.usage.billing.errors import BillingRefusedError, Refusal
from services.usage.billing.ledger import Document
from services.usage.billing.rendering import Shown, as_csv, as_html
from services.usage.store import TooMuchAskedError

STATUS: dict[Refusal, int] = {"no-such-invoice": 404, "no-such-grant": 404, "not-payable": 422}
"""409 for the rest: it can't be as things are."""

TenantParameter = Annotated[TenantId, Query()]


def install_billing(app: FastAPI, billing: Billing) -> None:
    """Adds `/invoices` and `/credits`."""

    async def on_refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, BillingRefusedError)
        return problem_response(
            Problem(
                type=f"urn:turnlog:problem:{error.refusal}",
                title="Billing refuses that",
                status=STATUS.get(error.refusal, 409),
                detail=str(error),
            )
        )

    async def on_too_much(request: Request, error: Exception) -> Response:
        return problem_response(
            Problem(type="urn:turnlog:problem:too-much-asked", title="Too much asked", status=422, detail=str(error))
        )

    app.add_exception_handler(BillingRefusedError, on_refused)
    app.add_exception_handler(TooMuchAskedError, on_too_much)

    @app.get("/invoices")
    async def documents(
        tenant_id: TenantParameter = DEFAULT_TENANT, limit: PageLimit = 100, cursor: str | None = None
    ) -> Page[BillingDocument]:
        found = [_listed(each) for each in await billing.documents(tenant_id, before=cursor)]
        following = found[limit - 1].number if len(found) > limit else None
        return Page[BillingDocument](items=found[:limit], next_cursor=following)

    @app.get("/invoices/draft")
    async def draft(
        period: Period,
        tenant_id: TenantParameter = DEFAULT_TENANT,
        currency: Currency | None = None,
        form: DocumentForm = "json",
    ) -> Response:
        bill = await billing.draft(tenant_id, period, currency)
        return _shown(bill, encode_event(bill), form)

    @app.post("/invoices")
    async def finalize(asked: FinalizeInvoice) -> Response:
        return _as_written(await billing.finalize(asked))

    @app.get("/invoices/{number}")
    async def document(
        number: str, tenant_id: TenantParameter = DEFAULT_TENANT, form: DocumentForm = "json"
    ) -> Response:
        found = await billing.document(tenant_id, number)
        return _shown(found.event(), found.value, form)

    @app.post("/invoices/{number}/credit-notes")
    async def credit(number: str, terms: CreditNoteTerms, tenant_id: TenantParameter = DEFAULT_TENANT) -> Response:
        return _as_written(await billing.credit(tenant_id, number, terms))

    @app.get("/credits")
    async def credits(
        tenant_id: TenantParameter = DEFAULT_TENANT, limit: PageLimit | None = None, cursor: str | None = None
    ) -> Page[CreditBalance]:
        balances = await billing.balances(tenant_id, after=cursor)
        found = [CreditBalance(grant=each.grant, left=each.left) for each in balances[:limit]]
        following = found[-1].grant.grant_id if len(found) < len(balances) else None
        return Page[CreditBalance](items=found, next_cursor=following)

    @app.post("/credits")
    async def grant(terms: GrantCredit) -> CreditGranted:
        return await billing.grant(terms)


def _shown(document: Shown, value: bytes, form: DocumentForm) -> Response:
    """As JSON it is `value`: of what is on the log every byte, so that its hash holds."""
    match form:
        case "json":
            return Response(value, media_type="application/json")
        case "csv":
            return Response(as_csv(document), media_type="text/csv; charset=utf-8")
        case "html":
            return Response(as_html(document), media_type="text/html; charset=utf-8")


def _as_written(document: Document) -> Response:
    return _shown(document.event(), document.value, "json")


def _listed(document: Document) -> BillingDocument:
    return BillingDocument(
        kind="invoice" if document.document_id == document.invoice_id else "credit_note",
        number=document.number,
        document_id=document.document_id,
        invoice_id=document.invoice_id,
        tenant_id=document.tenant_id,
        period=document.period,
        currency=document.currency,
        total=document.total,
    )
