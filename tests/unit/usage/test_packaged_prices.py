"""What providers take by default: as the package says it, at the time of the usage."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from genai_prices.data import providers
from genai_prices.types import ConditionalPrice, ModelInfo, StartDateConstraint, TimeOfDateConstraint

from schemas.prices import Rates
from schemas.usage import UsageRecorded
from services.runtime.pricing.cells import cell_of
from services.runtime.pricing.defaults import PackagedPrices
from services.runtime.pricing.rate import rate, total

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def packaged() -> PackagedPrices:
    return PackagedPrices()


def conditions(info: ModelInfo) -> list[ConditionalPrice]:
    return info.prices if isinstance(info.prices, list) else []


def test_a_known_model_has_its_rates_in_dollars(packaged: PackagedPrices) -> None:
    tariff = packaged.tariff("openai", "gpt-4o-mini", NOW)
    assert tariff is not None
    assert (tariff.currency, tariff.tiers) == ("USD", [])
    assert tariff.rates == Rates(input=Decimal("0.15"), cached_input=Decimal("0.075"), output=Decimal("0.6"))


@pytest.mark.parametrize(("provider", "model"), [("openai", "no-such"), ("default", "gpt-4o"), ("my-openai", "gpt-4o")])
def test_what_the_package_does_not_know_by_that_name_has_no_price(
    packaged: PackagedPrices, provider: str, model: str
) -> None:
    assert packaged.tariff(provider, model, NOW) is None


def test_a_price_that_depends_on_the_hour_is_left_to_whoever_knows_it(packaged: PackagedPrices) -> None:
    hourly = [
        (provider.id, info.id)
        for provider in providers
        for info in provider.models
        if any(isinstance(each.constraint, TimeOfDateConstraint) for each in conditions(info))
    ]
    assert hourly
    for provider, model in hourly:
        assert packaged.tariff(provider, model, NOW) is None


def test_every_model_is_rated_as_the_package_rates_it(packaged: PackagedPrices) -> None:
    """Around each of its times and sizes, but for the noise of floats in its rates."""
    compared = 0
    for provider in providers:
        for info in provider.models:
            if provider.find_model(info.id) is not info:
                continue  # another model's pattern takes the name
            days = [
                each.constraint.start_date
                for each in conditions(info)
                if isinstance(each.constraint, StartDateConstraint)
            ]
            times = [NOW, *(datetime(day.year, day.month, day.day, tzinfo=UTC) for day in days)]
            for time in times:
                for size in (1, 128_000, 128_001, 200_001, 300_000):
                    compared += compare(packaged, provider.id, info, time, size)
    assert compared > 10_000


def compare(packaged: PackagedPrices, provider: str, info: ModelInfo, time: datetime, size: int) -> bool:
    used = UsageRecorded(
        usage_id="u",
        kind="completion",
        provider=provider,
        model=info.id,
        occurred_at=time,
        input_tokens=size,
        output_tokens=7,
    )
    cell = cell_of(used, packaged.boundaries)
    tariff = packaged.tariff(provider, info.id, cell.begins)
    rated = rate(cell, tariff) if tariff is not None else None
    if rated is None:
        return False
    theirs = info.calc_price(
        {"input_tokens": size, "output_tokens": 7},
        next(each for each in providers if each.id == provider),
        genai_request_timestamp=time,
    )
    assert abs(total(rated.values()) - theirs.total_price) < Decimal("1e-12"), (provider, info.id, time, size)
    return True
