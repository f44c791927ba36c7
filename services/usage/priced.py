"""What groups of usage come to. Pure."""

from collections.abc import Mapping
from decimal import Context, Decimal
from typing import Any

from schemas.analytics import UsageCounts, UsageFigures, UsagePerUnit, UsageRow
from services.usage.pricing.book import PriceBook
from services.usage.pricing.sums import amounts_of
from services.usage.queries import PeriodSums, UsageGroup

SHARE = Decimal("1e-12")
SHARES = Context(prec=100)


def priced(group: UsageGroup, tenant_id: str, book: PriceBook) -> UsageRow:
    """A group with its cost and price, in the period before too where it was compared."""
    previous = None if group.previous is None else UsageFigures(**_figures(group.previous, tenant_id, book))
    return UsageRow(**_figures(group, tenant_id, book), group=group.group, previous=previous)


def _figures(sums: PeriodSums, tenant_id: str, book: PriceBook) -> dict[str, Any]:
    amounts = amounts_of(sums.cells, tenant_id, book)
    per = {
        unit: UsagePerUnit(count=count, cost=_shares(amounts.cost, count), price=_shares(amounts.price, count))
        for unit, count in sums.units.items()
    }
    return {
        **{name: getattr(sums, name) for name in UsageCounts.model_fields},
        "cost": dict(amounts.cost),
        "price": dict(amounts.price),
        "unpriced_events": amounts.unpriced_events,
        "per": per,
    }


def _shares(amounts: Mapping[str, Decimal], count: int) -> dict[str, Decimal]:
    """A share need not have an end, unlike an amount; of nobody there is none."""
    if not count:
        return {}
    return {
        currency: SHARES.normalize(SHARES.quantize(SHARES.divide(amount, Decimal(count)), SHARE))
        for currency, amount in amounts.items()
    }
