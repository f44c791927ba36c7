"""What was invoiced, given back and granted, as the topic `invoices` says it; and what may be written next. Pure.

A document on the topic is final. The first invoice of a tenant and period counts, and the first grant of an id.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import TypeVar

from schemas.envelope import decode_event, encode_event
from schemas.ids import derived_id
from schemas.invoices import (
    Bill,
    CreditGranted,
    CreditNoteIssued,
    CreditTerms,
    InvoiceFinalized,
    Line,
    content_hash,
)
from schemas.plans import Period
from schemas.topics import INVOICES, MAX_RECORD_BYTES
from services.usage.billing.adjustments import Difference, Item, fit
from services.usage.billing.bill import Account
from services.usage.billing.credits import Balance
from services.usage.billing.errors import BillingRefusedError
from services.usage.billing.money import rounded
from services.usage.billing.periods import ends_at
from services.usage.pricing.rate import EXACT, total

LedgerEvent = InvoiceFinalized | CreditNoteIssued | CreditGranted

D = TypeVar("D", InvoiceFinalized, CreditNoteIssued)

_UNHASHED = "0" * 64


@dataclass(frozen=True, slots=True)
class Document:
    """An invoice or a credit note: its value as it is on the log, and what it is found by."""

    document_id: str
    number: str
    tenant_id: str
    period: Period
    invoice_id: str
    """Of the invoice that it is, or that it is about."""
    currency: str
    total: Decimal
    value: bytes

    def event(self) -> InvoiceFinalized | CreditNoteIssued:
        """All of it."""
        return decode_event(INVOICES, self.value, {}, max_bytes=MAX_RECORD_BYTES)


class Ledger:
    """Built by `take` from each record of the topic, in order. A document of ten lines takes 6 KB in it."""

    def __init__(self) -> None:
        self._invoices: dict[tuple[str, Period], Document] = {}
        self._credit_notes: dict[str, Document] = {}
        self._by_number: dict[str, Document] = {}
        self._of_tenant: defaultdict[str, list[Document]] = defaultdict(list)
        self._invoiced: defaultdict[str, defaultdict[Item, Decimal]] = defaultdict(lambda: defaultdict(Decimal))
        self._grants: defaultdict[str, dict[str, CreditGranted]] = defaultdict(dict)
        self._used: defaultdict[tuple[str, str], Decimal] = defaultdict(Decimal)
        self._credited: defaultdict[str, Decimal] = defaultdict(Decimal)

    def take(self, event: LedgerEvent, value: bytes) -> None:
        """Adds what a record says."""
        match event:
            case CreditGranted():
                self._grants[event.tenant_id].setdefault(event.grant_id, event)
            case InvoiceFinalized():
                document = _document(event, event.invoice_id, value)
                key = event.tenant_id, event.period
                if key not in self._invoices:
                    self._invoices[key] = document
                    self._add(document, event.lines)
                    for use in event.credits:
                        spent = event.tenant_id, use.grant_id
                        self._used[spent] = EXACT.add(self._used[spent], use.amount)
            case CreditNoteIssued():
                document = _document(event, event.credit_note_id, value)
                if document.document_id not in self._credit_notes:
                    self._credit_notes[document.document_id] = document
                    self._add(document, event.lines)
                    given_back = self._credited[event.invoice_id]
                    self._credited[event.invoice_id] = EXACT.subtract(given_back, event.total)

    def invoice(self, tenant_id: str, period: Period) -> Document | None:
        return self._invoices.get((tenant_id, period))

    def credit_note(self, credit_note_id: str) -> Document | None:
        return self._credit_notes.get(credit_note_id)

    def numbered(self, number: str) -> Document | None:
        """An invoice or a credit note by its number."""
        return self._by_number.get(number)

    def documents(self, tenant_id: str) -> Sequence[Document]:
        """Invoices and credit notes, in the order in which they were written."""
        return self._of_tenant.get(tenant_id, [])

    def periods(self, tenant_id: str) -> list[Period]:
        """Those that were invoiced, in order."""
        return sorted(each.period for each in self.documents(tenant_id) if each.document_id == each.invoice_id)

    def account(self, tenant_id: str) -> Account:
        return Account(dict(self._invoiced.get(tenant_id, {})), self.balances(tenant_id))

    def balances(self, tenant_id: str) -> list[Balance]:
        """Every grant of a tenant, with what invoices have left of it."""
        return [
            Balance(grant, EXACT.subtract(grant.amount, self._used.get((tenant_id, grant.grant_id), Decimal(0))))
            for grant in self._grants.get(tenant_id, {}).values()
        ]

    def grant(self, tenant_id: str, grant_id: str) -> CreditGranted | None:
        return self._grants.get(tenant_id, {}).get(grant_id)

    def granted(self, terms: CreditTerms, at: datetime) -> CreditGranted:
        """The grant that is there, or the one to write. Raises BillingRefusedError."""
        if terms.amount <= 0 or rounded(terms.amount, terms.currency) != terms.amount:
            raise BillingRefusedError(
                "not-payable",
                f"amount: expected one above zero that {terms.currency} has coins for, got {terms.amount}",
            )
        there = self.grant(terms.tenant_id, terms.grant_id)
        if there is None:
            return CreditGranted(**terms.model_dump(), granted_at=at)
        if terms.model_dump() != there.model_dump(exclude={"type", "granted_at"}):
            raise BillingRefusedError(
                "other-terms", f"{terms.tenant_id} has a grant {terms.grant_id!r} of other terms: take another grant_id"
            )
        return there

    def finalized(self, bill: Bill, at: datetime) -> InvoiceFinalized:
        """The invoice to write: of a period that has none."""
        return _sealed(
            InvoiceFinalized(
                **bill.model_dump(),
                invoice_id=derived_id("invoice", bill.tenant_id, bill.period, at=ends_at(bill.period)),
                number=f"INV-{len(self._invoices) + 1:06d}",
                finalized_at=at,
                sha256=_UNHASHED,
            )
        )

    def corrected(
        self, invoice: Document, found: Sequence[Difference], *, credit_note_id: str, reason: str, at: datetime
    ) -> CreditNoteIssued:
        """A credit note over what the period of an invoice comes to less than was invoiced. Raises BillingRefusedError.

        What the period comes to more is left to the next invoice, and so is a charge with unpriced usage.
        """
        less = [
            each
            for each in found
            if each.amount < 0 and each.item.currency == invoice.currency and not each.unpriced_events
        ]
        lines = fit(less, room=self._creditable(invoice)).lines
        if not lines:
            raise BillingRefusedError(
                "nothing-to-credit",
                f"{invoice.number}: the period does not come to less than was invoiced, or all of it was given back",
            )
        return self._credit_note(invoice, lines, credit_note_id=credit_note_id, reason=reason, at=at)

    def goodwill(
        self, invoice: Document, amount: Decimal, *, credit_note_id: str, reason: str, at: datetime
    ) -> CreditNoteIssued:
        """A credit note over an amount, whatever the usage comes to. Raises BillingRefusedError."""
        if amount <= 0 or rounded(amount, invoice.currency) != amount:
            raise BillingRefusedError(
                "not-payable", f"amount: expected one above zero that {invoice.currency} has coins for, got {amount}"
            )
        if amount > (room := self._creditable(invoice)):
            raise BillingRefusedError(
                "credited-too-much", f"{invoice.number}: expected at most {room} {invoice.currency}, got {amount}"
            )
        off = rounded(amount.copy_negate(), invoice.currency)
        line = Line(kind="goodwill", period=invoice.period, description=reason, exact_amount=off, amount=off)
        return self._credit_note(invoice, [line], credit_note_id=credit_note_id, reason=reason, at=at)

    def _credit_note(
        self, invoice: Document, lines: list[Line], *, credit_note_id: str, reason: str, at: datetime
    ) -> CreditNoteIssued:
        return _sealed(
            CreditNoteIssued(
                credit_note_id=credit_note_id,
                number=f"CN-{len(self._credit_notes) + 1:06d}",
                invoice_id=invoice.document_id,
                invoice_number=invoice.number,
                tenant_id=invoice.tenant_id,
                period=invoice.period,
                currency=invoice.currency,
                lines=lines,
                total=rounded(total(line.amount for line in lines), invoice.currency),
                reason=reason,
                issued_at=at,
                sha256=_UNHASHED,
            )
        )

    def _creditable(self, invoice: Document) -> Decimal:
        """What is left of what was to be paid."""
        return EXACT.subtract(invoice.total, self._credited.get(invoice.document_id, Decimal(0)))

    def _add(self, document: Document, lines: Sequence[Line]) -> None:
        self._by_number[document.number] = document
        self._of_tenant[document.tenant_id].append(document)
        invoiced = self._invoiced[document.tenant_id]
        for line in lines:
            if line.kind != "goodwill":
                item = Item(line.period, line.charge, document.currency)
                invoiced[item] = EXACT.add(invoiced[item], line.amount)


def credit_note_id_of(invoice_id: str, key: str, period: Period) -> str:
    """The id of the credit note that somebody asks for under a key of their own."""
    return derived_id("credit-note", invoice_id, key, at=ends_at(period))


def _document(event: InvoiceFinalized | CreditNoteIssued, document_id: str, value: bytes) -> Document:
    return Document(
        document_id=document_id,
        number=event.number,
        tenant_id=event.tenant_id,
        period=event.period,
        invoice_id=event.invoice_id,
        currency=event.currency,
        total=event.total,
        value=value,
    )


def _sealed(document: D) -> D:
    """With the hash of all the rest."""
    return document.model_copy(update={"sha256": content_hash(json.loads(encode_event(document)))})
