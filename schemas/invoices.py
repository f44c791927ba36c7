"""Topic `invoices`: what was invoiced, given back and paid in advance. Nothing on it is ever changed.

An amount of a document is in the smallest unit of its currency. `sha256` is that of the document as canonical JSON: the
record's value without `sha256` itself, keys sorted, no space between, UTF-8.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, JsonValue, StringConstraints

from schemas.base import DEFAULT_TENANT, GROWING, NO_ITEMS, Identifier, Model, Money, Name, TenantId, Timestamp
from schemas.plans import Currency, Description, Period
from schemas.prices import Rate

Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]

MOST_LINES = 1000
"""Of one document, so that it stays far below the largest record. Charges are at most a hundred; adjustments that find
no room wait for the next invoice."""

MOST_GRANTS = 200
"""That pay for one invoice; what is left of the others pays for the next one."""


def content_hash(document: Mapping[str, JsonValue]) -> str:
    """The `sha256` of an invoice or a credit note, given its JSON as it is on the log."""
    content = {name: value for name, value in document.items() if name != "sha256"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


class LinePart(Model):
    """So many units, or packages, at one price, which is for `per` of them; `flat_fee` is due once."""

    quantity: Money
    unit_price: Money
    per: int = 1
    flat_fee: Money
    amount: Money
    """Exact."""


class Line(Model):
    """One amount, and how it came to be.

    A `charge` or `minimum` is of the period of its invoice. An `adjustment` is what an earlier period comes to now less
    what was invoiced for it, since usage came late or it is rated otherwise; `goodwill` has nothing to do with usage.
    """

    kind: Annotated[Literal["charge", "minimum", "adjustment", "goodwill"], GROWING]
    period: Period
    charge: Name | None = None
    """Of the plan; none for its minimum."""
    description: str = ""
    unit: str | None = None
    """What `quantity` and `included` count: a meter, or a currency where a price is passed on."""
    quantity: Money | None = None
    included: Money | None = None
    parts: list[LinePart] = NO_ITEMS
    markup: Money | None = None
    exact_amount: Money
    """Before it was rounded, with all its digits."""
    amount: Money
    unpriced_events: int = 0
    """Events that are not in the amount, for nobody knows their price."""
    invoiced: Money | None = None
    """Of an adjustment: what was invoiced for the charge and period before."""


class CreditUse(Model):
    """What a grant pays of an invoice, or gets back by a credit note, and what is left of it then."""

    grant_id: Identifier
    description: str = ""
    expires_at: Timestamp | None = None
    amount: Money
    left: Money


class LeftOver(Model):
    """An adjustment that an invoice could not take; it stays to be made, by the next one or a credit note.

    An invoice is in one currency, its total is never below zero, and its lines are limited.
    """

    period: Period
    charge: Name | None = None
    currency: Currency
    amount: Money
    reason: Annotated[Literal["currency", "below_zero", "too_many_lines"], GROWING]


class Bill(Model):
    """What a tenant is to pay for a period. `total` is the subtotal less what credits pay."""

    tenant_id: TenantId = DEFAULT_TENANT
    period: Period
    currency: Currency
    plan: Name
    plan_version: str
    lines: list[Line] = Field(max_length=MOST_LINES)
    subtotal: Money
    credits: list[CreditUse] = NO_ITEMS
    total: Money
    unpriced_events: int = 0
    """Of the period, in lines that are about their price."""
    left_over: list[LeftOver] = NO_ITEMS
    usage_ends: list[int] = NO_ITEMS
    """The next offset of each partition of `usage`, from 0 on: whatever was before it is counted."""


class InvoiceFinalized(Bill):
    """An invoice. There is one for a tenant and a period; numbers follow each other without a gap."""

    type: Literal["invoice.finalized"] = "invoice.finalized"
    invoice_id: Identifier
    number: str
    finalized_at: Timestamp
    sha256: Sha256


class CreditNoteIssued(Model):
    """What is taken off an invoice: its lines add up to less than zero.

    Lines of kind `adjustment` count as invoiced for their period, so that no later invoice makes them again. Together
    they are all that its charges come to differently: one may be above zero.
    """

    type: Literal["credit_note.issued"] = "credit_note.issued"
    credit_note_id: Identifier
    number: str
    invoice_id: Identifier
    invoice_number: str
    tenant_id: TenantId = DEFAULT_TENANT
    period: Period
    currency: Currency
    lines: list[Line] = Field(max_length=MOST_LINES)
    credits: list[CreditUse] = NO_ITEMS
    """What of it goes back to the grants that had paid."""
    total: Money
    """The rest, in money: not above zero."""
    reason: Description
    issued_at: Timestamp
    sha256: Sha256


class CreditTerms(Model):
    """An amount that pays for invoices: paid in advance, or granted.

    It pays for any period that begins before it expires. Of several the one that expires first pays first, then the one
    that was granted first.
    """

    tenant_id: TenantId = DEFAULT_TENANT
    grant_id: Identifier
    """Given by who grants it: the same id again is the same grant."""
    kind: Literal["prepaid", "grant"]
    description: Description = ""
    currency: Currency
    amount: Rate
    expires_at: Timestamp | None = None


class CreditGranted(CreditTerms):
    type: Literal["credit.granted"] = "credit.granted"
    granted_at: Timestamp


InvoiceEvent = Annotated[InvoiceFinalized | CreditNoteIssued | CreditGranted, Field(discriminator="type")]
EXAMPLES = [
    InvoiceFinalized.model_validate(
        {
            "invoice_id": "019a3c1f-0000-7000-8000-000000000001",
            "number": "INV-000001",
            "tenant_id": "acme",
            "period": "2026-01",
            "currency": "EUR",
            "plan": "pro",
            "plan_version": "0123456789ab",
            "lines": [
                {"kind": "charge", "period": "2026-01", "charge": "base", "exact_amount": "29", "amount": "29.00"},
                {
                    "kind": "charge",
                    "period": "2026-01",
                    "charge": "tokens",
                    "unit": "tokens",
                    "quantity": "12345678",
                    "included": "1000000",
                    "parts": [
                        {
                            "quantity": "10000000",
                            "unit_price": "2",
                            "per": 1_000_000,
                            "flat_fee": "0",
                            "amount": "20",
                        },
                        {
                            "quantity": "1345678",
                            "unit_price": "1.5",
                            "per": 1_000_000,
                            "flat_fee": "0",
                            "amount": "2.018517",
                        },
                    ],
                    "exact_amount": "22.018517",
                    "amount": "22.02",
                },
            ],
            "subtotal": "51.02",
            "credits": [{"grant_id": "welcome-acme", "description": "Welcome", "amount": "10.00", "left": "0.00"}],
            "total": "41.02",
            "usage_ends": [1200, 980],
            "finalized_at": "2026-02-01T06:00:00.000000Z",
            "sha256": "c67e4fe5e6a5f0f3d2f0a1ad0f9eb2a9fcb0b8e5b9f8a84a2d15f2f0f6b8a5cd",
        }
    ),
    CreditNoteIssued.model_validate(
        {
            "credit_note_id": "019a3c1f-0000-7000-8000-000000000002",
            "number": "CN-000001",
            "invoice_id": "019a3c1f-0000-7000-8000-000000000001",
            "invoice_number": "INV-000001",
            "tenant_id": "acme",
            "period": "2026-01",
            "currency": "EUR",
            "lines": [
                {
                    "kind": "goodwill",
                    "period": "2026-01",
                    "description": "Outage of the 12th",
                    "exact_amount": "-5",
                    "amount": "-5.00",
                }
            ],
            "total": "-5.00",
            "reason": "Outage of the 12th",
            "issued_at": "2026-02-03T09:00:00.000000Z",
            "sha256": "8a1d2f0f6b8a5cdc67e4fe5e6a5f0f3d2f0a1ad0f9eb2a9fcb0b8e5b9f8a84a2",
        }
    ),
    CreditGranted.model_validate(
        {
            "grant_id": "welcome-acme",
            "tenant_id": "acme",
            "kind": "grant",
            "description": "Welcome",
            "currency": "EUR",
            "amount": "10.00",
            "expires_at": "2026-07-01T00:00:00.000000Z",
            "granted_at": "2026-01-05T12:00:00.000000Z",
        }
    ),
]
