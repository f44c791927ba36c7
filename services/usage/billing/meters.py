"""What the usage of a period is to a charge: so many units, or an amount. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from schemas.plans import Meter, UsageScope
from services.runtime.pricing.book import PriceBook
from services.runtime.pricing.cells import BAD_COUNTS, Cell
from services.runtime.pricing.rate import EXACT
from services.runtime.pricing.sums import amounts_of


@dataclass(frozen=True, slots=True)
class Units:
    """What is `unpriced` is left out of the quantity: the counts of such events contradict each other."""

    quantity: int
    unpriced: Sequence[Cell]


@dataclass(frozen=True, slots=True)
class Price:
    """What is `unpriced` is left out of the amount: nobody knows its price in the currency of the plan."""

    amount: Decimal
    unpriced: Sequence[Cell]


def units_of(cells: Iterable[Cell], scope: UsageScope, meter: Meter) -> Units:
    """How much billable usage of a scope there is."""
    quantity, unpriced = 0, list[Cell]()
    for cell in cells:
        if not _is_of(cell, scope):
            continue
        if meter != "events" and cell.shape == BAD_COUNTS:
            unpriced.append(cell)
        else:
            quantity += _count(cell, meter)
    return Units(quantity, unpriced)


def price_of(cells: Iterable[Cell], scope: UsageScope, *, currency: str, tenant_id: str, book: PriceBook) -> Price:
    """What billable usage of a scope comes to by the price book, exactly as `/usage` says it."""
    amount, unpriced = Decimal(0), list[Cell]()
    for cell in cells:
        if not _is_of(cell, scope):
            continue
        paid = amounts_of((cell,), tenant_id, book).price.get(currency)
        if paid is None:
            unpriced.append(cell)
        else:
            amount = EXACT.add(amount, paid)
    return Price(amount, unpriced)


def _is_of(cell: Cell, scope: UsageScope) -> bool:
    asked = (
        (scope.kind, cell.kind),
        (scope.provider, cell.provider),
        (scope.model, cell.model),
        (scope.tool, cell.tool),
    )
    return cell.billable and all(wanted in (None, found) for wanted, found in asked)


def _count(cell: Cell, meter: Meter) -> int:
    match meter:
        case "events":
            return cell.events
        case "tokens":
            return cell.input_tokens + cell.output_tokens
        case "uncached_input_tokens":
            return cell.input_tokens - cell.cached_input_tokens
        case "input_tokens":
            return cell.input_tokens
        case "cached_input_tokens":
            return cell.cached_input_tokens
        case "output_tokens":
            return cell.output_tokens
        case "reasoning_tokens":
            return cell.reasoning_tokens
        case "images":
            return cell.images
