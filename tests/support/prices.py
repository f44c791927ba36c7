"""A price book for tests: no defaults, or those that are given."""

from collections.abc import Mapping
from datetime import UTC, datetime

from schemas.prices import PriceSpec, Tariff
from services.runtime.pricing.book import PriceBook
from services.runtime.pricing.cells import Boundaries

START = datetime(2026, 1, 1, tzinfo=UTC)


class GivenDefaults:
    """Tariffs by provider and model, at any time."""

    def __init__(self, tariffs: Mapping[tuple[str, str], Tariff] | None = None) -> None:
        self.boundaries = Boundaries()
        self._tariffs = tariffs or {}

    def tariff(self, provider: str, model: str, at: datetime) -> Tariff | None:
        return self._tariffs.get((provider, model))


def price(name: str = "all", **fields: object) -> PriceSpec:
    """A cost of two and a half dollars for a million tokens of input, unless rates or a markup are given."""
    rates = {} if "markup" in fields else {"rates": {"input": "2.5", "output": "10"}}
    return PriceSpec.model_validate({"name": name, "effective_from": START, **rates, **fields})


def book_of(*applied: PriceSpec, defaults: GivenDefaults | None = None) -> PriceBook:
    return PriceBook(applied, defaults or GivenDefaults())
