"""What periods that are invoiced already come to now, less what was invoiced for them. Pure.

One mechanism for usage that came late, for usage that is rated otherwise since a price or a plan was applied for the
past, and for usage that was unpriced: whatever the reason, what is not invoiced yet is the difference.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal

from schemas.invoices import Line
from schemas.plans import Period
from services.runtime.pricing.rate import EXACT, total

Month = tuple[Period, str]
"""A period in a currency."""


@dataclass(frozen=True, slots=True)
class Item:
    """What amounts are compared by: a charge of a period, in a currency. No charge: the minimum of the plan."""

    period: Period
    charge: str | None
    currency: str

    @property
    def month(self) -> Month:
        return self.period, self.currency

    @property
    def order(self) -> tuple[str, bool, str, str]:
        return self.period, self.charge is None, self.charge or "", self.currency


@dataclass(frozen=True, slots=True)
class Difference:
    """`now` is what the item comes to: none where nothing is charged under its name any more."""

    item: Item
    amount: Decimal
    invoiced: Decimal
    now: Line | None = None

    @property
    def unpriced_events(self) -> int:
        """Events of the item that nobody knows the price of now: the difference may be theirs."""
        return self.now.unpriced_events if self.now else 0

    def line(self, amount: Decimal) -> Line:
        """The adjustment, of all of it or of a part."""
        now = self.now
        return Line(
            kind="adjustment",
            period=self.item.period,
            charge=self.item.charge,
            description=now.description if now else "",
            unit=now.unit if now else None,
            quantity=now.quantity if now else None,
            exact_amount=amount,
            amount=amount,
            unpriced_events=self.unpriced_events,
            invoiced=self.invoiced,
        )


@dataclass(frozen=True, slots=True)
class RatedPeriod:
    """What a period comes to now; no lines where the tenant has no plan in it any more."""

    period: Period
    currency: str = ""
    lines: Sequence[Line] = ()


@dataclass(slots=True)
class Fitted:
    """Adjustments that fit, and what is left of them."""

    lines: list[Line] = field(default_factory=list[Line])
    left: list[tuple[Difference, Decimal]] = field(default_factory=list[tuple[Difference, Decimal]])


def differences(rated: Iterable[RatedPeriod], invoiced: Mapping[Item, Decimal]) -> list[Difference]:
    """All that are not zero, by period and charge. Items of other periods than those that were rated are left alone."""
    now: dict[Item, Line] = {}
    periods: set[Period] = set()
    for each in rated:
        periods.add(each.period)
        for line in each.lines:
            item = Item(each.period, line.charge, each.currency)
            now[item] = line if item not in now else _together(now[item], line)
    items = {*now, *(item for item in invoiced if item.period in periods)}
    found = [_difference(item, now.get(item), invoiced.get(item, Decimal(0))) for item in items]
    return sorted((each for each in found if each.amount), key=lambda each: each.item.order)


def within(found: Iterable[Difference], rooms: Mapping[Month, Decimal]) -> list[Difference]:
    """What of the differences of each month can be made, in their order.

    Args:
        rooms: by how much what was billed for a month may be lowered; not at all where it has none.
    """
    by_month: defaultdict[Month, list[Difference]] = defaultdict(list)
    for each in found:
        by_month[each.item.month].append(each)
    possible = [
        replace(each, amount=amount)
        for month, of_month in by_month.items()
        for each, amount in zip(of_month, _taken(of_month, rooms.get(month, Decimal(0))), strict=True)
        if amount
    ]
    return sorted(possible, key=lambda each: each.item.order)


def fit(found: Sequence[Difference], *, room: Decimal) -> Fitted:
    """Takes what raises the sum, then what lowers it, so far as there is room, in order; the last one in part.

    Args:
        room: by how much the sum may be lowered beside what is raised; not below zero.
    """
    result = Fitted()
    for each, taken in zip(found, _taken(found, room), strict=True):
        if taken:
            result.lines.append(each.line(taken))
        if taken != each.amount:
            result.left.append((each, EXACT.subtract(each.amount, taken)))
    return result


def _taken(found: Sequence[Difference], room: Decimal) -> list[Decimal]:
    """How much of each."""
    room = total([room, *(each.amount for each in found if each.amount > 0)])
    amounts: list[Decimal] = []
    for each in found:
        amount = max(each.amount, room.copy_negate())
        amounts.append(amount)
        if amount < 0:
            room = EXACT.add(room, amount)
    return amounts


def _difference(item: Item, now: Line | None, invoiced: Decimal) -> Difference:
    comes_to = now.amount if now else Decimal(0)
    return Difference(item, EXACT.subtract(comes_to, invoiced), invoiced, now)


def _together(one: Line, other: Line) -> Line:
    """Charges of one name are compared as one."""
    return one.model_copy(
        update={
            "amount": EXACT.add(one.amount, other.amount),
            "unpriced_events": one.unpriced_events + other.unpriced_events,
            "quantity": None,
        }
    )
