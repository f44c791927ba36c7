"""What the accounts of all budgets have spent. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from decimal import Decimal
from operator import attrgetter
from typing import Any, NamedTuple

from schemas.base import DEFAULT_TENANT
from schemas.budgets import Account, BudgetSpec, BudgetState, BudgetWarned, Per, Spender
from schemas.ids import EPOCH, derived_id
from schemas.usage import UsageRecorded
from services.runtime.budgets import BudgetId, Budgets
from services.runtime.pricing.book import PriceBook
from services.runtime.pricing.cells import Cell, cell_of
from services.runtime.pricing.rate import EXACT
from services.runtime.pricing.sums import Amounts, amounts_of
from services.usage.budgets.known import Known
from services.usage.budgets.periods import PERS, earliest_period, first_moment
from services.usage.spending import Spent

_CELL = [each.name for each in fields(Cell)]
_kind_of = attrgetter(*_CELL[: _CELL.index("events")])
_counts_of = attrgetter(*_CELL[_CELL.index("events") :])


@dataclass(slots=True)
class _Sum:
    spent: Decimal = Decimal(0)
    events: int = 0
    uncounted: int = 0
    unrated: dict[tuple[Any, ...], list[int]] = field(default_factory=dict)
    """What was added of usage that is paid for, by cells: an amount is worked out when it is asked for."""


class _Counted(NamedTuple):
    """A budget, and the prices that its usage is rated by."""

    spec: BudgetSpec
    book: PriceBook


class Ledger:
    """The sums are a function of the usage that was added, whatever order it came in and however often.

    A `usage_id` counts once a tenant, as it was first seen. What is of a period that is over does not count. A ledger
    may begin with what was spent before, and then knows the ids of that too.

    Args:
        budgets: all that hold, of which a tenant's own goes before everybody's of the same name.
        counted: those whose usage is added up here, each with the prices that it is rated by.
    """

    def __init__(self, budgets: Budgets, now: datetime, counted: Iterable[tuple[BudgetSpec, PriceBook]] = ()) -> None:
        self._budgets = budgets
        self._counted: dict[BudgetId, _Counted] = {_id_of(spec): _Counted(spec, book) for spec, book in counted}
        self._sums: dict[tuple[BudgetId, Account], _Sum] = {}
        self._changed: set[tuple[BudgetId, Account]] = set()
        self._seen: dict[str, datetime] = {}
        self._known: list[Known] = []
        self._firsts: dict[Per, datetime] = {}
        self._earliest: dict[Per, str] = {}
        self.roll(now)

    def add(self, usages: Iterable[UsageRecorded]) -> None:
        for usage in usages:
            self._add(usage)

    def begin_with(self, spent: Iterable[Spent]) -> None:
        """Adds what accounts have spent before anything that is added here. What it was made of has to be known too.

        Amounts are worked out here, which takes long for many accounts, and not when they are taken.
        """
        for by, account, cell in spent:
            for spec in self._budgets.of(account.tenant_id):
                counted = self._counted.get(_id_of(spec))
                mine = counted is not None and spec.by == by and (by == "tenant" or spec.who in (None, account.who))
                if mine and account.period >= self._earliest[spec.per]:
                    self._put(spec, account, cell)
        for budget, account in self._sums:
            self._work_out(budget, account)

    def know(self, known: Known) -> None:
        """Counts nothing any more of facts that are known."""
        self._known = [each for each in self._known if not known.covers(each)] + [known]

    def take_changed(self) -> Sequence[BudgetState]:
        """Where the accounts stand that have changed since the last time; at the first time all that were spent on."""
        changed, self._changed = self._changed, set()
        return [self._state(budget, account) for budget, account in changed]

    def texts(self) -> frozenset[str] | None:
        """What of usage that counts has at least one as a whole text in it; None when that can't be said."""
        found = {_text_of(each.spec) for each in self._counted.values()}
        return None if None in found else frozenset(text for text in found if text is not None)

    def counts(self, spec: BudgetSpec) -> bool:
        """Whether the usage of a budget is added up here."""
        return _id_of(spec) in self._counted

    def is_empty(self) -> bool:
        """Whether no budget is counted."""
        return not self._counted

    def outdated(self, book: PriceBook) -> Sequence[BudgetSpec]:
        """The budgets of money whose sums are of other prices."""
        return [each.spec for each in self._counted.values() if each.spec.unit != "tokens" and each.book is not book]

    def missing(self, book: PriceBook) -> Sequence[BudgetSpec]:
        """The budgets that have to be counted from the log: those that are not, and those of other prices."""
        outdated = {_id_of(spec) for spec in self.outdated(book)}
        return [spec for spec in self._budgets.all() if not self.counts(spec) or _id_of(spec) in outdated]

    def beside(self, now: datetime, specs: Iterable[BudgetSpec], book: PriceBook) -> "Ledger":
        """An empty ledger for other budgets, or other prices, which can be merged into this one."""
        return Ledger(self._budgets, now, [(spec, book) for spec in specs])

    def follow(self, budgets: Budgets) -> bool:
        """Holds the sums against the caps that hold now, and forgets those of budgets that add up something else.

        Whether it has forgotten any.
        """
        if budgets is self._budgets:
            return False
        before, self._budgets = self._budgets, budgets
        specs = {_id_of(spec): spec for spec in budgets.all()}
        owners, owners_before = _owners(budgets), _owners(before)
        kept = {
            budget: _Counted(specs[budget], each.book)
            for budget, each in self._counted.items()
            if budget in specs
            and _but_caps(specs[budget]) == _but_caps(each.spec)
            and (budget[0] is not None or owners_before[budget[1]] <= owners[budget[1]])
        }
        moved = {budget for budget, each in kept.items() if each.spec != self._counted[budget].spec}
        forgotten = len(kept) < len(self._counted)
        self._counted = kept
        self._sums = {
            (budget, account): total
            for (budget, account), total in self._sums.items()
            if budget in kept and (budget[0] is not None or account.tenant_id not in owners[budget[1]])
        }
        self._changed |= {key for key in self._sums if key[0] in moved}
        self._changed &= self._sums.keys()
        return forgotten

    def merge(self, other: "Ledger") -> None:
        """Takes over the budgets of another ledger, to which the same usage was added, and follows the same budgets.

        The other one may have begun with what was spent before, and this one has come as far by then: so what that one
        knows, this one has counted too.
        """
        self._sums = {key: total for key, total in self._sums.items() if key[0] not in other._counted} | other._sums
        self._changed |= other._sums.keys()
        self._changed &= self._sums.keys()
        self._counted |= other._counted
        self._seen |= other._seen
        for each in other._known:
            self.know(each)
        self.roll(self.now)

    def roll(self, now: datetime) -> None:
        """Forgets what is of periods that are over by now."""
        self.now = now
        self._earliest = {per: earliest_period(per, now) for per in PERS}
        self._sums = {
            (budget, account): total
            for (budget, account), total in self._sums.items()
            if account.period >= self._earliest[self._counted[budget].spec.per]
        }
        self._changed &= self._sums.keys()
        self._firsts = {per: first_moment(per, now) or EPOCH for per in PERS}
        pers: set[Per] = {each.spec.per for each in self._counted.values()}
        if pers and "thread" not in pers:
            first = min(self._firsts[per] for per in pers)
            self._seen = {fact: at for fact, at in self._seen.items() if at >= first}
        timed = [self._firsts[per] for per in pers if per != "thread"]
        self._known = [each for each in self._known if timed and each.last >= min(timed)]

    def _add(self, usage: UsageRecorded) -> None:
        counted = [
            each
            for spec in self._budgets.of(usage.tenant_id)
            if (each := self._counted.get(_id_of(spec))) is not None and usage.occurred_at >= self._firsts[spec.per]
        ]
        fact = f"{usage.tenant_id}/{usage.usage_id}"
        if not counted or fact in self._seen or any(each.has(fact) for each in self._known):
            return
        self._seen[fact] = usage.occurred_at
        spender = Spender(usage.tenant_id, usage.user_id, usage.agent, usage.thread_id, usage.team_id)
        cells: dict[int, Cell] = {}
        for spec, book in counted:
            account = spec.account(spender, usage.occurred_at)
            if account is None:
                continue
            if spec.unit == "tokens":
                total = self._sum(_id_of(spec), account)
                total.spent = EXACT.add(total.spent, usage.input_tokens + usage.output_tokens)
                total.events += 1
                continue
            cell = cells.get(id(book))
            if cell is None:
                cell = cells[id(book)] = cell_of(usage, book.boundaries(usage.tenant_id))
            self._put(spec, account, cell)

    def _put(self, spec: BudgetSpec, account: Account, cell: Cell) -> None:
        """Adds events of one cell."""
        total = self._sum(_id_of(spec), account)
        if spec.unit == "tokens":
            total.spent = EXACT.add(total.spent, cell.input_tokens + cell.output_tokens)
            total.events += cell.events
            return
        kind, counts = _kind_of(cell), _counts_of(cell)
        known = total.unrated.get(kind)
        total.unrated[kind] = [*counts] if known is None else [a + b for a, b in zip(known, counts, strict=True)]

    def _sum(self, budget: BudgetId, account: Account) -> _Sum:
        """The sum of an account, which is going to change."""
        key = budget, account
        self._changed.add(key)
        total = self._sums.get(key)
        if total is None:
            total = self._sums[key] = _Sum()
        return total

    def _work_out(self, budget: BudgetId, account: Account) -> _Sum:
        """The sum of an account, with the amounts of all that was added."""
        (spec, book), total = self._counted[budget], self._sums[budget, account]
        for kind, counts in total.unrated.items():
            cell = Cell(*kind, *counts)
            amount = _amount(spec, cell, amounts_of([cell], account.tenant_id, book))
            if amount is None:
                total.uncounted += cell.events
            else:
                total.spent = EXACT.normalize(EXACT.add(total.spent, amount))
                total.events += cell.events
        total.unrated = {}
        return total

    def _state(self, budget: BudgetId, account: Account) -> BudgetState:
        spec, total = self._counted[budget].spec, self._work_out(budget, account)
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


def _id_of(spec: BudgetSpec) -> BudgetId:
    return spec.tenant_id, spec.name


def _text_of(spec: BudgetSpec) -> str | None:
    """A text that all usage of a budget has; usage without a tenant is that of the default one."""
    if spec.by != "tenant" and spec.who is not None:
        return spec.who
    return None if spec.tenant_id == DEFAULT_TENANT else spec.tenant_id


def _owners(budgets: Budgets) -> defaultdict[str, set[str]]:
    """The tenants that have budgets of their own, by the name of the budget."""
    owners: defaultdict[str, set[str]] = defaultdict(set)
    for spec in budgets.all():
        if spec.tenant_id is not None:
            owners[spec.name].add(spec.tenant_id)
    return owners


def _amount(spec: BudgetSpec, cell: Cell, amounts: Amounts) -> Decimal | None:
    """What a cell adds to a budget of money, to the last digit; None when nobody knows it in the budget's currency.

    What is not billable has a cost and no price: to a budget of prices it adds nothing.
    """
    if spec.unit == "price" and not cell.billable:
        return Decimal(0)
    return (amounts.cost if spec.unit == "cost" else amounts.price).get(spec.currency)


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
