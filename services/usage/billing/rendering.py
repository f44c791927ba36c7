"""Bills, invoices and credit notes as CSV and as a page to print. Pure but for the template, which is a file beside."""

import csv
import io
from decimal import Decimal
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from schemas.base import format_amount
from schemas.invoices import Bill, CreditNoteIssued, InvoiceFinalized, Line, LinePart

Shown = Bill | InvoiceFinalized | CreditNoteIssued

CSV_COLUMNS = (
    "number",
    "tenant_id",
    "kind",
    "period",
    "charge",
    "description",
    "unit",
    "quantity",
    "included",
    "exact_amount",
    "amount",
    "currency",
)

_KINDS = {"charge": "", "minimum": "Missing to the minimum", "adjustment": "Adjustment", "goodwill": "Goodwill"}

_PAGES = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)


def as_csv(document: Shown) -> str:
    """A row a line and a row a credit that is used or gets back: the amounts of all rows add up to the total."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(CSV_COLUMNS)
    number = _number(document)
    for line in document.lines:
        amounts = (line.quantity, line.included, line.exact_amount, line.amount)
        writer.writerow(
            [
                number,
                document.tenant_id,
                line.kind,
                line.period,
                line.charge,
                line.description,
                line.unit,
                *(None if each is None else format_amount(each) for each in amounts),
                document.currency,
            ]
        )
    for use in document.credits:
        paid = use.amount if isinstance(document, CreditNoteIssued) else use.amount.copy_negate()
        amount = format_amount(paid)
        used = (number, document.tenant_id, "credit", document.period, use.grant_id, use.description)
        writer.writerow([*used, None, None, None, amount, amount, document.currency])
    return text.getvalue()


def as_html(document: Shown) -> str:
    """One page without anything from elsewhere, made to be printed."""
    return _PAGES.get_template("document.html").render(document=document, title=_title(document))


def _number(document: Shown) -> str | None:
    """A draft has none."""
    return document.number if isinstance(document, InvoiceFinalized | CreditNoteIssued) else None


def _title(document: Shown) -> str:
    match document:
        case InvoiceFinalized():
            return f"Invoice {document.number}"
        case CreditNoteIssued():
            return f"Credit note {document.number}"
        case Bill():
            return "Draft of an invoice"


def _what(line: Line) -> str:
    """What a line is about, in words."""
    kind, named = _KINDS[line.kind], line.description or line.charge or ""
    if line.kind == "adjustment":
        return f"{kind} of {line.period}: {named or _KINDS['minimum']}"
    return ": ".join(part for part in (kind, named) if part)


def _grouped(value: Decimal) -> str:
    """1234567.5 as 1,234,567.5."""
    return f"{value:,f}"


def _price(part: LinePart) -> str:
    per = "" if part.per == 1 else f" for {part.per:,}"
    fee = f" + {format_amount(part.flat_fee)}" if part.flat_fee else ""
    return f"{_grouped(part.quantity)} at {format_amount(part.unit_price)}{per}{fee}"


_PAGES.filters.update(what=_what, grouped=_grouped, price=_price)
