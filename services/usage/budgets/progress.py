"""Which budgets are in force, and how far the others are counted."""

from typing import Literal

from schemas.base import Model, Name, TenantId

BudgetStanding = Literal["in_force", "counting"]


class BudgetProgress(Model):
    """A budget that holds now. It caps nothing new until all that was spent in its period has been counted."""

    budget: Name
    budget_tenant_id: TenantId | None = None
    budget_version: str
    standing: BudgetStanding
    counted: int | None = None
    """Records that were counted of those there are, while it is being counted; none while it waits for another one."""
    records: int | None = None
