"""Cost and price of many cells. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal

from schemas.prices import PriceSpec, Tariff
from schemas.usage import UsageRecorded
from services.runtime.pricing.book import PriceBook
from services.runtime.pricing.cells import Cell, cell_of
from services.runtime.pricing.rate import EXACT, marked_up, rate, total


@dataclass(frozen=True, slots=True)
class Amounts:
    """Cost of all events and price of the billable ones, each by currency.

    `unpriced_events` are in one of the two sums at most, though they should be in both or, not billable, in the cost.
    """

    cost: Mapping[str, Decimal]
    price: Mapping[str, Decimal]
    unpriced_events: int


@dataclass(frozen=True, slots=True)
class _Money:
    currency: str
    amount: Decimal


def amounts_of(cells: Iterable[Cell], tenant_id: str, book: PriceBook) -> Amounts:
    """Currencies are never added to each other."""
    cost: defaultdict[str, list[Decimal]] = defaultdict(list)
    price: defaultdict[str, list[Decimal]] = defaultdict(list)
    unpriced = 0
    for cell in cells:
        taken = _cost(cell, tenant_id, book)
        paid = _price(cell, tenant_id, book, taken) if cell.billable else None
        if taken is not None:
            cost[taken.currency].append(taken.amount)
        if paid is not None:
            price[paid.currency].append(paid.amount)
        if taken is None or (cell.billable and paid is None):
            unpriced += cell.events
    return Amounts(_totals(cost), _totals(price), unpriced)


def amounts_of_one(event: UsageRecorded, book: PriceBook) -> Amounts:
    """What a single event comes to."""
    return amounts_of([cell_of(event, book.boundaries(event.tenant_id))], event.tenant_id, book)


def _cost(cell: Cell, tenant_id: str, book: PriceBook) -> _Money | None:
    return _by(book.applied("cost", cell, tenant_id), cell, _rated(cell, book.default_cost(cell)))


def _price(cell: Cell, tenant_id: str, book: PriceBook, cost: _Money | None) -> _Money | None:
    """Where nobody has set a price the customer pays the cost."""
    return _by(book.applied("price", cell, tenant_id), cell, cost)


def _by(applied: Iterator[PriceSpec], cell: Cell, otherwise: _Money | None) -> _Money | None:
    """The amount by the narrowest: by its rates, or without any on top of the next wider ones that there are."""
    narrowest = next(applied, None)
    if narrowest is None:
        return otherwise
    if narrowest.has_rates:
        return _with_markup(_rated(cell, narrowest), narrowest)
    with_rates = next((each for each in applied if each.has_rates), None)
    base = otherwise if with_rates is None else _with_markup(_rated(cell, with_rates), with_rates)
    return _with_markup(base, narrowest)


def _with_markup(base: _Money | None, spec: PriceSpec) -> _Money | None:
    return None if base is None else _Money(base.currency, marked_up(base.amount, spec.markup))


def _rated(cell: Cell, tariff: Tariff | None) -> _Money | None:
    parts = None if tariff is None else rate(cell, tariff)
    return None if parts is None or tariff is None else _Money(tariff.currency, total(parts.values()))


def _totals(amounts: Mapping[str, list[Decimal]]) -> dict[str, Decimal]:
    return {currency: EXACT.normalize(total(each)) for currency, each in sorted(amounts.items())}
