"""What the analytics of usage answer over HTTP."""

from typing import Literal

from schemas.base import NO_FIELDS, Model, Money

UsageDimension = Literal[
    "tenant",
    "user",
    "team",
    "thread",
    "turn",
    "agent",
    "agent_version",
    "provider",
    "model",
    "tool",
    "kind",
    "outcome",
]

UsageUnit = Literal["thread", "completed_turn", "user"]
"""Of what a group can be told the cost of one."""


class UsageCounts(Model):
    """Sums over one group in one period."""

    events: int
    billable_events: int
    error_events: int = 0
    """Attempts that failed."""
    lost_events: int = 0
    """Attempts whose result was never committed, since their worker died; their counts are estimated."""
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    images: int = 0
    latency_ms_avg: float | None = None


class UsagePerUnit(Model):
    """What one thread, completed turn or user comes to: a group's cost and price by their number, to 12 decimals."""

    count: int
    cost: dict[str, Money]
    price: dict[str, Money]


class UsageFigures(UsageCounts):
    """What a group used and what that comes to, by currency: what providers take for it, and what its customer pays.

    `unpriced_events` are those whose cost, or if billable price, nobody knows: they are not in the sum of it.
    """

    cost: dict[str, Money]
    price: dict[str, Money]
    unpriced_events: int
    per: dict[UsageUnit, UsagePerUnit] = NO_FIELDS


class UsageRow(UsageFigures):
    """One group. `group` has the dimensions that were asked for, in that order.

    `previous` is the same group in the period before, where a comparison was asked for.
    """

    group: dict[str, str | None]
    previous: UsageFigures | None = None


class Quantiles(Model):
    """Values that half, nine tenths and 99 of a hundred are at or below, exact."""

    p50: int
    p90: int
    p99: int


class UsageQuality(Model):
    """How well the work of a group went. Shares are from 0 to 1, and null where there is nothing to have a share of."""

    group: dict[str, str | None]
    events: int
    error_share: float | None
    """Of the events: attempts that failed."""
    lost_share: float | None
    """Of the events: attempts whose result was never committed."""
    retry_share: float | None
    """Of the events: those that were not, or did not end with, a first attempt."""
    cached_input_share: float | None
    """Of the input tokens: those from the provider's cache."""
    tool_calls: int
    tool_success_share: float | None
    """Of the calls of tools: those that gave a result."""
    latency_ms: Quantiles | None
    """Of events with outcome `ok`."""
    first_token_ms: Quantiles | None
    """From the call of the model to the first of its answer, of answers that were streamed."""
