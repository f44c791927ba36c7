"""Documents of the HTTP interface about plans, invoices and credits."""

from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field

from schemas.base import DEFAULT_TENANT, NO_ITEMS, Identifier, Model, Money, Name, TenantId
from schemas.invoices import Bill, CreditGranted, CreditTerms
from schemas.plans import Currency, Description, Period, known_currency
from schemas.prices import Rate

DocumentForm = Literal["json", "csv", "html"]
"""How an invoice, a credit note or a draft is shown; `html` is a page to print."""


class _Asked(Model):
    """A field that is not there is refused: somebody would pay for the slip of the pen."""

    model_config = ConfigDict(extra="forbid")


class FinalizeInvoice(_Asked):
    """Asks for the invoice of a period that is over. Asked again it is the one that is there."""

    tenant_id: TenantId = DEFAULT_TENANT
    period: Period
    currency: Currency | None = None
    """Of the plan by default. In any other one the invoice is of adjustments alone: of months that were in it."""
    allow_unpriced: bool = False
    """Whether usage may be left out whose price nobody knows. It is invoiced later, once it has one."""


class CreditNoteTerms(_Asked):
    """Asks for a credit note. Without an amount it is over what the period comes to less than was invoiced."""

    key: Identifier
    """Of the asker's own: the same key again is the same credit note."""
    reason: Description = Field(min_length=1)
    amount: Rate | None = None
    """Of goodwill: it stays off whatever the usage comes to."""


class GrantCredit(CreditTerms, _Asked):
    """Asks for a grant. Asked again it is the one that is there."""

    currency: Annotated[Currency, AfterValidator(known_currency)]


class UnpricedUsage(Model):
    """Usage that is not in the amount of a charge, for nobody knows its price in the currency of the plan."""

    charge: Name
    kind: str
    provider: str | None = None
    model: str | None = None
    tool: str | None = None
    events: int


class InvoiceDraft(Bill):
    """The bill as of now, and what is missing from it; what has most events comes first."""

    unpriced: list[UnpricedUsage] = NO_ITEMS
    finalized_as: str | None = None
    """Number of the invoice that the month has already: then this is what the month comes to by now, by itself, without
    adjustments of others and without credits."""


class BillingDocument(Model):
    """An invoice or a credit note in a list. The total of a credit note is below zero."""

    kind: Literal["invoice", "credit_note"]
    number: str
    document_id: str
    invoice_id: str
    tenant_id: TenantId
    period: Period
    currency: Currency
    total: Money


class CreditBalance(Model):
    """A grant and what invoices have left of it."""

    grant: CreditGranted
    left: Money
