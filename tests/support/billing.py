"""Plans, usage and a ledger for tests of billing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from schemas.envelope import encode_event
from schemas.invoices import Bill, CreditNoteIssued, CreditTerms, InvoiceFinalized
from schemas.plans import Period, PlanSpec
from schemas.usage import UsageRecorded
from services.runtime.pricing.book import PriceBook
from services.runtime.pricing.cells import Cell, cell_of
from services.usage.billing.adjustments import Difference, RatedPeriod, differences
from services.usage.billing.bill import build_bill
from services.usage.billing.ledger import Document, Ledger, LedgerEvent
from services.usage.billing.periods import starts_at
from services.usage.billing.rating import PeriodUsage, rate_period
from tests.support.prices import book_of, price

GRANTED, AT = datetime(2025, 12, 1, tzinfo=UTC), datetime(2026, 6, 1, 6, tzinfo=UTC)

PER_EVENT: dict[str, Any] = {"name": "events", "scheme": "per_unit", "meter": "events", "unit_price": "1"}


def plan(*charges: Mapping[str, Any], **fields: Any) -> PlanSpec:
    filled = {"name": "pro", "from_period": "2026-01", "currency": "EUR", "charges": charges or [PER_EVENT], **fields}
    return PlanSpec.model_validate(filled)


def cells_of(period: Period, count: int = 1, *, book: PriceBook, **fields: Any) -> list[Cell]:
    """As many events alike, as the store adds them up for a bill: one cell each does as well."""
    filled = {"usage_id": "u", "kind": "completion", "provider": "p", "model": "m", "occurred_at": starts_at(period)}
    event = UsageRecorded.model_validate(filled | fields)
    return [cell_of(event, book.boundaries("acme"))] * count


@dataclass
class Tenant:
    """One tenant with a plan, its usage by period, and what the ledger says."""

    plan: PlanSpec = field(default_factory=plan)
    book: PriceBook = field(default_factory=lambda: book_of(price(currency="EUR", rates={"input": "1", "output": "1"})))
    usage: dict[Period, list[Cell]] = field(default_factory=dict[Period, list[Cell]])
    ledger: Ledger = field(default_factory=Ledger)

    def use(self, period: Period, count: int = 1, **fields: Any) -> None:
        self.usage.setdefault(period, []).extend(cells_of(period, count, book=self.book, **fields))

    def rated(self, periods: Sequence[Period]) -> list[RatedPeriod]:
        return [
            RatedPeriod(each, self.plan.currency, rate_period(self.plan, self._used(each), self.book))
            for each in periods
        ]

    def bill(self, period: Period) -> Bill:
        earlier = [each for each in self.ledger.periods("acme") if each < period]
        return build_bill(
            self.plan,
            self._used(period),
            self.book,
            earlier=self.rated(earlier),
            account=self.ledger.account("acme"),
        )

    def finalize(self, period: Period) -> InvoiceFinalized:
        return self.write(self.ledger.finalized(self.bill(period), AT))

    def differences(self, period: Period) -> list[Difference]:
        return differences(self.rated([period]), self.ledger.account("acme").invoiced)

    def correct(self, invoice: InvoiceFinalized, key: str = "k") -> CreditNoteIssued:
        document, found = self.document(invoice), self.differences(invoice.period)
        return self.write(self.ledger.corrected(document, found, credit_note_id=key, reason="r", at=AT))

    def goodwill(self, invoice: InvoiceFinalized, amount: str, key: str = "g") -> CreditNoteIssued:
        off, document = Decimal(amount), self.document(invoice)
        return self.write(self.ledger.goodwill(document, off, credit_note_id=key, reason="Outage", at=AT))

    def left(self) -> dict[str, Decimal]:
        """Of each grant."""
        return {each.grant.grant_id: each.left for each in self.ledger.balances("acme")}

    def grant(self, **terms: Any) -> None:
        filled = {"grant_id": "g", "tenant_id": "acme", "kind": "prepaid", "currency": "EUR", "amount": "10", **terms}
        self.write(self.ledger.granted(CreditTerms.model_validate(filled), GRANTED))

    def document(self, invoice: InvoiceFinalized) -> Document:
        found = self.ledger.numbered(invoice.number)
        assert found is not None
        return found

    def write(self, event: Any) -> Any:
        written: LedgerEvent = event
        self.ledger.take(written, encode_event(written))
        return event

    def _used(self, period: Period) -> PeriodUsage:
        return PeriodUsage("acme", period, self.usage.get(period, []))
