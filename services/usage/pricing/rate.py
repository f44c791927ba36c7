"""What one event costs by a price. Pure.

Each part is rounded half to even to 12 decimals, and the amount is the sum of the rounded parts: nothing is rounded
twice, and the lines of an event add up to it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from typing import Literal

from schemas.prices import PriceVersion, Rates
from schemas.usage import UsageRecorded

Part = Literal["input", "cached_input", "output", "reasoning", "call"]
Reason = Literal["no_price", "no_rate", "bad_counts"]

QUANTUM = Decimal("1e-12")
MILLION = Decimal(10**6)

DIGITS = 60
"""More than the largest count times the largest price has, so that only the stated rounding takes place."""


@dataclass(frozen=True, slots=True)
class Priced:
    """What an event costs, as a whole and by its parts, and the version of the price that said so."""

    amount: Decimal
    currency: str
    price_id: str
    parts: Mapping[Part, Decimal]


@dataclass(frozen=True, slots=True)
class Unpriced:
    """Nobody knows what an event costs, which is not nothing: there is no price, or none for a part of it.

    `bad_counts`: a count is negative, or a part is larger than what it is part of.
    """

    reason: Reason


def rate(event: UsageRecorded, price: PriceVersion | None) -> Priced | Unpriced:
    """Rates an event, by the price that `PriceBook.price_of` gives for it."""
    if price is None:
        return Unpriced("no_price")
    if not (
        0 <= event.cached_input_tokens <= event.input_tokens and 0 <= event.reasoning_tokens <= event.output_tokens
    ):
        return Unpriced("bad_counts")
    rates = _rates_at(price, event.input_tokens)
    counts: tuple[tuple[Part, int, Decimal | None], ...] = (
        ("input", event.input_tokens - event.cached_input_tokens, rates.input),
        ("cached_input", event.cached_input_tokens, _either(rates.cached_input, rates.input)),
        ("output", event.output_tokens - event.reasoning_tokens, rates.output),
        ("reasoning", event.reasoning_tokens, _either(rates.reasoning, rates.output)),
    )
    parts: dict[Part, Decimal] = {}
    with localcontext(prec=DIGITS):
        for part, tokens, price_of_million in counts:
            if not tokens:
                continue
            if price_of_million is None:
                return Unpriced("no_rate")
            parts[part] = (tokens * price_of_million / MILLION).quantize(QUANTUM, ROUND_HALF_EVEN)
        if rates.call is not None:
            parts["call"] = rates.call.quantize(QUANTUM, ROUND_HALF_EVEN)
        if not parts and rates == Rates():
            return Unpriced("no_rate")
        return Priced(sum(parts.values(), Decimal(0)), price.currency, price.price_id, parts)


def _rates_at(price: PriceVersion, input_tokens: int) -> Rates:
    above = [tier.rates for tier in price.tiers if input_tokens > tier.above_input_tokens]
    return above[-1] if above else price.rates


def _either(own: Decimal | None, whole: Decimal | None) -> Decimal | None:
    return whole if own is None else own
