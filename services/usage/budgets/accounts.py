"""Which account of a budget a unit of usage belongs to, and what it adds to it. Pure."""

from decimal import Decimal

from schemas.budgets import Account, BudgetSpec, period_of
from schemas.usage import UsageRecorded
from services.usage.pricing.book import PriceBook
from services.usage.pricing.cells import cell_of
from services.usage.pricing.sums import amounts_of


def account_of(spec: BudgetSpec, usage: UsageRecorded) -> Account | None:
    """None when the budget is about others: another tenant, user or agent, or threads and the usage has none.

    The period is that of the usage, not of today: what comes late counts where it belongs.
    """
    period = period_of(spec.per, usage.occurred_at, usage.thread_id)
    if period is None or spec.tenant_id not in (None, usage.tenant_id):
        return None
    if spec.by == "tenant":
        return Account(tenant_id=usage.tenant_id, period=period)
    who = usage.user_id if spec.by == "user" else usage.agent
    if who is None or spec.who not in (None, who):
        return None
    return Account(tenant_id=usage.tenant_id, who=who, period=period)


def amount_of(spec: BudgetSpec, usage: UsageRecorded, book: PriceBook) -> Decimal | None:
    """What the usage adds, to the last digit; None when nobody knows it in the budget's currency.

    What is not billable has tokens and a cost, and no price: to a budget of prices it adds nothing.
    """
    if spec.unit == "tokens":
        return Decimal(usage.input_tokens + usage.output_tokens)
    if spec.unit == "price" and not usage.billable:
        return Decimal(0)
    amounts = amounts_of([cell_of(usage, book.boundaries(usage.tenant_id))], usage.tenant_id, book)
    return (amounts.cost if spec.unit == "cost" else amounts.price).get(spec.currency)
