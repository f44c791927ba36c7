"""Which price holds for an event: of the narrowest scope, the latest version at the time of the event. Pure."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from itertools import product
from operator import attrgetter

from schemas.prices import PriceVersion
from schemas.usage import UsageRecorded

Scope = tuple[str, str | None, str | None, str | None, str | None]
"""Kind, tenant, model, provider and tool; None stands for any."""

_effective_from = attrgetter("effective_from")


class PriceBook:
    """All versions of all prices.

    Raises ValueError when two versions of a scope hold from the same time: which one is meant could not be told.
    """

    def __init__(self, versions: Iterable[PriceVersion]) -> None:
        scopes: defaultdict[Scope, list[PriceVersion]] = defaultdict(list)
        for version in sorted(versions, key=_effective_from):
            earlier = scopes[_scope(version)]
            if earlier and earlier[-1].effective_from == version.effective_from:
                raise ValueError(
                    f"expected one price of a scope from {version.effective_from.isoformat()}, "
                    f"got {earlier[-1].price_id} and {version.price_id}"
                )
            earlier.append(version)
        self._scopes = dict(scopes)

    def price_of(self, event: UsageRecorded) -> PriceVersion | None:
        """The price at `occurred_at`. A tenant's goes before everybody's, then a model's, a provider's, a tool's."""
        names = (event.tenant_id, event.model, event.provider, event.tool)
        for tenant, model, provider, tool in product(
            *((name, None) if name is not None else (None,) for name in names)
        ):
            versions = self._scopes.get((event.kind, tenant, model, provider, tool), [])
            begun = bisect_right(versions, event.occurred_at, key=_effective_from)
            if begun:
                return versions[begun - 1]
        return None


def _scope(version: PriceVersion) -> Scope:
    return version.kind, version.tenant_id, version.model, version.provider, version.tool
