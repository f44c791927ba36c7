"""A bill of adjustments alone: of a month without a plan, or in a currency that the plan does not have. Pure."""

from collections import defaultdict
from collections.abc import Sequence
from decimal import Decimal

from schemas.invoices import InvoiceFinalized
from schemas.plans import Currency, Period
from services.runtime.pricing.rate import EXACT
from services.usage.billing.adjustments import Difference, Month
from services.usage.billing.bill import Head
from services.usage.billing.errors import BillingRefusedError
from services.usage.billing.ledger import Ledger

_MOST_TOLD = 10


def adjusting_head(
    ledger: Ledger,
    tenant_id: str,
    period: Period,
    currency: Currency | None,
    found: Sequence[Difference],
    *,
    subscribed: str | None = None,
) -> Head:
    """In the currency that is asked for, else in that of the latest month that comes to more; the plan is that of the
    last invoice in it.

    Args:
        found: what earlier periods come to more or less, in their order.
        subscribed: the plan that the tenant has a subscription to, for the message.

    Raises:
        BillingRefusedError: nothing is to be paid; the message tells what waits.
    """
    more = [each.item.currency for each in found if each.amount > 0 and currency in (None, each.item.currency)]
    invoice = ledger.last_invoice(tenant_id, more[-1]) if more else None
    if invoice is not None and isinstance(event := invoice.event(), InvoiceFinalized):
        return Head(tenant_id, period, more[-1], event.plan, event.plan_version)
    if currency is None:
        raise BillingRefusedError(
            "no-plan",
            f"{tenant_id} has no plan in {period}: {_missing(subscribed)}{_waiting(found)}",
        )
    raise BillingRefusedError(
        "nothing-to-invoice",
        f"no month of {tenant_id} before {period} comes to more in {currency} than was invoiced{_waiting(found)}",
    )


def _missing(subscribed: str | None) -> str:
    if subscribed is None:
        return "apply a plan and a subscription to it"
    return f"its subscription is to {subscribed!r}, and there is no plan of that name then"


def _waiting(found: Sequence[Difference]) -> str:
    """What to do about each month that does not come to what was invoiced for it."""
    months: defaultdict[Month, Decimal] = defaultdict(Decimal)
    for each in found:
        months[each.item.month] = EXACT.add(months[each.item.month], each.amount)
    told = [
        f"; {amount} {currency} of {period} waits: "
        + (f"ask for it with currency {currency}" if amount > 0 else "a credit note on its invoice gives it back")
        for (period, currency), amount in months.items()
    ]
    return "".join(told[:_MOST_TOLD])
