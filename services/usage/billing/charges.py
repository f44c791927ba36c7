"""What a quantity comes to by the scheme of a charge. Pure.

Nothing is rounded here: prices have at most 12 decimals and are for a power of ten of units, so every amount ends.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from operator import attrgetter

from schemas.plans import GraduatedCharge, PackageCharge, PerUnitCharge, TierPrice, VolumeCharge
from services.usage.pricing.rate import EXACT, total

MeteredCharge = PerUnitCharge | GraduatedCharge | VolumeCharge | PackageCharge


@dataclass(frozen=True, slots=True)
class Part:
    """So many units at one price, and what is due for having begun with them."""

    quantity: int
    unit_price: Decimal
    per: int
    flat_fee: Decimal = Decimal(0)

    @property
    def amount(self) -> Decimal:
        of_units = EXACT.divide(EXACT.multiply(Decimal(self.quantity), self.unit_price), Decimal(self.per))
        return EXACT.add(of_units, self.flat_fee)


def parts_of(charge: MeteredCharge, quantity: int) -> Sequence[Part]:
    """How a quantity is paid, beyond what is included; empty when nothing is to be paid."""
    beyond = quantity - charge.included
    if beyond <= 0:
        return ()
    match charge:
        case PerUnitCharge():
            return (Part(beyond, charge.unit_price, charge.per),)
        case GraduatedCharge():
            return tuple(
                Part(min(beyond, end) - begin, tier.unit_price, charge.per, tier.flat_fee)
                for begin, end, tier in _spans(charge, beyond)
            )
        case VolumeCharge():
            *_, (_, _, tier) = _spans(charge, beyond)
            return (Part(beyond, tier.unit_price, charge.per, tier.flat_fee),)
        case PackageCharge():
            return (Part(-(-beyond // charge.size), charge.price, 1),)


def amount_of(parts: Sequence[Part]) -> Decimal:
    """The exact sum."""
    return total(part.amount for part in parts)


def _spans(charge: GraduatedCharge | VolumeCharge, quantity: int) -> Iterator[tuple[int, int, TierPrice]]:
    """The tiers that have one unit of the quantity at least, each with the count before it and at its end."""
    begin = 0
    for tier in sorted(charge.tiers, key=attrgetter("up_to")):
        if begin < tier.up_to and begin < quantity:
            yield begin, tier.up_to, tier
            begin = tier.up_to
    if begin < quantity:
        yield begin, quantity, charge.beyond
