"""What quantities come to by the schemes of a plan, exactly."""

from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.plans import GraduatedCharge, PackageCharge, PerUnitCharge, VolumeCharge
from services.usage.billing.charges import MeteredCharge, amount_of, parts_of
from services.usage.billing.money import rounded

quantities = st.integers(0, 10**18)
units = st.integers(0, 10**15)
rates = st.decimals(0, 10**9 - 1, places=12)
pers = st.sampled_from([1, 1000, 1_000_000])
ends = st.integers(1, 10**15)
tiers = st.lists(
    st.builds(dict, up_to=ends, unit_price=rates, flat_fee=rates), max_size=20, unique_by=lambda tier: tier["up_to"]
)
beyond = st.builds(dict, unit_price=rates, flat_fee=rates)


def metered(kind: type[Any], **fields: Any) -> Any:
    schemes = {PerUnitCharge: "per_unit", GraduatedCharge: "graduated", VolumeCharge: "volume"}
    scheme = schemes.get(kind, "package")
    return kind.model_validate({"name": "c", "scheme": scheme, "meter": "events", **fields})


def due(charge: MeteredCharge, quantity: int) -> Decimal:
    return amount_of(parts_of(charge, quantity))


charges = st.one_of(
    st.builds(lambda **f: metered(PerUnitCharge, **f), unit_price=rates, per=pers, included=units),
    st.builds(lambda **f: metered(GraduatedCharge, **f), tiers=tiers, beyond=beyond, per=pers, included=units),
    st.builds(lambda **f: metered(PackageCharge, **f), size=st.integers(1, 10**15), price=rates, included=units),
)
tiered = st.builds(lambda **f: metered(GraduatedCharge, **f), tiers=tiers, beyond=beyond, per=pers, included=units)


@given(tiered, quantities)
def test_a_graduated_amount_is_the_sum_of_what_lies_in_each_tier(charge: GraduatedCharge, quantity: int) -> None:
    left = Fraction(max(0, quantity - charge.included))
    begin, expected = Fraction(0), Fraction(0)
    for tier in sorted(charge.tiers, key=lambda each: each.up_to):
        inside = min(left, Fraction(tier.up_to)) - begin
        if inside > 0:
            expected += inside * Fraction(tier.unit_price) / charge.per + Fraction(tier.flat_fee)
            begin += inside
    if left > begin:
        expected += (left - begin) * Fraction(charge.beyond.unit_price) / charge.per + Fraction(charge.beyond.flat_fee)

    assert Fraction(due(charge, quantity)) == expected


@given(tiered, quantities)
def test_the_parts_of_an_amount_have_every_unit_beyond_the_included_ones_once(
    charge: GraduatedCharge, quantity: int
) -> None:
    parts = parts_of(charge, quantity)

    assert sum(part.quantity for part in parts) == max(0, quantity - charge.included)
    assert all(part.quantity > 0 for part in parts)


@given(charges, quantities, quantities)
def test_who_uses_more_never_pays_less(charge: MeteredCharge, one: int, other: int) -> None:
    assert due(charge, min(one, other)) <= due(charge, max(one, other))


@given(charges, st.data())
def test_what_is_included_costs_nothing(charge: MeteredCharge, data: st.DataObject) -> None:
    assert due(charge, data.draw(st.integers(0, charge.included))) == 0


@given(tiered, quantities)
def test_by_volume_all_units_are_paid_as_the_last_one(charge: GraduatedCharge, quantity: int) -> None:
    volume = metered(VolumeCharge, **charge.model_dump(exclude={"scheme", "name", "meter"}))
    parts = parts_of(volume, quantity)
    graduated = parts_of(charge, quantity)

    assert len(parts) == min(1, len(graduated))
    for part in parts:
        last = graduated[-1]
        assert (part.unit_price, part.flat_fee) == (last.unit_price, last.flat_fee)
        assert part.quantity == quantity - charge.included


@given(st.integers(1, 10**15), rates, st.integers(0, 1000))
def test_a_package_that_has_begun_is_paid_whole(size: int, price: Decimal, count: int) -> None:
    charge = metered(PackageCharge, size=size, price=price)

    assert due(charge, size * count) == price * count
    assert due(charge, size * count + 1) == price * (count + 1)
    assert due(charge, size * (count + 1)) == price * (count + 1)


@pytest.mark.parametrize(
    ("quantity", "graduated", "volume"),
    [(0, "0", "0"), (1, "11", "11"), (10, "20", "20"), (11, "25.5", "10.5"), (100, "70", "55")],
)
def test_tiers_end_with_the_unit_that_they_name(quantity: int, graduated: str, volume: str) -> None:
    fields: dict[str, Any] = {
        "tiers": [{"up_to": 10, "unit_price": "1", "flat_fee": "10"}],
        "beyond": {"unit_price": "0.5", "flat_fee": "5"},
    }
    assert due(metered(GraduatedCharge, **fields), quantity) == Decimal(graduated)
    assert due(metered(VolumeCharge, **fields), quantity) == Decimal(volume)


@pytest.mark.parametrize(
    ("amount", "currency", "shown"),
    [
        ("1.005", "EUR", "1.01"),
        ("1.0049999", "EUR", "1.00"),
        ("-1.005", "EUR", "-1.01"),
        ("0.5", "JPY", "1"),
        ("1.0005", "KWD", "1.001"),
        ("7", "USD", "7.00"),
    ],
)
def test_amounts_are_rounded_to_the_smallest_unit_a_half_away_from_zero(amount: str, currency: str, shown: str) -> None:
    assert str(rounded(Decimal(amount), currency)) == shown


@given(st.decimals(-(10**15), 10**15, places=12))
def test_what_is_taken_back_rounds_as_what_was_taken(amount: Decimal) -> None:
    assert rounded(-amount, "EUR") == -rounded(amount, "EUR")
