"""What the events of a cell cost by a tariff. Pure.

Nothing is rounded: tokens times a rate of 12 decimals for a million of them is an amount of at most 18, and each markup
adds 6 decimals. Amounts are added up as they are, so sums of sums agree whatever they are grouped by.
"""

from collections.abc import Iterable, Mapping
from decimal import Context, Decimal, Inexact
from operator import attrgetter
from typing import Literal

from schemas.prices import Rates, Tariff
from services.runtime.pricing.cells import BAD_COUNTS, Cell

Part = Literal["input", "cached_input", "output", "reasoning", "image", "call"]

MILLION = Decimal(10**6)

EXACT = Context(prec=200, traps=[Inexact])
"""More digits than the largest sum has; an amount that did not fit would raise and not be rounded."""


def rate(cell: Cell, tariff: Tariff) -> Mapping[Part, Decimal] | None:
    """What the events of a cell cost, by parts; None when nobody knows, which is not nothing.

    So it is without a rate for a part that the events have, without any rate, and where the counts contradict each
    other.
    """
    if cell.shape == BAD_COUNTS:
        return None
    rates = _rates_at(tariff, cell.size)
    if rates == Rates():
        return None
    counts: tuple[tuple[Part, int, Decimal | None], ...] = (
        ("input", cell.input_tokens - cell.cached_input_tokens, rates.input),
        ("cached_input", cell.cached_input_tokens, _either(rates.cached_input, rates.input)),
        ("output", cell.output_tokens - cell.reasoning_tokens, rates.output),
        ("reasoning", cell.reasoning_tokens, _either(rates.reasoning, rates.output)),
    )
    parts: dict[Part, Decimal] = {}
    for part, tokens, of_million in counts:
        if not tokens:
            continue
        if of_million is None:
            return None
        parts[part] = EXACT.divide(EXACT.multiply(Decimal(tokens), of_million), MILLION)
    if cell.images:
        if rates.image is None:
            return None
        parts["image"] = EXACT.multiply(Decimal(cell.images), rates.image)
    if rates.call is not None:
        parts["call"] = EXACT.multiply(Decimal(cell.events), rates.call)
    return parts


def total(amounts: Iterable[Decimal]) -> Decimal:
    """The exact sum."""
    result = Decimal(0)
    for amount in amounts:
        result = EXACT.add(result, amount)
    return result


def marked_up(amount: Decimal, markup: Decimal) -> Decimal:
    return EXACT.multiply(amount, EXACT.add(Decimal(1), markup))


def _rates_at(tariff: Tariff, size: int) -> Rates:
    reached = [tier for tier in tariff.tiers if size > tier.above_input_tokens]
    return max(reached, key=attrgetter("above_input_tokens")).rates if reached else tariff.rates


def _either(own: Decimal | None, whole: Decimal | None) -> Decimal | None:
    return whole if own is None else own
