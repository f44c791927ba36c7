"""What providers take, as the package `genai-prices` carries it: data in the installation, nothing is downloaded."""

from collections.abc import Iterator
from datetime import UTC, datetime, time
from decimal import Decimal
from functools import lru_cache

from genai_prices.data import providers
from genai_prices.types import ConditionalPrice, ModelInfo, ModelPrice, StartDateConstraint, TieredPrices
from genai_prices.types import TimeOfDateConstraint as TimeOfDayConstraint

from schemas.prices import Rates, Tariff, Tier
from services.runtime.pricing.cells import Boundaries

MILLE = 1000

QUANTUM = Decimal("1e-12")
"""Some rates of the package were floats once: 0.18000000000000002."""

CACHED_TARIFFS = 4096
"""Names of models come from outside: what is kept of them is bounded."""


class PackagedPrices:
    """Prices of the providers that the package knows, in USD. A provider is known by the package's own id for it."""

    def __init__(self) -> None:
        self._providers = {provider.id: provider for provider in providers}
        self.boundaries = _boundaries()
        self.tariff = lru_cache(CACHED_TARIFFS)(self._tariff)

    def _tariff(self, provider: str, model: str, at: datetime) -> Tariff | None:
        """None for an unknown provider or model, and for one whose price depends on the hour of the day."""
        known = self._providers.get(provider)
        info = known.find_model(model, all_providers=providers) if known is not None else None
        if info is None or any(isinstance(each.constraint, TimeOfDayConstraint) for each in _conditions(info)):
            return None
        return _tariff_of(info.get_prices(at))


def _tariff_of(price: ModelPrice) -> Tariff:
    by_rate = {
        "input": price.input_mtok,
        "cached_input": price.cache_read_mtok,
        "output": price.output_mtok,
        "reasoning": price.output_reasoning_mtok,
        "call": price.requests_kcount,
    }
    starts = sorted({start for value in by_rate.values() for start in _starts(value)})
    return Tariff(
        rates=_rates(by_rate, 0),
        tiers=[Tier(above_input_tokens=start, rates=_rates(by_rate, start + 1)) for start in starts],
    )


def _rates(by_rate: dict[str, Decimal | TieredPrices | None], size: int) -> Rates:
    rates = {name: _at(value, size) for name, value in by_rate.items()}
    if (calls := rates["call"]) is not None:
        rates["call"] = calls / MILLE
    return Rates(**{name: None if rate is None else rate.quantize(QUANTUM) for name, rate in rates.items()})


def _at(value: Decimal | TieredPrices | None, size: int) -> Decimal | None:
    if not isinstance(value, TieredPrices):
        return value
    reached = [tier.price for tier in value.tiers if size > tier.start]
    return reached[-1] if reached else value.base


def _starts(value: Decimal | TieredPrices | None) -> list[int]:
    return [tier.start for tier in value.tiers] if isinstance(value, TieredPrices) else []


def _conditions(info: ModelInfo) -> list[ConditionalPrice]:
    return [] if isinstance(info.prices, ModelPrice) else info.prices


def _all_prices() -> Iterator[ModelPrice]:
    for provider in providers:
        for info in provider.models:
            if isinstance(info.prices, ModelPrice):
                yield info.prices
            else:
                yield from (each.prices for each in info.prices)


def _boundaries() -> Boundaries:
    """Of all models at once: a few dozen."""
    days = {
        each.constraint.start_date
        for provider in providers
        for info in provider.models
        for each in _conditions(info)
        if isinstance(each.constraint, StartDateConstraint)
    }
    sizes = {start + 1 for price in _all_prices() for value in vars(price).values() for start in _starts(value)}
    return Boundaries.at((datetime.combine(day, time(), UTC) for day in days), sizes)
