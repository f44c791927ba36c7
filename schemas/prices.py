"""Topic `prices`: what usage costs, and from when on. Every version is kept, so that any past sum can be explained."""

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import Field, WithJsonSchema

from schemas.base import NO_ITEMS, Model, Money, Name, Spec, Timestamp

Figure = Literal["cost", "price"]
"""What the provider takes, or what the customer pays."""

Rate = Annotated[
    Money,
    Field(ge=0, lt=10**9, decimal_places=12, allow_inf_nan=False),
    WithJsonSchema({"type": "string", "format": "decimal", "pattern": r"^[0-9]{1,9}(\.[0-9]{1,12})?$"}),
]
"""An amount of money, of which a rating loses no digit."""

Markup = Annotated[
    Money,
    Field(ge=-1, lt=1000, decimal_places=6, allow_inf_nan=False),
    WithJsonSchema(
        {"type": "string", "format": "decimal", "pattern": r"^(-1|-0(\.[0-9]{1,6})?|[0-9]{1,3}(\.[0-9]{1,6})?)$"}
    ),
]


class Rates(Model):
    """What is paid for an event. A part that it has, of tokens or images, without a rate makes it unpriced; free is 0.

    Token rates are for a million of them. Cached input is part of the input and reasoning part of the output: without a
    rate of their own they are paid as what they are part of.
    """

    input: Rate | None = None
    cached_input: Rate | None = None
    output: Rate | None = None
    reasoning: Rate | None = None
    call: Rate | None = None
    """For the event itself, whatever its tokens."""
    image: Rate | None = None
    """For each image."""


class Tier(Model):
    """Rates of an event whose input has more tokens than this: of all its tokens, not of those above alone."""

    above_input_tokens: int = Field(ge=0, le=10**12)
    rates: Rates


class Tariff(Model):
    """Rates in a currency, by the size of the input: those of the highest tier that it is above."""

    currency: str = Field(default="USD", pattern="^[A-Z]{3}$")
    rates: Rates = Rates()
    tiers: list[Tier] = NO_ITEMS


class PriceSpec(Spec, Tariff):
    """What holds for a scope from a time on, until a later version of the scope. Of two from one time, the one that
    was applied last counts: so a mistake is put right.

    The scope is what `tenant_id`, `kind`, `provider`, `model` and `tool` name; what is left out stands for any. Without
    rates it is that of the next wider scope with rates; where there is none a price is the cost, and a cost what the
    provider is known to take.
    """

    type: Literal["price.applied"] = "price.applied"
    figure: Figure = "cost"
    kind: Literal["completion", "embedding", "image", "tool"] | None = None
    provider: str | None = None
    model: str | None = None
    tool: Name | None = None
    effective_from: Timestamp
    markup: Markup = Decimal(0)
    """How much on top: 0.2 is a fifth more, -0.1 a tenth less."""

    @property
    def has_rates(self) -> bool:
        return self.rates != Rates() or bool(self.tiers)


PriceEvent = PriceSpec
EXAMPLES = [
    PriceSpec.model_validate(
        {
            "name": "gpt-4o-for-acme",
            "tenant_id": "acme",
            "figure": "price",
            "kind": "completion",
            "provider": "openai",
            "model": "gpt-4o",
            "effective_from": "2026-01-01T00:00:00Z",
            "rates": {"input": "3", "cached_input": "1.5", "output": "12"},
            "tiers": [{"above_input_tokens": 128_000, "rates": {"input": "6", "output": "18"}}],
        }
    )
]
