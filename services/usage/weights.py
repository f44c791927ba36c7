"""What a database needs to order groups by money before anybody has worked their amounts out. Pure.

Within a cell an amount is linear in the counts, so its rates can be told by asking for the amount of a million of each.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from decimal import Decimal

from schemas.ids import microseconds
from schemas.prices import Figure
from services.runtime.pricing.book import PriceBook
from services.runtime.pricing.cells import Cell
from services.runtime.pricing.sums import amounts_of
from services.usage.fingerprint import hash_of
from services.usage.queries import Weights

MILLION = 10**6


def cell_hash(cell: Cell) -> int:
    """64 bits of what tells a cell apart; the SQL of the store says the same, which a test holds."""
    return hash_of(
        (
            cell.kind,
            cell.provider,
            cell.model,
            cell.tool,
            str(int(cell.billable)),
            str(microseconds(cell.begins)),
            str(cell.size),
            str(cell.shape),
        )
    )


def weights_of(cells: Iterable[Cell], figure: Figure, tenant_id: str, book: PriceBook) -> Weights:
    """By cost or by price, in the currency that most events are paid in: currencies cannot be compared."""
    paid: list[tuple[Cell, str]] = []
    events: Counter[str] = Counter()
    for cell in cells:
        for currency in _figure(cell, figure, tenant_id, book):
            paid.append((cell, currency))
            events[currency] += cell.events
    ((main, _),) = events.most_common(1) or [("", 0)]
    rows = [
        (cell_hash(cell), *(_rate(probe, figure, main, tenant_id, book) for probe in _probes(cell)))
        for cell, currency in paid
        if currency == main
    ]
    columns = list(zip(*rows, strict=True)) or [()] * 7
    return Weights(*columns)


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


def _rate(probe: Cell, figure: Figure, currency: str, tenant_id: str, book: PriceBook) -> float:
    """Of a millionth of the probe. A part without a rate has none of this cell's tokens, else nobody would know it."""
    amount = _figure(probe, figure, tenant_id, book).get(currency, Decimal(0))
    return float(amount / MILLION)


def _figure(cell: Cell, figure: Figure, tenant_id: str, book: PriceBook) -> Mapping[str, Decimal]:
    amounts = amounts_of((cell,), tenant_id, book)
    return amounts.cost if figure == "cost" else amounts.price
