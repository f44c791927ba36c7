"""What paid for the invoices of a tenant, money and credits, and what of it is given back first. Pure."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from schemas.invoices import CreditNoteIssued, InvoiceFinalized
from schemas.plans import Period
from services.runtime.pricing.rate import EXACT, total


@dataclass(slots=True)
class Payment:
    """What is not given back yet of what paid for an invoice."""

    invoice_id: str
    periods: tuple[Period, ...]
    """That the invoice has lines of, its own first."""
    money: Decimal
    credits: dict[str, Decimal]
    """By grant, what was consumed last first."""


@dataclass(frozen=True, slots=True)
class Refund:
    """How an amount is given back: in money, and to grants."""

    money: Decimal
    credits: Mapping[str, Decimal] = field(default_factory=dict[str, Decimal])


class Payments:
    """Of all invoices. An amount that is given back for one is taken from that one first."""

    def __init__(self) -> None:
        self._by_account: defaultdict[tuple[str, str], dict[str, Payment]] = defaultdict(dict)

    def take_invoice(self, event: InvoiceFinalized) -> None:
        self._by_account[event.tenant_id, event.currency][event.invoice_id] = Payment(
            event.invoice_id,
            tuple(dict.fromkeys([event.period, *(line.period for line in event.lines)])),
            event.total,
            {use.grant_id: use.amount for use in reversed(event.credits)},
        )

    def take_credit_note(self, event: CreditNoteIssued) -> None:
        money = event.total.copy_negate()
        credits = {use.grant_id: use.amount for use in event.credits}
        for payment in self._in_order(event.tenant_id, event.currency, event.invoice_id, event.period):
            part = min(money, payment.money)
            payment.money, money = EXACT.subtract(payment.money, part), EXACT.subtract(money, part)
            for grant_id in payment.credits.keys() & credits.keys():
                part = min(credits[grant_id], payment.credits[grant_id])
                payment.credits[grant_id] = EXACT.subtract(payment.credits[grant_id], part)
                credits[grant_id] = EXACT.subtract(credits[grant_id], part)

    def payment(self, tenant_id: str, currency: str, invoice_id: str) -> Payment:
        return self._by_account[tenant_id, currency][invoice_id]

    def left(self, tenant_id: str, currency: str) -> Decimal:
        """All that can be given back to a tenant in a currency."""
        payments = self._by_account.get((tenant_id, currency), {}).values()
        return total(amount for each in payments for amount in (each.money, *each.credits.values()))

    def refund(self, tenant_id: str, currency: str, invoice_id: str, period: Period, amount: Decimal) -> Refund:
        """How an amount of at most `left` is given back for an invoice, which is of the period.

        Of each invoice first the money, then the credits, those that were consumed last first.
        """
        money, credits = Decimal(0), defaultdict[str, Decimal](Decimal)
        for payment in self._in_order(tenant_id, currency, invoice_id, period):
            part = min(amount, payment.money)
            money, amount = EXACT.add(money, part), EXACT.subtract(amount, part)
            for grant_id, paid in payment.credits.items():
                if part := min(amount, paid):
                    credits[grant_id] = EXACT.add(credits[grant_id], part)
                    amount = EXACT.subtract(amount, part)
        return Refund(money, dict(credits))

    def _in_order(self, tenant_id: str, currency: str, invoice_id: str, period: Period) -> Iterator[Payment]:
        """The invoice itself, then those that have adjustments of its period, then the others, the latest first."""
        payments = self._by_account.get((tenant_id, currency), {})
        latest_first = [each for each in reversed(payments.values()) if each.invoice_id != invoice_id]
        if own := payments.get(invoice_id):
            yield own
        yield from (each for each in latest_first if period in each.periods)
        yield from (each for each in latest_first if period not in each.periods)
