"""Which plan a tenant has in a month. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from schemas.plans import Period, PlanSpec, SubscriptionSpec

PlanDefinition = PlanSpec | SubscriptionSpec

D = TypeVar("D", PlanSpec, SubscriptionSpec)
K = TypeVar("K")


class PlanCatalog:
    """Every plan and subscription that was ever applied, in the order of their application."""

    def __init__(self, applied: Iterable[PlanDefinition] = ()) -> None:
        self._plans: defaultdict[tuple[str | None, str], dict[Period, PlanSpec]] = defaultdict(dict)
        self._subscriptions: defaultdict[str | None, dict[Period, SubscriptionSpec]] = defaultdict(dict)
        for each in applied:
            match each:
                case PlanSpec():
                    self._plans[each.tenant_id, each.name][each.from_period] = each
                case SubscriptionSpec():
                    self._subscriptions[each.tenant_id][each.from_period] = each

    def plan_of(self, tenant_id: str, period: Period) -> PlanSpec | None:
        """The version of the plan that holds in the period; None where the tenant has none.

        A tenant's own subscription goes before everybody's, and a plan of its own before one that all may use.
        """
        name = self.subscribed(tenant_id, period)
        return None if name is None else _latest(self._plans, ((tenant_id, name), (None, name)), period)

    def subscribed(self, tenant_id: str, period: Period) -> str | None:
        """The name of the plan that the tenant has a subscription to; there may be no plan of that name."""
        subscription = _latest(self._subscriptions, (tenant_id, None), period)
        return subscription.plan if subscription else None


def _latest(versions: Mapping[K, Mapping[Period, D]], owners: Sequence[K], period: Period) -> D | None:
    for owner in owners:
        begun = [month for month in versions.get(owner, {}) if month <= period]
        if begun:
            return versions[owner][max(begun)]
    return None
