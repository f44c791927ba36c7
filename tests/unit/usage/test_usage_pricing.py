"""What usage costs: which price holds, its tiers and parts, and what is unpriced rather than free."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.prices import PriceSpec, Rates, Tariff
from schemas.usage import UsageRecorded
from services.runtime.pricing.cells import BAD_COUNTS, Boundaries, Cell, cell_of
from services.runtime.pricing.rate import rate, total
from services.runtime.pricing.sums import amounts_of
from tests.support.prices import START, GivenDefaults, book_of, price

FULL = {"input": "2.5", "cached_input": "1.25", "output": "10", "reasoning": "12", "call": "0.001"}
DAY = timedelta(days=1)

amounts = st.decimals(0, 10**9 - 1, places=12)
counts = st.integers(0, 10**12)
names = st.sampled_from([None, "a", "b"])
few_rates = st.dictionaries(st.sampled_from([*FULL, "image"]), amounts.map(str), min_size=1)


def event(**fields: Any) -> UsageRecorded:
    filled = {"usage_id": "u", "kind": "completion", "provider": "p", "model": "m", "occurred_at": START, **fields}
    return UsageRecorded.model_validate(filled)


def cell(*, at: Boundaries | None = None, **fields: Any) -> Cell:
    return cell_of(event(**fields), at or Boundaries.at([START], [201, 1001]))


def amount(rated: Any) -> Decimal:
    assert rated is not None
    return total(rated.values())


@st.composite
def prices(draw: st.DrawFn) -> PriceSpec:
    fields: dict[str, Any] = {
        "figure": draw(st.sampled_from(["cost", "price"])),
        "tenant_id": draw(st.sampled_from([None, "acme", "other"])),
        "provider": draw(names),
        "model": draw(names),
        "kind": draw(st.sampled_from([None, "completion", "tool"])),
        "currency": draw(st.sampled_from(["USD", "EUR"])),
        "effective_from": START + draw(st.integers(-3, 3)) * DAY,
    }
    tiers = draw(st.lists(st.integers(0, 30), unique=True, max_size=2))
    fields["markup"] = draw(st.decimals(-1, 10, places=6))
    fields["rates"] = draw(st.just({}) | few_rates)
    fields["tiers"] = [{"above_input_tokens": bound, "rates": draw(few_rates)} for bound in tiers]
    return price(f"price-{draw(st.integers(0, 3))}", **fields)


@st.composite
def events(draw: st.DrawFn) -> UsageRecorded:
    fields = {name: draw(st.integers(0, 40)) for name in ("input_tokens", "output_tokens")}
    parts = {"cached_input_tokens": draw(st.integers(0, 41)), "reasoning_tokens": draw(st.integers(0, 41))}
    return event(
        kind=draw(st.sampled_from(["completion", "tool"])),
        provider=draw(names),
        model=draw(names),
        images=draw(st.integers(0, 3)),
        billable=draw(st.booleans()),
        occurred_at=START + draw(st.integers(-100, 100)) * timedelta(hours=1),
        **fields,
        **parts,
    )


def merged(cells: Iterable[Cell]) -> list[Cell]:
    """Cells as the database adds them up."""
    summed = ("events", "input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens", "images")
    alike: defaultdict[Cell, list[Cell]] = defaultdict(list)
    for each in cells:
        alike[replace(each, **dict.fromkeys(summed, 0))].append(each)
    return [
        replace(key, **{name: sum(getattr(each, name) for each in group) for name in summed})
        for key, group in alike.items()
    ]


@given(st.lists(prices(), max_size=8), st.lists(events(), max_size=30))
def test_the_amount_of_a_sum_is_the_sum_of_the_amounts_of_its_events(
    applied: list[PriceSpec], used: list[UsageRecorded]
) -> None:
    book = book_of(*applied)
    cells = [cell_of(each, book.boundaries("acme")) for each in used]
    whole = amounts_of(merged(cells), "acme", book)
    # Each event by itself, at its own time and size and not at the boundary below them.
    alone = [
        amounts_of(
            [replace(each, begins=recorded.occurred_at, size=recorded.input_tokens)],
            "acme",
            book,
        )
        for each, recorded in zip(cells, used, strict=True)
    ]
    for figure in ("cost", "price"):
        by_currency: defaultdict[str, Fraction] = defaultdict(Fraction)
        for each in alone:
            for currency, money in getattr(each, figure).items():
                by_currency[currency] += Fraction(money)
        assert {currency: Fraction(money) for currency, money in getattr(whole, figure).items()} == by_currency
    assert whole.unpriced_events == sum(each.unpriced_events for each in alone)


@given(tokens=st.tuples(counts, counts), parts=st.tuples(counts, counts), rates=st.tuples(*[amounts] * 5))
def test_parts_are_exact_and_cover_every_token_once(
    tokens: tuple[int, int], parts: tuple[int, int], rates: tuple[Decimal, ...]
) -> None:
    cached, reasoning = min(parts[0], tokens[0]), min(parts[1], tokens[1])
    used = cell(input_tokens=tokens[0], cached_input_tokens=cached, output_tokens=tokens[1], reasoning_tokens=reasoning)
    rated = rate(used, Tariff(rates=Rates(**dict(zip(FULL, rates, strict=True)))))
    paid = {
        "input": tokens[0] - cached,
        "cached_input": cached,
        "output": tokens[1] - reasoning,
        "reasoning": reasoning,
        "call": 10**6,
    }
    assert rated is not None
    assert {part: Fraction(money) for part, money in rated.items()} == {
        part: Fraction(count) * Fraction(of_million) / 10**6
        for (part, count), of_million in zip(paid.items(), rates, strict=True)
        if count
    }


def test_cached_input_and_reasoning_are_paid_apart_and_once() -> None:
    used = cell(input_tokens=1000, cached_input_tokens=400, output_tokens=200, reasoning_tokens=50)
    assert rate(used, price(rates=FULL)) == {
        "input": Decimal("0.0015"),
        "cached_input": Decimal("0.0005"),
        "output": Decimal("0.0015"),
        "reasoning": Decimal("0.0006"),
        "call": Decimal("0.001"),
    }


def test_without_a_rate_of_its_own_a_part_is_paid_as_the_whole() -> None:
    used = cell(input_tokens=10**6, cached_input_tokens=10**6, output_tokens=10**6, reasoning_tokens=10**6)
    assert amount(rate(used, price(rates={"input": "2", "output": "3"}))) == 5


@pytest.mark.parametrize(("tokens", "of_million"), [(200, 1), (201, 2), (1000, 2), (1001, 3)])
def test_the_tier_of_the_whole_input_prices_all_of_it(tokens: int, of_million: int) -> None:
    tiers = [
        {"above_input_tokens": 200, "rates": {"input": "2"}},
        {"above_input_tokens": 1000, "rates": {"input": "3"}},
    ]
    tiered = price(rates={"input": "1"}, tiers=tiers)
    assert amount(rate(cell(input_tokens=tokens), tiered)) == Decimal(tokens * of_million) / 10**6


def test_what_nobody_has_a_price_for_is_unpriced_and_never_free() -> None:
    used = cell(input_tokens=1, output_tokens=1)
    assert rate(used, price(rates={"input": "1"})) is None
    assert rate(used, Tariff()) is None
    assert amount(rate(used, price(rates={"input": "0", "output": "0"}))) == 0
    unpriced = amounts_of([used], "default", book_of())
    assert (unpriced.cost, unpriced.price, unpriced.unpriced_events) == ({}, {}, 1)


@pytest.mark.parametrize(
    "absurd", [{"input_tokens": 1, "cached_input_tokens": 2}, {"output_tokens": 1, "reasoning_tokens": 2}]
)
def test_an_event_whose_parts_are_larger_than_the_whole_is_unpriced(absurd: dict[str, int]) -> None:
    used = cell(**absurd)
    assert used.shape == BAD_COUNTS
    assert rate(used, price(rates=FULL)) is None


def test_a_tool_is_paid_by_the_call() -> None:
    used = replace(cell(kind="tool", tool="search", provider=None, model=None), events=3)
    book = book_of(price(kind="tool", tool="search", rates={"call": "0.01"}))
    assert amounts_of([used], "default", book).cost == {"USD": Decimal("0.03")}


def test_an_image_is_paid_by_the_piece_and_without_a_rate_is_unpriced() -> None:
    used = replace(cell(kind="image", images=2), events=3, images=6)
    made = price(kind="image", rates={"image": "0.04", "call": "0.001"})
    assert rate(used, made) == {"image": Decimal("0.24"), "call": Decimal("0.003")}
    assert rate(used, price(rates=FULL)) is None
    assert amounts_of([used], "default", book_of(price(rates=FULL))).unpriced_events == 3
    read = cell(input_tokens=10**6, images=1)
    assert amount(rate(read, price(rates={"input": "2", "image": "0.5"}))) == Decimal("2.5")


def test_the_customer_pays_the_cost_until_a_price_says_otherwise() -> None:
    cost = price("cost", rates={"input": "2"})
    used = cell(input_tokens=10**6)

    def paid(*prices: PriceSpec, tenant: str = "acme") -> Any:
        found = amounts_of([used], tenant, book_of(cost, *prices))
        assert found.cost == {"USD": 2}
        return found.price

    markup = price("markup", figure="price", markup="0.2")
    own = price("own", figure="price", tenant_id="acme", rates={"input": "3"}, currency="EUR")
    assert paid() == {"USD": 2}
    assert paid(markup) == {"USD": Decimal("2.4")}
    assert paid(markup, own) == {"EUR": 3}
    assert paid(markup, own, tenant="other") == {"USD": Decimal("2.4")}


COST = price("cost", model="m", rates={"input": "2"})
LIST = price("list", figure="price", rates={"input": "5"})


@pytest.mark.parametrize(("changes", "expected"), [({"markup": "-0.1"}, "4.5"), ({"markup": "0"}, "5"), ({}, "5")])
def test_a_price_without_rates_is_on_top_of_the_next_wider_one(changes: dict[str, str], expected: str) -> None:
    own = price("own", figure="price", tenant_id="acme", **{"rates": {}, **changes})
    found = amounts_of([cell(input_tokens=10**6)], "acme", book_of(COST, LIST, own))
    assert (found.cost, found.price, found.unpriced_events) == ({"USD": 2}, {"USD": Decimal(expected)}, 0)


def test_a_discount_on_a_cost_is_off_the_next_wider_cost_and_not_off_the_packaged_one() -> None:
    discount = price("discount", tenant_id="acme", markup="-0.1")
    known = GivenDefaults({("p", "m"): Tariff(rates=Rates(input=Decimal(7)))})
    used = [cell(input_tokens=10**6)]
    for defaults in (known, None):
        assert amounts_of(used, "acme", book_of(COST, discount, defaults=defaults)).cost == {"USD": Decimal("1.8")}
    assert amounts_of(used, "acme", book_of(discount, defaults=known)).cost == {"USD": Decimal("6.3")}
    assert amounts_of(used, "acme", book_of(discount)).unpriced_events == 1


def test_the_narrowest_markup_alone_is_on_top_of_the_rates() -> None:
    scopes: list[dict[str, str]] = [{}, {"kind": "completion"}, {"model": "m"}, {"tenant_id": "acme"}]
    markups = [price(str(rank), figure="price", markup=f"0.{rank}", **scope) for rank, scope in enumerate(scopes, 1)]
    used = [cell(input_tokens=10**6)]
    assert amounts_of(used, "acme", book_of(COST, *markups)).price == {"USD": 2 * Decimal("1.4")}
    assert amounts_of(used, "acme", book_of(COST, *markups, LIST)).price == {"USD": 5 * Decimal("1.4")}
    dear = price("list", figure="price", rates={"input": "5"}, markup="0.2")
    assert amounts_of(used, "acme", book_of(COST, dear, *markups[1:])).price == {"USD": 6 * Decimal("1.4")}


def test_the_next_wider_price_is_the_one_of_the_same_time_with_its_tiers() -> None:
    tier = {"above_input_tokens": 10, "rates": {"input": "500000"}}
    later = price("list", figure="price", effective_from=START + DAY, rates={"input": "100000"}, tiers=[tier])
    own = price("own", figure="price", tenant_id="acme", markup="-0.5")
    book = book_of(LIST, later, own)
    expected = {(0, 10): "0.000025", (0, 20): "0.00005", (1, 10): "0.5", (1, 20): "5"}
    cells = merged(
        cell_of(event(input_tokens=tokens, occurred_at=START + days * DAY), book.boundaries("acme"))
        for days, tokens in expected
    )
    paid = sorted(amounts_of([each], "acme", book).price["USD"] for each in cells)
    assert paid == sorted(map(Decimal, expected.values()))


def test_every_markup_may_have_all_digits() -> None:
    """The most that there can be on an amount: nothing of it is rounded."""
    rates = {"input": str(Decimal(10**9) - Decimal("1e-12"))}
    chain = [
        price("cost", markup="999.999999", rates=rates),
        price("dear", model="m", markup="999.999999"),
        price("price", figure="price", markup="999.999999"),
    ]
    found = amounts_of([cell(input_tokens=10**12)], "acme", book_of(*chain))
    cost = (Fraction(10**9) - Fraction(1, 10**12)) * 10**6 * Fraction("1000.999999") ** 2
    assert Fraction(found.cost["USD"]) == cost
    assert Fraction(found.price["USD"]) == cost * Fraction("1000.999999")


def test_what_is_not_billable_has_a_cost_and_no_price() -> None:
    used = cell(input_tokens=10**6, billable=False)
    found = amounts_of([used], "acme", book_of(price(rates={"input": "2"})))
    assert (found.cost, found.price, found.unpriced_events) == ({"USD": 2}, {}, 0)


def test_a_markup_on_a_cost_that_nobody_knows_is_unpriced() -> None:
    found = amounts_of([cell(input_tokens=1)], "acme", book_of(price(figure="price", markup="0.2")))
    assert (found.cost, found.price, found.unpriced_events) == ({}, {}, 1)


def test_a_version_holds_from_its_time_to_the_next_one_in_whatever_order_they_are_applied() -> None:
    moment = timedelta(microseconds=1)
    book = book_of(price("new", effective_from=START + DAY), price("old"))
    found: list[str | None] = []
    for time in (START - moment, START, START + DAY - moment, START + DAY):
        held = next(book.applied("cost", cell(at=book.boundaries("acme"), occurred_at=time), "acme"), None)
        found.append(held.name if held else None)
    assert found == [None, "old", "old", "new"]


def test_of_two_versions_from_one_time_the_one_that_was_applied_last_holds() -> None:
    wrong, right = price("wrong"), price("right")
    assert [*book_of(wrong, right).applied("cost", cell(), "acme")] == [right]
    assert [*book_of(right, wrong).applied("cost", cell(), "acme")] == [wrong]


def test_the_narrowest_scope_wins_and_a_later_wide_price_does_not_replace_it() -> None:
    scopes: list[dict[str, str]] = [
        {"tenant_id": "acme", "model": "m", "provider": "p"},
        {"tenant_id": "acme", "model": "m"},
        {"tenant_id": "acme", "provider": "p"},
        {"tenant_id": "acme", "kind": "completion"},
        {"tenant_id": "acme"},
        {"model": "m", "provider": "p"},
        {"model": "m"},
        {"provider": "p"},
        {},
    ]
    versions = [
        price(str(rank), effective_from=START - DAY * (len(scopes) - rank), **scope)
        for rank, scope in enumerate(scopes)
    ]
    for rank in range(len(scopes)):
        assert [*book_of(*versions[rank:]).applied("cost", cell(), "acme")] == versions[rank:]
    assert [*book_of(*versions).applied("cost", cell(), "other")] == versions[5:]


def test_an_applied_cost_goes_before_the_default_from_its_time_on() -> None:
    known = GivenDefaults({("p", "m"): Tariff(rates=Rates(input=Decimal(1)))})
    discount = price("discount", effective_from=START, markup="-0.1")
    own = price("own", effective_from=START + DAY, rates={"input": "5"})
    book = book_of(discount, own, defaults=known)
    used = [cell(at=book.boundaries("acme"), occurred_at=START + days * DAY, input_tokens=10**6) for days in (-1, 0, 1)]
    assert [amounts_of([each], "acme", book).cost["USD"] for each in used] == [1, Decimal("0.9"), 5]


def test_boundaries_of_a_tenant_are_not_those_of_others() -> None:
    tier = {"above_input_tokens": 10, "rates": {"input": "1"}}
    book = book_of(price(tenant_id="acme", tiers=[tier]), price(tenant_id="other", effective_from=START + DAY))
    assert book.boundaries("acme") == Boundaries.at([START], [11])
    assert book.boundaries("other") == Boundaries.at([START + DAY], [])
    assert Boundaries.at([datetime(1, 1, 1, tzinfo=UTC)], []) == Boundaries()


@pytest.mark.parametrize(
    "wrong",
    [
        {"rates": {"input": "-1"}},
        {"rates": {"input": "NaN"}},
        {"rates": {"input": "0.0000000000001"}},
        {"currency": "usd"},
        {"effective_from": datetime(2026, 1, 1)},
        {"figure": "price", "markup": "-1.1"},
    ],
)
def test_a_price_that_means_nothing_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        price(**wrong)


def test_a_small_amount_is_written_in_digits() -> None:
    assert '"input":"0.0000001"' in price(rates={"input": "0.0000001"}).model_dump_json(exclude_none=True)
