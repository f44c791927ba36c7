"""What an event costs: which price holds, its tiers and parts, and what is unpriced rather than free."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.prices import PriceVersion, Rates
from schemas.usage import UsageRecorded
from services.usage.pricing.book import PriceBook
from services.usage.pricing.rate import QUANTUM, Priced, Unpriced, rate

START = datetime(2026, 1, 1, tzinfo=UTC)
FULL = {"input": "2.5", "cached_input": "1.25", "output": "10", "reasoning": "12", "call": "0.001"}

prices = st.decimals(0, 10**9 - 1, places=12)
counts = st.integers(0, 10**12)


def event(**fields: Any) -> UsageRecorded:
    given = {"usage_id": "u", "kind": "completion", "provider": "p", "model": "m", "occurred_at": START, **fields}
    return UsageRecorded.model_validate(given)


def price(price_id: str = "all", **fields: Any) -> PriceVersion:
    given = {"price_id": price_id, "kind": "completion", "effective_from": START, "rates": FULL, **fields}
    return PriceVersion.model_validate(given)


def amount(rated: Priced | Unpriced) -> Decimal:
    assert isinstance(rated, Priced), rated
    return rated.amount


def test_cached_input_and_reasoning_are_paid_apart_and_once() -> None:
    used = event(input_tokens=1000, cached_input_tokens=400, output_tokens=200, reasoning_tokens=50)
    rated = rate(used, price())
    assert isinstance(rated, Priced)
    assert rated.parts == {
        "input": Decimal("0.0015"),
        "cached_input": Decimal("0.0005"),
        "output": Decimal("0.0015"),
        "reasoning": Decimal("0.0006"),
        "call": Decimal("0.001"),
    }
    assert (rated.amount, rated.currency, rated.price_id) == (Decimal("0.0051"), "USD", "all")


def test_without_a_rate_of_its_own_a_part_is_paid_as_the_whole() -> None:
    used = event(input_tokens=10**6, cached_input_tokens=10**6, output_tokens=10**6, reasoning_tokens=10**6)
    assert amount(rate(used, price(rates={"input": "2", "output": "3"}))) == 5


@given(tokens=st.tuples(counts, counts), parts=st.tuples(counts, counts), rates=st.tuples(*[prices] * 5))
def test_the_parts_add_up_to_the_amount_and_each_is_exact_to_half_a_quantum(
    tokens: tuple[int, int], parts: tuple[int, int], rates: tuple[Decimal, ...]
) -> None:
    cached, reasoning = min(parts[0], tokens[0]), min(parts[1], tokens[1])
    used = event(
        input_tokens=tokens[0], cached_input_tokens=cached, output_tokens=tokens[1], reasoning_tokens=reasoning
    )
    rated = rate(used, price(rates=dict(zip(FULL, map(str, rates), strict=True))))
    assert isinstance(rated, Priced)
    units = {part: int(value.scaleb(12)) for part, value in rated.parts.items()}
    assert int(rated.amount.scaleb(12)) == sum(units.values())
    paid = {
        "input": tokens[0] - cached,
        "cached_input": cached,
        "output": tokens[1] - reasoning,
        "reasoning": reasoning,
    }
    for (part, count), of_million in zip(paid.items(), rates, strict=False):
        exact = count * int(of_million.scaleb(12))
        assert abs(2 * (units.get(part, 0) * 10**6 - exact)) <= 10**6


@given(st.lists(counts, max_size=20))
def test_more_tokens_never_cost_less_without_tiers(sizes: list[int]) -> None:
    amounts = [amount(rate(event(input_tokens=size), price())) for size in sorted(sizes)]
    assert amounts == sorted(amounts)


def test_half_a_quantum_goes_to_the_even_side() -> None:
    odd, even = price(rates={"input": "0.0000005"}), price(rates={"input": "0.0000015"})
    assert amount(rate(event(input_tokens=1), odd)) == 0
    assert amount(rate(event(input_tokens=1), even)) == 2 * QUANTUM


@pytest.mark.parametrize(("tokens", "of_million"), [(200, 1), (201, 2), (1000, 2), (1001, 3)])
def test_the_tier_of_the_whole_input_prices_all_of_it(tokens: int, of_million: int) -> None:
    tiers = [
        {"above_input_tokens": 200, "rates": {"input": "2"}},
        {"above_input_tokens": 1000, "rates": {"input": "3"}},
    ]
    tiered = price(rates={"input": "1"}, tiers=tiers)
    assert amount(rate(event(input_tokens=tokens), tiered)) == Decimal(tokens * of_million) / 10**6


def test_a_tool_is_paid_by_the_call() -> None:
    used = event(kind="tool", tool="search", provider=None, model=None)
    book = PriceBook([price(kind="tool", tool="search", rates={"call": "0.01"})])
    assert amount(rate(used, book.price_of(used))) == Decimal("0.01")


def test_what_nobody_has_a_price_for_is_unpriced_and_never_free() -> None:
    used = event(input_tokens=1, output_tokens=1)
    assert rate(used, None) == Unpriced("no_price")
    assert rate(used, price(rates={"input": "1"})) == Unpriced("no_rate")
    assert rate(event(), price(rates=Rates())) == Unpriced("no_rate")
    assert amount(rate(used, price(rates={"input": "0", "output": "0"}))) == 0


@pytest.mark.parametrize(
    "absurd",
    [
        {"input_tokens": 1, "cached_input_tokens": 2},
        {"output_tokens": 1, "reasoning_tokens": 2},
        {"input_tokens": 1, "cached_input_tokens": -1},
    ],
)
def test_absurd_counts_are_unpriced(absurd: dict[str, int]) -> None:
    assert rate(event().model_copy(update=absurd), price()) == Unpriced("bad_counts")


def test_a_version_holds_from_its_time_to_the_next_one_in_whatever_order_they_come() -> None:
    later = START + timedelta(days=1)
    book = PriceBook([price("new", effective_from=later), price("old")])
    moment = timedelta(microseconds=1)
    found = {
        time: (held.price_id if (held := book.price_of(event(occurred_at=time))) else None)
        for time in (START - moment, START, later - moment, later)
    }
    assert list(found.values()) == [None, "old", "old", "new"]


def test_the_narrowest_scope_wins_and_a_later_wide_price_does_not_replace_it() -> None:
    later = START - timedelta(hours=1)
    scopes: list[dict[str, str]] = [
        {"tenant_id": "acme", "model": "m", "provider": "p"},
        {"tenant_id": "acme", "model": "m"},
        {"tenant_id": "acme", "provider": "p"},
        {"tenant_id": "acme"},
        {"model": "m", "provider": "p"},
        {"model": "m"},
        {"provider": "p"},
        {},
    ]
    versions = [
        price(str(rank), effective_from=later - timedelta(days=len(scopes) - rank), **scope)
        for rank, scope in enumerate(scopes)
    ]
    for rank in range(len(scopes)):
        held = PriceBook(versions[rank:]).price_of(event(tenant_id="acme"))
        assert held is not None
        assert held.price_id == str(rank)
    other = PriceBook(versions).price_of(event(tenant_id="other"))
    assert other is not None
    assert other.price_id == "4"


def test_two_prices_of_a_scope_from_one_time_are_refused() -> None:
    with pytest.raises(ValueError, match="got a and b"):
        PriceBook([price("a"), price("b")])


@pytest.mark.parametrize(
    "wrong",
    [
        {"rates": {"input": "-1"}},
        {"rates": {"input": "NaN"}},
        {"rates": {"input": "0.0000000000001"}},
        {"currency": "usd"},
        {"tiers": [{"above_input_tokens": 2, "rates": {}}, {"above_input_tokens": 1, "rates": {}}]},
    ],
)
def test_a_price_that_means_nothing_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        price(**wrong)
