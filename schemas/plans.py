"""Topic `plans`: what a customer pays by the month, and which tenant has which plan from when on.

Every version is kept, as with prices. A plan and a subscription hold from the beginning of a month on, until a later
one of the same name or tenant; of two from one month the one that was applied last counts: so a mistake is put right.

Slips that a schema cannot tell, such as two charges of one name, are refused of what is applied. What is on the topic
is read all the same: an earlier release may have taken it.
"""

from collections.abc import Callable, Iterable
from contextvars import ContextVar
from decimal import Decimal
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, StringConstraints, WrapValidator

from schemas.base import Model, Name, Spec
from schemas.prices import Markup, Rate

T = TypeVar("T")

_on_the_topic: ContextVar[bool] = ContextVar("_on_the_topic", default=False)

Period = Annotated[str, StringConstraints(pattern=r"^(19[7-9][0-9]|20[0-9]{2}|210[0-5])-(0[1-9]|1[0-2])$")]
"""A month in UTC, `2026-01`: what one invoice is for."""

Currency = Annotated[str, StringConstraints(pattern="^[A-Z]{3}$")]

_CODES = """
AED AFN ALL AMD ANG AOA ARS AUD AWG AZN BAM BBD BDT BGN BHD BIF BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF CHE
CHF CHW CLF CLP CNY COP COU CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD
HKD HNL HTG HUF IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD MAD
MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MXV MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR
RON RSD RUB RWF SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP TRY TTD TWD TZS UAH
UGX USD USN UYI UYU UYW UZS VED VES VND VUV WST XAF XCD XCG XOF XPF YER ZAR ZMW ZWG
"""
CURRENCIES = frozenset(_CODES.split())
"""Those that money is in (ISO 4217, list one), and what was replaced in 2025 and 2026, for months before."""

Description = Annotated[str, StringConstraints(max_length=200)]

Units = Annotated[int, Field(ge=0, le=10**15)]

Meter = Literal[
    "events",
    "tokens",
    "input_tokens",
    "uncached_input_tokens",
    "cached_input_tokens",
    "output_tokens",
    "reasoning_tokens",
    "images",
]
"""What is counted of billable usage. `tokens` are input and output; cached ones are part of the input, reasoning part
of the output."""

PriceOf = Literal[1, 1000, 1_000_000]
"""How many units a unit price is for."""

MOST_CHARGES = 100
MOST_TIERS = 20


def known_currency(code: str) -> str:
    """The code. Raises ValueError."""
    if code not in CURRENCIES:
        raise ValueError(f"expected a currency of ISO 4217, such as EUR, got {code}")
    return code


def _read_as_it_is(value: Any, read: Callable[[Any], Any]) -> Any:
    token = _on_the_topic.set(True)
    try:
        return read(value)
    finally:
        _on_the_topic.reset(token)


def _unless_read(check: Callable[[T], T]) -> AfterValidator:
    """A check of what is applied."""

    def checked(value: T) -> T:
        return value if _on_the_topic.get() else check(value)

    return AfterValidator(checked)


def _once(values: Iterable[object], what: str) -> None:
    seen = set[object]()
    for value in values:
        if value in seen:
            raise ValueError(f"expected each {what} once, got {value} twice")
        seen.add(value)


class UsageScope(Model):
    """Which usage; what is left out stands for any."""

    kind: Literal["completion", "embedding", "image", "tool"] | None = None
    provider: str | None = None
    model: str | None = None
    tool: Name | None = None


class _Charge(Model):
    name: Name
    """What was invoiced under a name is compared later with what the charges of the name come to then."""
    description: Description = ""


class _OfUsage(_Charge):
    usage: UsageScope = UsageScope()


class _Metered(_OfUsage):
    meter: Meter
    included: Units = 0
    """Units that cost nothing; what follows is about those beyond."""


class FlatCharge(_Charge):
    """An amount each month, whatever is used."""

    scheme: Literal["flat"]
    amount: Rate


class PerUnitCharge(_Metered):
    """Every unit at the same price."""

    scheme: Literal["per_unit"]
    unit_price: Rate
    per: PriceOf = 1


class TierPrice(Model):
    """`flat_fee` is due as soon as one unit is in the tier."""

    unit_price: Rate = Decimal(0)
    flat_fee: Rate = Decimal(0)


class UnitTier(TierPrice):
    """Units up to and with `up_to`, from where the tier below ends."""

    up_to: Units


def _distinct_tiers(tiers: list[UnitTier]) -> list[UnitTier]:
    if any(tier.up_to == 0 for tier in tiers):
        raise ValueError("expected up_to above 0: no unit is in a tier up to 0")
    _once((tier.up_to for tier in tiers), "up_to")
    return tiers


class _Tiered(_Metered):
    per: PriceOf = 1
    tiers: Annotated[list[UnitTier], _unless_read(_distinct_tiers)] = Field(max_length=MOST_TIERS)
    beyond: TierPrice
    """Of units beyond the highest tier."""


class GraduatedCharge(_Tiered):
    """Each unit at the price of the tier that it is in."""

    scheme: Literal["graduated"]


class VolumeCharge(_Tiered):
    """All units at the price of the tier that the last one is in."""

    scheme: Literal["volume"]


class PackageCharge(_Metered):
    """Packages of so many units; one that has begun is paid whole."""

    scheme: Literal["package"]
    size: Annotated[int, Field(ge=1, le=10**15)]
    price: Rate


class PassThroughCharge(_OfUsage):
    """What the usage comes to by the prices that hold for the tenant, beyond what is included, and a markup on that."""

    scheme: Literal["pass_through"]
    included: Rate = Decimal(0)
    markup: Markup = Decimal(0)


Charge = Annotated[
    FlatCharge | PerUnitCharge | GraduatedCharge | VolumeCharge | PackageCharge | PassThroughCharge,
    Field(discriminator="scheme"),
]


def _distinct_charges(charges: list[Charge]) -> list[Charge]:
    _once((charge.name for charge in charges), "name")
    return charges


class PlanSpec(Spec):
    """Charges of a month, in one currency. They do not exclude each other: usage that two of them are about is paid
    twice."""

    type: Literal["plan.applied"] = "plan.applied"
    description: Description = ""
    currency: Annotated[Currency, _unless_read(known_currency)] = "USD"
    from_period: Period
    charges: Annotated[list[Charge], _unless_read(_distinct_charges)] = Field(max_length=MOST_CHARGES)
    minimum: Rate = Decimal(0)
    """What all charges of a month come to at least."""


class SubscriptionSpec(Spec):
    """The plan of a tenant; without `tenant_id` that of every tenant which has none of its own."""

    type: Literal["subscription.applied"] = "subscription.applied"
    plan: Name | None = None
    """None: it has no plan any more, and there is nothing to invoice."""
    from_period: Period


PlanEvent = Annotated[PlanSpec | SubscriptionSpec, Field(discriminator="type"), WrapValidator(_read_as_it_is)]
EXAMPLES = [
    PlanSpec.model_validate(
        {
            "name": "pro",
            "description": "For teams",
            "currency": "EUR",
            "from_period": "2026-01",
            "minimum": "50",
            "charges": [
                {"name": "base", "scheme": "flat", "amount": "29"},
                {
                    "name": "tokens",
                    "scheme": "graduated",
                    "usage": {"kind": "completion"},
                    "meter": "tokens",
                    "included": 1_000_000,
                    "per": 1_000_000,
                    "tiers": [{"up_to": 10_000_000, "unit_price": "2"}],
                    "beyond": {"unit_price": "1.5"},
                },
            ],
        }
    ),
    SubscriptionSpec(name="acme", tenant_id="acme", plan="pro", from_period="2026-01"),
]
