"""What a database needs to order groups by money before anybody has worked their amounts out. Pure."""

from collections import Counter
from collections.abc import Iterable

from schemas.ids import microseconds
from schemas.prices import Figure
from services.runtime.pricing.book import PriceBook
from services.runtime.pricing.cells import Cell
from services.usage.cell_rates import MILLION, PartRates, rates_of
from services.usage.fingerprint import hash_of
from services.usage.queries import Weights


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
    paid: list[tuple[Cell, PartRates]] = []
    events: Counter[str] = Counter()
    for cell in cells:
        found = rates_of(cell, tenant_id, book)
        rates = found.cost if figure == "cost" else found.price
        if rates is not None:
            paid.append((cell, rates))
            events[rates.currency] += cell.events
    ((main, _),) = events.most_common(1) or [("", 0)]
    rows = [_weights(cell, rates) for cell, rates in paid if rates.currency == main]
    columns = list(zip(*rows, strict=True)) or [()] * 7
    return Weights(*columns)


def _weights(cell: Cell, rates: PartRates) -> tuple[int, float, float, float, float, float, float]:
    """Of one token of each kind, of an image and of an event."""
    tokens = (rates.input, rates.cached_input, rates.output, rates.reasoning)
    uncached, cached, output, reasoning = (rate / MILLION for rate in tokens)
    return cell_hash(cell), uncached, cached, output, reasoning, rates.image, rates.call
