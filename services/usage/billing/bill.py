"""Builds a bill: the lines of its period, adjustments of earlier ones, what credits pay. Pure."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

from schemas.invoices import MOST_LINES, Bill, LeftOver, Line
from schemas.plans import Currency, Period, PlanSpec
from services.runtime.pricing.book import PriceBook
from services.runtime.pricing.rate import EXACT, total
from services.usage.billing.adjustments import Item, Month, RatedPeriod, differences, fit, within
from services.usage.billing.credits import Balance, consume
from services.usage.billing.money import rounded
from services.usage.billing.rating import PeriodUsage, rate_period


@dataclass(frozen=True, slots=True)
class Account:
    """What the ledger knows of a tenant: what was invoiced of each item, what is left of its credits, and goodwill."""

    invoiced: Mapping[Item, Decimal]
    balances: Sequence[Balance] = ()
    goodwill: Mapping[Month, Decimal] = field(default_factory=dict[Month, Decimal])

    @property
    def rooms(self) -> Mapping[Month, Decimal]:
        """How much of what was invoiced for each month can still be taken off: what is not given back as goodwill."""
        billed: defaultdict[Month, Decimal] = defaultdict(Decimal)
        for item, amount in self.invoiced.items():
            billed[item.month] = EXACT.add(billed[item.month], amount)
        return {
            month: max(Decimal(0), EXACT.subtract(amount, self.goodwill.get(month, Decimal(0))))
            for month, amount in billed.items()
        }


@dataclass(frozen=True, slots=True)
class Head:
    """Of a bill: whose it is and by which plan. Without lines of its own it is of adjustments alone."""

    tenant_id: str
    period: Period
    currency: Currency
    plan: str
    plan_version: str


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
    head = Head(used.tenant_id, used.period, plan.currency, plan.name, plan.version)
    own = rate_period(plan, used, book)
    return build_adjusted(head, own, earlier=earlier, account=account, usage_ends=usage_ends)


def build_adjusted(
    head: Head,
    own: Sequence[Line],
    *,
    earlier: Sequence[RatedPeriod],
    account: Account,
    usage_ends: Sequence[int] = (),
) -> Bill:
    """The bill of lines, with the adjustments of earlier periods in its currency."""
    currency = head.currency
    found, rooms = differences(earlier, account.invoiced), account.rooms
    ours = [each for each in found if each.item.currency == currency]
    tried = ours[: MOST_LINES - len(own)]
    fitted = fit(within(tried, rooms), room=total(line.amount for line in own))
    lines = [*own, *fitted.lines]
    subtotal = total(line.amount for line in lines)
    credits = consume(account.balances, subtotal, period=head.period, currency=currency)
    left_over = [
        *(_left(each.item, amount, "below_zero") for each, amount in fitted.left),
        *(_left(each.item, each.amount, "too_many_lines") for each in ours[len(tried) :]),
        *(_left(each.item, each.amount, "currency") for each in within(found, rooms) if each.item.currency != currency),
    ]
    return Bill(
        tenant_id=head.tenant_id,
        period=head.period,
        currency=currency,
        plan=head.plan,
        plan_version=head.plan_version,
        lines=lines,
        subtotal=rounded(subtotal, currency),
        credits=credits,
        total=rounded(EXACT.subtract(subtotal, total(each.amount for each in credits)), currency),
        unpriced_events=sum(line.unpriced_events for line in lines),
        left_over=left_over[:MOST_LINES],
        usage_ends=list(usage_ends),
    )


def _left(item: Item, amount: Decimal, reason: Literal["currency", "below_zero", "too_many_lines"]) -> LeftOver:
    return LeftOver(period=item.period, charge=item.charge, currency=item.currency, amount=amount, reason=reason)
