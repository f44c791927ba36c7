"""What was invoiced, given back and granted, as the topic `invoices` says it; and what may be written next. Pure.

A document on the topic is final. The first invoice of a tenant and period counts, beside one of adjustments alone in
each currency that was asked for; and the first grant of an id.
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
    CreditUse,
    InvoiceFinalized,
    Line,
    content_hash,
)
from schemas.plans import Currency, Period
from schemas.topics import INVOICES, MAX_RECORD_BYTES
from services.runtime.pricing.rate import EXACT, total
from services.usage.billing.adjustments import Difference, Item, Month, fit
from services.usage.billing.bill import Account
from services.usage.billing.credits import Balance
from services.usage.billing.errors import BillingRefusedError
from services.usage.billing.money import rounded
from services.usage.billing.payments import Payments
from services.usage.billing.periods import ends_at

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
        self._invoices: dict[tuple[str, Period, Currency | None], Document] = {}
        self._credit_notes: dict[str, Document] = {}
        self._by_number: dict[str, Document] = {}
        self._of_tenant: defaultdict[str, list[Document]] = defaultdict(list)
        self._invoiced: defaultdict[str, defaultdict[Item, Decimal]] = defaultdict(lambda: defaultdict(Decimal))
        self._grants: defaultdict[str, dict[str, CreditGranted]] = defaultdict(dict)
        self._used: defaultdict[tuple[str, str], Decimal] = defaultdict(Decimal)
        self._goodwill: defaultdict[str, defaultdict[Month, Decimal]] = defaultdict(lambda: defaultdict(Decimal))
        self._payments = Payments()

    def take(self, event: LedgerEvent, value: bytes) -> None:
        """Adds what a record says."""
        match event:
            case CreditGranted():
                self._grants[event.tenant_id].setdefault(event.grant_id, event)
            case InvoiceFinalized():
                document = _document(event, event.invoice_id, value)
                apart = event.invoice_id == invoice_id_of(event.tenant_id, event.period, event.currency)
                key = event.tenant_id, event.period, event.currency if apart else None
                if key not in self._invoices:
                    self._invoices[key] = document
                    self._add(document, event.lines)
                    self._payments.take_invoice(event)
                    for use in event.credits:
                        spent = event.tenant_id, use.grant_id
                        self._used[spent] = EXACT.add(self._used[spent], use.amount)
            case CreditNoteIssued():
                document = _document(event, event.credit_note_id, value)
                if document.document_id not in self._credit_notes:
                    self._credit_notes[document.document_id] = document
                    self._add(document, event.lines)
                    self._payments.take_credit_note(event)
                    for use in event.credits:
                        spent = event.tenant_id, use.grant_id
                        self._used[spent] = EXACT.subtract(self._used[spent], use.amount)

    def invoice(self, tenant_id: str, period: Period, currency: Currency | None = None) -> Document | None:
        """The invoice of a period; with a currency the one in it, which may be of adjustments alone."""
        found = self._invoices.get((tenant_id, period, None))
        if found is not None and currency in (None, found.currency):
            return found
        return self._invoices.get((tenant_id, period, currency))

    def last_invoice(self, tenant_id: str, currency: Currency) -> Document | None:
        """The one that was written last, in the currency if there is one."""
        invoices = [each for each in reversed(self.documents(tenant_id)) if each.document_id == each.invoice_id]
        return max(invoices, key=lambda each: each.currency == currency, default=None)

    def credit_note(self, credit_note_id: str) -> Document | None:
        return self._credit_notes.get(credit_note_id)

    def noted(self, credit_note_id: str, *, reason: str, amount: Decimal | None) -> Document | None:
        """The credit note that is there under an id. Raises BillingRefusedError where it has other terms."""
        there = self.credit_note(credit_note_id)
        if there is None:
            return None
        note = there.event()
        goodwill = [line.amount for line in note.lines if line.kind == "goodwill"]
        given = total(goodwill).copy_negate() if goodwill else None
        if not isinstance(note, CreditNoteIssued) or (note.reason, given) != (reason, amount):
            raise BillingRefusedError(
                "other-terms", f"there is a credit note {there.number} of other terms under this key: take another key"
            )
        return there

    def numbered(self, number: str) -> Document | None:
        """An invoice or a credit note by its number."""
        return self._by_number.get(number)

    def documents(self, tenant_id: str) -> Sequence[Document]:
        """Invoices and credit notes, in the order in which they were written."""
        return self._of_tenant.get(tenant_id, [])

    def periods(self, tenant_id: str) -> list[Period]:
        """Those that were invoiced, in order."""
        return sorted(
            {each.period for each in self.documents(tenant_id) if self.invoice(tenant_id, each.period) is each}
        )

    def account(self, tenant_id: str) -> Account:
        return Account(
            dict(self._invoiced.get(tenant_id, {})), self.balances(tenant_id), dict(self._goodwill.get(tenant_id, {}))
        )

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
            if terms.expires_at is not None and terms.expires_at <= at:
                raise BillingRefusedError("not-payable", f"expires_at: expected a time to come, got {terms.expires_at}")
            return CreditGranted(**terms.model_dump(), granted_at=at)
        if terms.model_dump() != there.model_dump(exclude={"type", "granted_at"}):
            raise BillingRefusedError(
                "other-terms", f"{terms.tenant_id} has a grant {terms.grant_id!r} of other terms: take another grant_id"
            )
        return there

    def finalized(self, bill: Bill, at: datetime, *, apart: bool = False) -> InvoiceFinalized:
        """The invoice to write: of a period that has none.

        Args:
            apart: beside the one of the period, since it is of adjustments in another currency.
        """
        return _sealed(
            InvoiceFinalized(
                **bill.model_dump(),
                invoice_id=invoice_id_of(bill.tenant_id, bill.period, bill.currency if apart else None),
                number=f"INV-{len(self._invoices) + 1:06d}",
                finalized_at=at,
                sha256=_UNHASHED,
            )
        )

    def corrected(
        self, invoice: Document, found: Sequence[Difference], *, credit_note_id: str, reason: str, at: datetime
    ) -> CreditNoteIssued:
        """A credit note over what the period of an invoice comes to less, all in all, than was invoiced for it.

        What a charge with unpriced usage comes to less is left to the next invoice. Raises BillingRefusedError.
        """
        known = [
            each
            for each in found
            if each.item.currency == invoice.currency and not (each.amount < 0 and each.unpriced_events)
        ]
        left = self._payments.left(invoice.tenant_id, invoice.currency)
        lines = fit(known, room=min(left, self._room(invoice, invoice.period))).lines
        if total(line.amount for line in lines) >= 0:
            raise BillingRefusedError(
                "nothing-to-credit",
                f"{invoice.number}: {invoice.period} does not come to less than was invoiced, or all was given back",
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
        payment = self._payments.payment(invoice.tenant_id, invoice.currency, invoice.document_id)
        rooms = {period: self._room(invoice, period) for period in payment.periods}
        most = rounded(min(payment.money, total(rooms.values())), invoice.currency)
        if amount > most:
            raise BillingRefusedError(
                "credited-too-much", f"{invoice.number}: expected at most {most} {invoice.currency}, got {amount}"
            )
        lines: list[Line] = []
        for period, room in rooms.items():
            if off := min(amount, room):
                amount = EXACT.subtract(amount, off)
                exact = rounded(off.copy_negate(), invoice.currency)
                lines.append(Line(kind="goodwill", period=period, description=reason, exact_amount=exact, amount=exact))
        return self._credit_note(invoice, lines, credit_note_id=credit_note_id, reason=reason, at=at)

    def _credit_note(
        self, invoice: Document, lines: list[Line], *, credit_note_id: str, reason: str, at: datetime
    ) -> CreditNoteIssued:
        """Goodwill is at most the money of the invoice, so that none of it goes to credits."""
        tenant_id, currency = invoice.tenant_id, invoice.currency
        given_back = total(line.amount for line in lines).copy_negate()
        refund = self._payments.refund(tenant_id, currency, invoice.document_id, invoice.period, given_back)
        return _sealed(
            CreditNoteIssued(
                credit_note_id=credit_note_id,
                number=f"CN-{len(self._credit_notes) + 1:06d}",
                invoice_id=invoice.document_id,
                invoice_number=invoice.number,
                tenant_id=tenant_id,
                period=invoice.period,
                currency=currency,
                lines=lines,
                credits=[self._returned(tenant_id, grant_id, amount) for grant_id, amount in refund.credits.items()],
                total=rounded(EXACT.subtract(Decimal(0), refund.money), currency),
                reason=reason,
                issued_at=at,
                sha256=_UNHASHED,
            )
        )

    def _returned(self, tenant_id: str, grant_id: str, amount: Decimal) -> CreditUse:
        (balance,) = (each for each in self.balances(tenant_id) if each.grant.grant_id == grant_id)
        grant = balance.grant
        return CreditUse(
            grant_id=grant_id,
            description=grant.description,
            expires_at=grant.expires_at,
            amount=rounded(amount, grant.currency),
            left=rounded(EXACT.add(balance.left, amount), grant.currency),
        )

    def _room(self, invoice: Document, period: Period) -> Decimal:
        """What was billed for a period, in the currency of an invoice, and is not given back."""
        return self.account(invoice.tenant_id).rooms.get((period, invoice.currency), Decimal(0))

    def _add(self, document: Document, lines: Sequence[Line]) -> None:
        self._by_number[document.number] = document
        self._of_tenant[document.tenant_id].append(document)
        invoiced, goodwill = self._invoiced[document.tenant_id], self._goodwill[document.tenant_id]
        for line in lines:
            item = Item(line.period, line.charge, document.currency)
            if line.kind == "goodwill":
                goodwill[item.month] = EXACT.subtract(goodwill[item.month], line.amount)
            else:
                invoiced[item] = EXACT.add(invoiced[item], line.amount)


def invoice_id_of(tenant_id: str, period: Period, currency: Currency | None = None) -> str:
    """The id of the invoice of a period; with a currency that of the one of adjustments alone in it."""
    named = () if currency is None else (currency,)
    return derived_id("invoice", tenant_id, period, *named, at=ends_at(period))


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
