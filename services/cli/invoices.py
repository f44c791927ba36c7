"""`turnlog invoices` and `turnlog credits`: with the usage service itself, since they are the operator's."""

import json
import sys
from datetime import UTC, date, datetime, time
from typing import Any, TypeVar
from urllib.parse import quote
from uuid import uuid4

from pydantic import BaseModel, TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table

from schemas.base import format_amount
from schemas.billing import (
    BillingDocument,
    CreditBalance,
    CreditNoteTerms,
    DocumentForm,
    FinalizeInvoice,
    GrantCredit,
    InvoiceDraft,
)
from schemas.http import Page
from schemas.invoices import Bill, CreditNoteIssued, InvoiceEvent, InvoiceFinalized, content_hash
from services.cli.gateway import request
from services.runtime.errors import ConfigurationError
from services.runtime.settings import RuntimeSettings, load_settings

console = Console(highlight=False)

M = TypeVar("M", bound=BaseModel)

_DOCUMENT: TypeAdapter[Any] = TypeAdapter(InvoiceEvent)


async def listing(tenant_id: str) -> None:
    table = Table("number", "kind", "period", "total", "of invoice")
    cursor: str | None = None
    numbers: dict[str, str] = {}
    found: list[BillingDocument] = []
    while True:
        parameters = {"tenant_id": tenant_id} | ({"cursor": cursor} if cursor else {})
        page = Page[BillingDocument].model_validate_json(await _ask("GET", "/invoices", params=parameters))
        found += page.items
        if (cursor := page.next_cursor) is None:
            break
    numbers = {each.document_id: each.number for each in found}
    for each in found:
        about = "" if each.kind == "invoice" else numbers.get(each.invoice_id, "")
        total = f"{format_amount(each.total)} {each.currency}"
        table.add_row(each.number, each.kind.replace("_", " "), each.period, total, about)
    console.print(table)


async def show(number: str, tenant_id: str) -> int:
    """Exit code 1 when the document is not what its hash says."""
    text = await _document(number, tenant_id, "json")
    value = json.loads(text)
    document = _DOCUMENT.validate_python(value)
    _print(document)
    holds = content_hash(value) == document.sha256
    console.print(f"SHA-256 {document.sha256}: {'holds' if holds else 'DOES NOT HOLD'}")
    return 0 if holds else 1


async def draft(period: str, tenant_id: str) -> None:
    text = await _ask("GET", "/invoices/draft", params={"tenant_id": tenant_id, "period": period})
    bill = InvoiceDraft.model_validate_json(text)
    _print(bill)
    if bill.finalized_as:
        console.print(f"{bill.finalized_as} is the invoice of {bill.period}; this is what the month comes to by now")
    for each in bill.left_over:
        amount = f"{format_amount(each.amount)} {each.currency}"
        console.print(f"not in it: {amount} of {each.charge or 'the minimum'} of {each.period} ({each.reason})")
    for each in bill.unpriced:
        names = " ".join(name for name in (each.kind, each.provider, each.model, each.tool) if name)
        console.print(f"not in it: {each.events} events of {names}, whose price in {bill.currency} nobody knows")


async def finalize(period: str, tenant_id: str, *, allow_unpriced: bool) -> None:
    asked = _asked(FinalizeInvoice, tenant_id=tenant_id, period=period, allow_unpriced=allow_unpriced)
    invoice = InvoiceFinalized.model_validate_json(await _ask("POST", "/invoices", json=asked.model_dump(mode="json")))
    console.print(f"{invoice.number}: {format_amount(invoice.total)} {invoice.currency}, SHA-256 {invoice.sha256}")


async def credit(number: str, tenant_id: str, *, reason: str, amount: str | None, key: str | None) -> None:
    terms = _asked(CreditNoteTerms, key=key or str(uuid4()), reason=reason, amount=amount)
    text = await _ask(
        "POST", f"/invoices/{quote(number, safe='')}/credit-notes", params={"tenant_id": tenant_id}, json=_json(terms)
    )
    note = CreditNoteIssued.model_validate_json(text)
    console.print(f"{note.number}: {format_amount(note.total)} {note.currency}, SHA-256 {note.sha256}")


async def export(number: str, tenant_id: str, form: DocumentForm) -> None:
    """To standard output, to the byte."""
    sys.stdout.buffer.write((await _document(number, tenant_id, form)).encode())
    sys.stdout.buffer.flush()


async def grant(*, expires_at: str | None, **fields: str) -> None:
    terms = _asked(GrantCredit, expires_at=_time(expires_at), **fields)
    await _ask("POST", "/credits", json=_json(terms))
    console.print(f"{terms.tenant_id} has {terms.grant_id}: {format_amount(terms.amount)} {terms.currency}")


async def balances(tenant_id: str) -> None:
    text = await _ask("GET", "/credits", params={"tenant_id": tenant_id})
    table = Table("grant", "kind", "amount", "left", "expires", "description")
    for each in Page[CreditBalance].model_validate_json(text).items:
        terms = each.grant
        table.add_row(
            terms.grant_id,
            terms.kind,
            f"{format_amount(terms.amount)} {terms.currency}",
            format_amount(each.left),
            terms.expires_at.isoformat() if terms.expires_at else "never",
            terms.description,
        )
    console.print(table)


def _print(document: Bill | CreditNoteIssued) -> None:
    number = getattr(document, "number", "draft")
    table = Table("period", "charge", "quantity", "unit", document.currency, title=f"{number} of {document.tenant_id}")
    for line in document.lines:
        name = line.charge or line.kind
        shown = name if line.kind in ("charge", "minimum") else f"{line.kind}: {name}"
        quantity = "" if line.quantity is None else f"{line.quantity:,f}"
        table.add_row(line.period, shown, quantity, line.unit or "", format_amount(line.amount))
    for use in document.credits:
        paid = use.amount.copy_negate() if isinstance(document, Bill) else use.amount
        table.add_row("", f"credit: {use.grant_id}", "", "", format_amount(paid))
    table.add_row("", "total", "", "", format_amount(document.total), style="bold")
    console.print(table)


def _asked(model: type[M], /, **fields: object) -> M:
    """Raises ConfigurationError naming the option that cannot be."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigurationError(f"{'.'.join(str(step) for step in first['loc'])}: {first['msg']}") from error


def _time(text: str | None) -> datetime | str | None:
    """A date is its midnight in UTC; what is none is left to the model."""
    try:
        return None if text is None else datetime.combine(date.fromisoformat(text), time(), UTC)
    except ValueError:
        return text


def _json(asked: CreditNoteTerms | GrantCredit) -> dict[str, Any]:
    return asked.model_dump(mode="json")


async def _document(number: str, tenant_id: str, form: DocumentForm) -> str:
    parameters = {"tenant_id": tenant_id, "form": form}
    return await _ask("GET", f"/invoices/{quote(number, safe='')}", params=parameters)


async def _ask(method: str, path: str, **options: Any) -> str:
    async with request(load_settings(RuntimeSettings), method, path, service="usage", **options) as response:
        return await response.text()
