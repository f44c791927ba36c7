"""What the analytics of usage answer over HTTP."""

from typing import Literal

from schemas.base import Model, Money

UsageDimension = Literal[
    "tenant",
    "user",
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

UsageUnit = Literal["thread", "user"]
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
    latency_ms_avg: float | None = None


class UsagePerUnit(Model):
    """What one thread or user of a group comes to: its cost and price by how many there are, to 12 decimals."""

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
    per: dict[UsageUnit, UsagePerUnit] = {}


class UsageRow(UsageFigures):
    """One group. `group` has the dimensions that were asked for, in that order.

    `previous` is the same group in the period before, where a comparison was asked for.
    """

    group: dict[str, str | None]
    previous: UsageFigures | None = None
