"""What a period comes to by a plan: a line a charge, and one for what is missing to the minimum. Pure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from schemas.billing import UnpricedUsage
from schemas.invoices import Line, LinePart
from schemas.plans import Charge, FlatCharge, PassThroughCharge, Period, PlanSpec
from services.usage.billing.charges import MeteredCharge, Part, amount_of, parts_of
from services.usage.billing.meters import Price, price_of, units_of
from services.usage.billing.money import rounded
from services.usage.pricing.book import PriceBook
from services.usage.pricing.cells import Cell
from services.usage.pricing.rate import EXACT, marked_up, total


@dataclass(frozen=True, slots=True)
class PeriodUsage:
    """The usage of a tenant in one month."""

    tenant_id: str
    period: Period
    cells: Sequence[Cell] = ()


def rate_period(plan: PlanSpec, used: PeriodUsage, book: PriceBook) -> list[Line]:
    """The lines of a period, in the order of the plan's charges. What they add up to is what the period comes to."""
    lines = [_line(charge, plan.currency, used, book) for charge in plan.charges]
    missing = EXACT.subtract(rounded(plan.minimum, plan.currency), total(line.amount for line in lines))
    if missing > 0:
        lines.append(Line(kind="minimum", period=used.period, exact_amount=missing, amount=missing))
    return lines


def unpriced_usage(plan: PlanSpec, used: PeriodUsage, book: PriceBook) -> list[UnpricedUsage]:
    """What has no price, charge by charge, most events first."""
    found: Counter[tuple[str, str, str | None, str | None, str | None]] = Counter()
    for charge in plan.charges:
        match charge:
            case FlatCharge():
                continue
            case PassThroughCharge():
                cells = _price(charge, plan.currency, used, book).unpriced
            case _:
                cells = units_of(used.cells, charge.usage, charge.meter).unpriced
        for cell in cells:
            found[charge.name, cell.kind, cell.provider, cell.model, cell.tool] += cell.events
    return [
        UnpricedUsage(charge=charge, kind=kind, provider=provider, model=model, tool=tool, events=events)
        for (charge, kind, provider, model, tool), events in found.most_common()
    ]


def _line(charge: Charge, currency: str, used: PeriodUsage, book: PriceBook) -> Line:
    match charge:
        case FlatCharge():
            return _with_amount(charge, used.period, charge.amount, currency)
        case PassThroughCharge():
            return _passed_through(charge, currency, used, book)
        case _:
            return _metered(charge, currency, used)


def _metered(charge: MeteredCharge, currency: str, used: PeriodUsage) -> Line:
    units = units_of(used.cells, charge.usage, charge.meter)
    parts = parts_of(charge, units.quantity)
    line = _with_amount(charge, used.period, amount_of(parts), currency)
    return line.model_copy(
        update={
            "unit": charge.meter,
            "quantity": Decimal(units.quantity),
            "included": Decimal(charge.included) if charge.included else None,
            "parts": [_line_part(part) for part in parts],
            "unpriced_events": _events(units.unpriced),
        }
    )


def _passed_through(charge: PassThroughCharge, currency: str, used: PeriodUsage, book: PriceBook) -> Line:
    price = _price(charge, currency, used, book)
    beyond = max(Decimal(0), EXACT.subtract(price.amount, charge.included))
    line = _with_amount(charge, used.period, marked_up(beyond, charge.markup), currency)
    return line.model_copy(
        update={
            "unit": currency,
            "quantity": EXACT.normalize(price.amount),
            "included": charge.included or None,
            "markup": charge.markup or None,
            "unpriced_events": _events(price.unpriced),
        }
    )


def _price(charge: PassThroughCharge, currency: str, used: PeriodUsage, book: PriceBook) -> Price:
    return price_of(used.cells, charge.usage, currency=currency, tenant_id=used.tenant_id, book=book)


def _events(cells: Sequence[Cell]) -> int:
    return sum(cell.events for cell in cells)


def _with_amount(charge: Charge, period: Period, exact: Decimal, currency: str) -> Line:
    return Line(
        kind="charge",
        period=period,
        charge=charge.name,
        description=charge.description,
        exact_amount=EXACT.normalize(exact),
        amount=rounded(exact, currency),
    )


def _line_part(part: Part) -> LinePart:
    return LinePart(
        quantity=Decimal(part.quantity),
        unit_price=part.unit_price,
        per=part.per,
        flat_fee=part.flat_fee,
        amount=EXACT.normalize(part.amount),
    )
