"""Which prices hold: of each scope, from the narrowest on, the latest version at the time of the usage. Pure."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import product
from operator import attrgetter
from typing import Protocol

from schemas.prices import Figure, PriceSpec, Tariff
from services.runtime.pricing.cells import Boundaries, Cell

DEFAULT_CURRENCY = Tariff().currency

Scope = tuple[Figure, str | None, str | None, str | None, str | None, str | None]
"""Figure, tenant, model, provider, tool and kind; None stands for any."""

_effective_from = attrgetter("effective_from")


class Defaults(Protocol):
    """What providers are known to take, where nobody has said otherwise."""

    @property
    def boundaries(self) -> Boundaries: ...

    def tariff(self, provider: str, model: str, at: datetime) -> Tariff | None: ...


class PriceBook:
    """Every price that was ever applied, in the order of their application, over the defaults."""

    def __init__(self, applied: Iterable[PriceSpec], defaults: Defaults) -> None:
        self._defaults = defaults
        scopes: defaultdict[Scope, dict[datetime, PriceSpec]] = defaultdict(dict)
        for spec in applied:
            scopes[_scope(spec)][spec.effective_from] = spec
        self._scopes = {scope: sorted(specs.values(), key=_effective_from) for scope, specs in scopes.items()}
        self._boundaries: dict[str, Boundaries] = {}

    def boundaries(self, tenant_id: str) -> Boundaries:
        """Where a price of a tenant may change."""
        found = self._boundaries.get(tenant_id)
        if found is None:
            found = self._boundaries[tenant_id] = self._boundaries_of(self._specs_of(tenant_id))
        return found

    def tenants(self) -> frozenset[str]:
        """Who has prices of its own; the prices of all the others are the same."""
        return frozenset(tenant for _, tenant, *_ in self._scopes if tenant is not None)

    def all_boundaries(self) -> Boundaries:
        """Where a price of anybody may change. In such cells an amount of any tenant is exact too: they are finer."""
        return self._boundaries_of([spec for versions in self._scopes.values() for spec in versions])

    def currencies(self, tenant_id: str) -> frozenset[str]:
        """What a tenant's amounts may be in, that of the defaults among them."""
        return frozenset({DEFAULT_CURRENCY, *(spec.currency for spec in self._specs_of(tenant_id))})

    def default_cost(self, cell: Cell) -> Tariff | None:
        """What the provider is known to take."""
        if cell.provider is None or cell.model is None:
            return None
        return self._defaults.tariff(cell.provider, cell.model, cell.begins)

    def applied(self, figure: Figure, cell: Cell, tenant_id: str) -> Iterator[PriceSpec]:
        """What somebody has said that holds, the narrowest scope first, each with the next one to fall back on.

        A tenant's goes before everybody's, then a model's, a provider's, a tool's, a kind's.
        """
        names = (tenant_id, cell.model, cell.provider, cell.tool, cell.kind)
        for tenant, model, provider, tool, kind in product(
            *((name, None) if name is not None else (None,) for name in names)
        ):
            versions = self._scopes.get((figure, tenant, model, provider, tool, kind), [])
            begun = bisect_right(versions, cell.begins, key=_effective_from)
            if begun:
                yield versions[begun - 1]

    def _boundaries_of(self, specs: Sequence[PriceSpec]) -> Boundaries:
        of_defaults = self._defaults.boundaries
        sizes = (tier.above_input_tokens + 1 for spec in specs for tier in spec.tiers)
        return Boundaries.at(
            [*of_defaults.times, *(spec.effective_from for spec in specs)], [*of_defaults.sizes, *sizes]
        )

    def _specs_of(self, tenant_id: str) -> list[PriceSpec]:
        return [
            spec
            for (_, tenant, *_), versions in self._scopes.items()
            if tenant in (None, tenant_id)
            for spec in versions
        ]


def _scope(spec: PriceSpec) -> Scope:
    return spec.figure, spec.tenant_id, spec.model, spec.provider, spec.tool, spec.kind
