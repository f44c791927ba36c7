"""What each part of a cell comes to, in floating point numbers: for an order, or for a dashboard. Pure.

Within a cell an amount is linear in the counts, so its rates can be told by asking for the amount of a million of each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from services.runtime.pricing.book import PriceBook
from services.runtime.pricing.cells import Cell
from services.runtime.pricing.sums import amounts_of

MILLION = 10**6


@dataclass(frozen=True, slots=True)
class PartRates:
    """In one currency: of a million tokens of each kind, of an image, and of the event itself.

    A part without a rate has 0 here: the cell has none of it, else nobody would know what the cell comes to.
    """

    currency: str
    input: float
    cached_input: float
    output: float
    reasoning: float
    image: float
    call: float


@dataclass(frozen=True, slots=True)
class CellRates:
    """None where nobody knows them, and for the price of what is not billable."""

    cost: PartRates | None
    price: PartRates | None


def rates_of(cell: Cell, tenant_id: str, book: PriceBook) -> CellRates:
    """By the prices that hold when the cell begins. Its counts are left out of account; its shape says which it has."""
    known = amounts_of((_one_of_each(cell),), tenant_id, book)
    probed = [amounts_of((probe,), tenant_id, book) for probe in _probes(cell)]
    return CellRates(
        cost=_rates(known.cost, [each.cost for each in probed]),
        price=_rates(known.price, [each.price for each in probed]),
    )


def _rates(known: Mapping[str, Decimal], probed: Sequence[Mapping[str, Decimal]]) -> PartRates | None:
    if not known:
        return None
    (currency,) = known
    uncached, cached, output, reasoning, images, events = (float(each.get(currency, Decimal(0))) for each in probed)
    return PartRates(currency, uncached, cached, output, reasoning, images / MILLION, events / MILLION)


def _one_of_each(cell: Cell) -> Cell:
    """An event of the cell's shape that has one of each part."""
    uncached, cached, spoken, reasoning, images = (int(bool(cell.shape & bit)) for bit in (1, 2, 4, 8, 32))
    return replace(
        cell,
        events=1,
        input_tokens=uncached + cached,
        cached_input_tokens=cached,
        output_tokens=spoken + reasoning,
        reasoning_tokens=reasoning,
        images=images,
    )


def _probes(cell: Cell) -> tuple[Cell, Cell, Cell, Cell, Cell, Cell]:
    """A million of uncached input, cached input, output without reasoning, reasoning, images, and events alone."""
    none = replace(cell, events=0, input_tokens=0, cached_input_tokens=0, output_tokens=0, reasoning_tokens=0, images=0)
    return (
        replace(none, input_tokens=MILLION),
        replace(none, input_tokens=MILLION, cached_input_tokens=MILLION),
        replace(none, output_tokens=MILLION),
        replace(none, output_tokens=MILLION, reasoning_tokens=MILLION),
        replace(none, images=MILLION),
        replace(none, events=MILLION),
    )
