"""Builds a bill: the lines of its period, adjustments of earlier ones, what credits pay. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from schemas.invoices import MOST_LINES, Bill, LeftOver
from schemas.plans import PlanSpec
from services.usage.billing.adjustments import Item, RatedPeriod, differences, fit
from services.usage.billing.credits import Balance, consume
from services.usage.billing.money import rounded
from services.usage.billing.rating import PeriodUsage, rate_period
from services.usage.pricing.book import PriceBook
from services.usage.pricing.rate import EXACT, total


@dataclass(frozen=True, slots=True)
class Account:
    """What the ledger knows of a tenant: what was invoiced of each item, and what is left of its credits."""

    invoiced: Mapping[Item, Decimal]
    balances: Sequence[Balance] = ()


def build_bill(
    plan: PlanSpec,
    used: PeriodUsage,
    book: PriceBook,
    *,
    earlier: Sequence[RatedPeriod],
    account: Account,
    usage_ends: Sequence[int] = (),
) -> Bill:
    """The bill as of now. The same input gives the same bill.

    Args:
        earlier: each period before this one that was invoiced, as it is rated now.
    """
    own = rate_period(plan, used, book)
    found = differences(earlier, account.invoiced)
    ours = [each for each in found if each.item.currency == plan.currency]
    taken = ours[: MOST_LINES - len(own)]
    fitted = fit(taken, room=total(line.amount for line in own))
    lines = [*own, *fitted.lines]
    subtotal = total(line.amount for line in lines)
    credits = consume(account.balances, subtotal, period=used.period, currency=plan.currency)
    left_over = [
        *(_left(each.item, amount, "below_zero") for each, amount in fitted.left),
        *(_left(each.item, each.amount, "too_many_lines") for each in ours[len(taken) :]),
        *(_left(each.item, each.amount, "currency") for each in found if each.item.currency != plan.currency),
    ]
    return Bill(
        tenant_id=used.tenant_id,
        period=used.period,
        currency=plan.currency,
        plan=plan.name,
        plan_version=plan.version,
        lines=lines,
        subtotal=rounded(subtotal, plan.currency),
        credits=credits,
        total=rounded(EXACT.subtract(subtotal, total(each.amount for each in credits)), plan.currency),
        unpriced_events=sum(line.unpriced_events for line in lines),
        left_over=left_over[:MOST_LINES],
        usage_ends=list(usage_ends),
    )


def _left(item: Item, amount: Decimal, reason: Literal["currency", "below_zero", "too_many_lines"]) -> LeftOver:
    return LeftOver(period=item.period, charge=item.charge, currency=item.currency, amount=amount, reason=reason)
