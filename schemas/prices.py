"""Prices of models and tools, each with the time from which it holds."""

from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from schemas.base import Identifier, Model, Name, TenantId, Timestamp

Price = Annotated[Decimal, Field(ge=0, lt=10**9, decimal_places=12, allow_inf_nan=False)]
"""An amount of money, as a JSON string: no float is exact."""


class Rates(Model):
    """What is paid for an event. A part that has tokens and no rate makes the event unpriced; free is a rate of 0.

    Token rates are for a million of them. Cached input is part of the input and reasoning part of the output: without a
    rate of their own they are paid as what they are part of.
    """

    input: Price | None = None
    cached_input: Price | None = None
    output: Price | None = None
    reasoning: Price | None = None
    call: Price | None = None
    """For the event itself, whatever its tokens."""


class Tier(Model):
    """Rates of an event whose input has more tokens than this: of all its tokens, not of those above alone."""

    above_input_tokens: int = Field(ge=0)
    rates: Rates


class PriceVersion(Model):
    """What holds from a time on, until a later version of the same scope.

    The scope is what `tenant_id`, `kind`, `provider`, `model` and `tool` name; what is left out stands for any.
    """

    price_id: Identifier
    kind: Literal["completion", "embedding", "tool"]
    tenant_id: TenantId | None = None
    provider: str | None = None
    model: str | None = None
    tool: Name | None = None
    currency: str = Field(default="USD", pattern="^[A-Z]{3}$")
    effective_from: Timestamp
    rates: Rates
    tiers: list[Tier] = []

    @model_validator(mode="after")
    def _tiers_rise(self) -> Self:
        bounds = [tier.above_input_tokens for tier in self.tiers]
        if bounds != sorted(set(bounds)):
            raise ValueError(f"expected tiers by rising above_input_tokens, got {bounds}")
        return self
