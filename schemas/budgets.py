"""Topic `budgets`: how much may be spent, by whom, and how much of it is spent."""

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, WithJsonSchema

from schemas.base import GROWING, Identifier, Model, Money, Name, Spec, TenantId, Timestamp

By = Annotated[Literal["tenant", "team", "user", "agent"], GROWING]
Per = Literal["day", "month", "thread"]
Unit = Literal["tokens", "cost", "price"]
"""Input and output tokens, what the provider takes, or what the customer pays."""

Level = Literal["ok", "warned", "exceeded"]

Limit = Annotated[
    Money,
    Field(ge=0, lt=10**15, decimal_places=12, allow_inf_nan=False),
    WithJsonSchema({"type": "string", "format": "decimal", "pattern": r"^[0-9]{1,15}(\.[0-9]{1,12})?$"}),
]
"""Whole tokens or an amount of money."""


class Spender(NamedTuple):
    """Whom usage, or a turn that is going to spend, is put down to."""

    tenant_id: str
    user_id: str | None
    agent: str | None
    thread_id: str | None
    team_id: str | None = None

    def who(self, by: By) -> str | None:
        """The team, user or agent; none of a tenant."""
        match by:
            case "tenant":
                return None
            case "team":
                return self.team_id
            case "user":
                return self.user_id
            case "agent":
                return self.agent


class Account(NamedTuple):
    """Whose spending is added up, and over what: one tenant, team, user or agent in one period."""

    tenant_id: str
    who: str | None
    """The team, user or agent; none where the budget is by tenant."""
    period: str
    """`2026-01-31`, `2026-01`, or the id of a thread."""


class BudgetSpec(Spec):
    """A cap on what each tenant, or each of its teams, users or agents, may spend in a period.

    `tenant_id` and `who` narrow it to one of them; a tenant's own goes before one of the same name for every tenant.
    Reaching `soft` warns, reaching `hard` stops. A cap of 0 is reached before anything is spent; without caps it only
    counts.
    """

    type: Literal["budget.applied"] = "budget.applied"
    by: By = "tenant"
    who: Identifier | None = None
    """The one team, user or agent that it is for; none means each by itself. Of no meaning by tenant."""
    per: Per = "month"
    """A day or a month of UTC, or a thread from its beginning to its end."""
    unit: Unit = "cost"
    currency: str = Field(default="USD", pattern="^[A-Z]{3}$")
    """Of a budget of money. What is paid in another currency is not added, and shows as uncounted."""
    soft: Limit | None = None
    hard: Limit | None = None

    def level(self, spent: Decimal) -> Level:
        """Where so much spending stands."""
        if self.hard is not None and spent >= self.hard:
            return "exceeded"
        return "warned" if self.soft is not None and spent >= self.soft else "ok"

    def account(self, spender: Spender, at: datetime) -> Account | None:
        """Where spending at this time is put down; None when the budget is about others.

        A new day or month is another account: it opens again without an event.
        """
        period = period_of(self.per, at, spender.thread_id)
        if period is None or self.tenant_id not in (None, spender.tenant_id):
            return None
        who = spender.who(self.by)
        if self.by != "tenant" and (who is None or self.who not in (None, who)):
            return None
        return Account(spender.tenant_id, who, period)


class _OfAccount(Model):
    """An account of a budget, and what is added up in it."""

    budget: Name
    budget_tenant_id: TenantId | None = None
    budget_version: str
    tenant_id: TenantId
    who: Identifier | None = None
    """The team, user or agent; none where the budget is by tenant."""
    period: str = Field(min_length=1, max_length=200)
    """`2026-01-31`, `2026-01`, or the id of a thread."""
    by: By
    per: Per
    unit: Unit
    currency: str
    spent: Money

    @property
    def account(self) -> Account:
        return Account(self.tenant_id, self.who, self.period)

    def is_of(self, spec: BudgetSpec) -> bool:
        """Whether the budget, as it is now, still adds up the same; its caps may be others."""
        mine = (self.budget, self.budget_tenant_id, self.by, self.per, self.unit, self.currency)
        return mine == (spec.name, spec.tenant_id, spec.by, spec.per, spec.unit, spec.currency)


class BudgetState(_OfAccount):
    """Where an account of a budget stands. The last one of an account counts; it is a sum, never an increment."""

    type: Literal["budget.state"] = "budget.state"
    soft: Limit | None = None
    hard: Limit | None = None
    events: int = Field(default=0, ge=0)
    """How many units of usage are in `spent`."""
    uncounted_events: int = Field(default=0, ge=0)
    """Usage whose amount nobody knows in this currency; it is not in `spent`, which is therefore too low."""
    level: Level


class BudgetWarned(_OfAccount):
    """A soft cap was reached. Its id is derived from budget, account and cap: written again, it is the same one."""

    type: Literal["budget.warned"] = "budget.warned"
    soft: Limit
    warned_at: Timestamp


BudgetEvent = Annotated[BudgetSpec | BudgetState | BudgetWarned, Field(discriminator="type")]


def period_of(per: Per, at: datetime, thread_id: str | None) -> str | None:
    """The period that a time and thread fall in; None for work outside of threads and a budget per thread."""
    match per:
        case "day":
            return f"{at:%Y-%m-%d}"
        case "month":
            return f"{at:%Y-%m}"
        case "thread":
            return thread_id


_ACCOUNT = {
    "budget": "acme-monthly",
    "budget_tenant_id": "acme",
    "budget_version": "0123456789ab",
    "tenant_id": "acme",
    "period": "2026-01",
    "by": "tenant",
    "per": "month",
    "unit": "cost",
    "currency": "USD",
    "soft": "80",
    "spent": "81.25",
}
EXAMPLES = [
    BudgetSpec.model_validate({"name": "each-user", "by": "user", "per": "day", "unit": "tokens", "hard": "100000"}),
    BudgetState.model_validate({**_ACCOUNT, "hard": "100", "events": 1204, "level": "warned"}),
    BudgetWarned.model_validate({**_ACCOUNT, "warned_at": "2026-01-27T09:30:00Z"}),
]
