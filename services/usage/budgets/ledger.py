"""The running sums of one budget. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal

from schemas.budgets import Account, BudgetSpec, BudgetState, BudgetWarned
from schemas.ids import EPOCH, derived_id
from schemas.usage import UsageRecorded
from services.usage.budgets.accounts import account_of, amount_of
from services.usage.pricing.book import PriceBook
from services.usage.pricing.rate import EXACT


@dataclass(slots=True)
class _Sum:
    spent: Decimal = Decimal(0)
    uncounted: int = 0
    seen: set[str] = field(default_factory=set[str])


class Ledger:
    """What each account of a budget has spent, whatever order usage comes in and however often.

    A `usage_id` counts once a tenant, as it was first seen. The caps may change while it runs; what is added up may
    not: a budget of other accounts, or another unit, needs a ledger of its own.
    """

    def __init__(self, spec: BudgetSpec, book: PriceBook) -> None:
        self._spec = spec
        self._book = book
        self._sums: dict[Account, _Sum] = {}

    def add(self, usage: UsageRecorded) -> Account | None:
        """The account that has changed, or None."""
        account = account_of(self._spec, usage)
        if account is None:
            return None
        total = self._sums.setdefault(account, _Sum())
        if usage.usage_id in total.seen:
            return None
        total.seen.add(usage.usage_id)
        amount = amount_of(self._spec, usage, self._book)
        if amount is None:
            total.uncounted += 1
        else:
            total.spent = EXACT.add(total.spent, amount)
        return account

    def change_caps(self, spec: BudgetSpec) -> None:
        """Holds the same sums against other caps: a budget that is raised is open at once.

        Raises ValueError when more than the caps has changed.
        """
        if _but_caps(spec) != _but_caps(self._spec):
            raise ValueError(f"budget {spec.name} adds up something else than before: it needs a ledger of its own")
        self._spec = spec

    def forget(self, account: Account) -> None:
        """Drops an account whose period is over for good."""
        self._sums.pop(account, None)

    def state(self, account: Account, positions: Sequence[int]) -> BudgetState:
        """Where the account stands as of these positions; one that nothing was spent on stands at 0."""
        spec, total = self._spec, self._sums.get(account, _Sum())
        return BudgetState(
            **account.model_dump(),
            budget=spec.name,
            budget_tenant_id=spec.tenant_id,
            budget_version=spec.version,
            per=spec.per,
            by=spec.by,
            unit=spec.unit,
            currency=spec.currency,
            soft=spec.soft,
            hard=spec.hard,
            spent=total.spent,
            uncounted_events=total.uncounted,
            level=spec.level(total.spent),
            positions=list(positions),
        )


def warning_of(state: BudgetState, at: datetime) -> BudgetWarned | None:
    """The warning that is due in this state: once the soft cap is reached, though the hard one may be too."""
    if state.soft is None or state.spent < state.soft:
        return None
    shared = {name: getattr(state, name) for name in BudgetWarned.model_fields if name in BudgetState.model_fields}
    return BudgetWarned.model_validate({**shared, "type": "budget.warned", "warned_at": at})


def warning_id(warned: BudgetWarned) -> str:
    """The same for one crossing of one cap by one account: written again after a crash, it is still one warning."""
    account = (warned.tenant_id, warned.who or "", warned.period)
    return derived_id(
        "budget.warned", warned.budget_tenant_id or "", warned.budget, *account, warned.soft.normalize(), at=EPOCH
    )


def _but_caps(spec: BudgetSpec) -> BudgetSpec:
    return spec.model_copy(update={"soft": None, "hard": None})
