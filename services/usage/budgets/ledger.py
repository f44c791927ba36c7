"""What the accounts of all budgets have spent. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from schemas.budgets import Account, BudgetSpec, BudgetState, BudgetWarned, Per, Spender
from schemas.ids import EPOCH, derived_id
from schemas.usage import UsageRecorded
from services.runtime.budgets import BudgetId, Budgets
from services.usage.budgets.periods import PERS, earliest_period, first_moment
from services.usage.pricing.book import PriceBook
from services.usage.pricing.cells import Boundaries, cell_of
from services.usage.pricing.rate import EXACT
from services.usage.pricing.sums import Amounts, amounts_of


@dataclass(slots=True)
class _Sum:
    spent: Decimal = Decimal(0)
    events: int = 0
    uncounted: int = 0


class Ledger:
    """The sums are a function of the usage that was added, whatever order it came in and however often.

    A `usage_id` counts once a tenant, as it was first seen. What is of a period that is over does not count.
    """

    def __init__(self, budgets: Budgets, book: PriceBook, now: datetime) -> None:
        self._budgets = budgets
        self._book = book
        self._boundaries: dict[str, Boundaries] = {}
        self._sums: dict[tuple[BudgetId, Account], _Sum] = {}
        self._changed: set[tuple[BudgetId, Account]] = set()
        self._seen: dict[str, datetime] = {}
        self._earliest: dict[Per, str] = {}
        self.roll(now)

    def add(self, usages: Iterable[UsageRecorded]) -> None:
        for usage in usages:
            self._add(usage)

    def take_changed(self) -> Sequence[BudgetState]:
        """Where the accounts stand that have changed since the last time; at the first time all that were spent on."""
        if not self._changed:
            return []
        changed, self._changed = self._changed, set()
        specs = {(spec.tenant_id, spec.name): spec for spec in self._budgets.all()}
        return [_state(specs[budget], account, self._sums[budget, account]) for budget, account in changed]

    def takes(self, budgets: Budgets) -> bool:
        """Holds the same sums against other caps, if nothing but caps has changed. Otherwise another ledger is due."""
        if budgets is self._budgets:
            return True
        before, after = self._budgets.all(), budgets.all()
        if [_but_caps(spec) for spec in after] != [_but_caps(spec) for spec in before]:
            return False
        moved = {(spec.tenant_id, spec.name) for spec in after if spec not in before}
        self._changed |= {key for key in self._sums if key[0] in moved}
        self._budgets = budgets
        return True

    def roll(self, now: datetime) -> None:
        """Forgets what is of periods that are over by now."""
        self.now = now
        specs = self._budgets.all()
        self._earliest = {per: earliest_period(per, now) for per in PERS}
        pers: dict[BudgetId, Per] = {(spec.tenant_id, spec.name): spec.per for spec in specs}
        self._sums = {
            (budget, account): total
            for (budget, account), total in self._sums.items()
            if account.period >= self._earliest[pers[budget]]
        }
        self._changed &= self._sums.keys()
        firsts = [first for spec in specs if (first := first_moment(spec.per, now)) is not None]
        if len(firsts) == len(specs):
            self._seen = {fact: at for fact, at in self._seen.items() if at >= min(firsts)}

    def _add(self, usage: UsageRecorded) -> None:
        spender = Spender(usage.tenant_id, usage.user_id, usage.agent, usage.thread_id)
        accounts = [
            (spec, account)
            for spec in self._budgets.of(usage.tenant_id)
            if (account := spec.account(spender, usage.occurred_at)) is not None
            and account.period >= self._earliest[spec.per]
        ]
        fact = f"{usage.tenant_id}/{usage.usage_id}"
        if not accounts or fact in self._seen:
            return
        self._seen[fact] = usage.occurred_at
        amounts: Amounts | None = None
        if any(spec.unit != "tokens" for spec, _ in accounts):
            amounts = self._amounts(usage)
        for spec, account in accounts:
            key = (spec.tenant_id, spec.name), account
            total = self._sums.setdefault(key, _Sum())
            amount = _amount(spec, usage, amounts)
            if amount is None:
                total.uncounted += 1
            else:
                total.spent = EXACT.add(total.spent, amount)
                total.events += 1
            self._changed.add(key)

    def _amounts(self, usage: UsageRecorded) -> Amounts:
        tenant_id = usage.tenant_id
        boundaries = self._boundaries.get(tenant_id)
        if boundaries is None:
            boundaries = self._boundaries[tenant_id] = self._book.boundaries(tenant_id)
        return amounts_of([cell_of(usage, boundaries)], tenant_id, self._book)


def _amount(spec: BudgetSpec, usage: UsageRecorded, amounts: Amounts | None) -> Decimal | None:
    """What the usage adds, to the last digit; None when nobody knows it in the budget's currency.

    What is not billable has tokens and a cost, and no price: to a budget of prices it adds nothing.
    """
    if amounts is None or spec.unit == "tokens":
        return Decimal(usage.input_tokens + usage.output_tokens)
    if spec.unit == "price" and not usage.billable:
        return Decimal(0)
    return (amounts.cost if spec.unit == "cost" else amounts.price).get(spec.currency)


def _state(spec: BudgetSpec, account: Account, total: _Sum) -> BudgetState:
    return BudgetState(
        budget=spec.name,
        budget_tenant_id=spec.tenant_id,
        budget_version=spec.version,
        tenant_id=account.tenant_id,
        who=account.who,
        period=account.period,
        by=spec.by,
        per=spec.per,
        unit=spec.unit,
        currency=spec.currency,
        spent=total.spent,
        soft=spec.soft,
        hard=spec.hard,
        events=total.events,
        uncounted_events=total.uncounted,
        level=spec.level(total.spent),
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
