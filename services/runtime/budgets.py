"""What the topic `budgets` says: budgets, where each account of them stands, and what was warned of."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from schemas.budgets import Account, BudgetSpec, BudgetState, BudgetWarned
from schemas.topics import BUDGETS
from services.runtime.kafka import KafkaClients
from services.runtime.registry import Registry
from services.runtime.settings import RuntimeSettings

BudgetId = tuple[str | None, str]
"""Tenant and name of a definition."""


class Budgets:
    """The budgets that hold at a moment. Never changes: when one is applied, another one of these takes its place."""

    def __init__(self, specs: Iterable[BudgetSpec] = ()) -> None:
        self._specs = {(spec.tenant_id, spec.name): spec for spec in specs}
        self._of_tenant: dict[str, tuple[BudgetSpec, ...]] = {}

    def of(self, tenant_id: str) -> Sequence[BudgetSpec]:
        """Those that are about a tenant, by name: its own before everybody's of the same name."""
        found = self._of_tenant.get(tenant_id)
        if found is None:
            names = sorted({name for owner, name in self._specs if owner in (None, tenant_id)})
            found = tuple(self._specs.get((tenant_id, name)) or self._specs[None, name] for name in names)
            self._of_tenant[tenant_id] = found
        return found

    def all(self) -> Sequence[BudgetSpec]:
        """Every budget, by name and tenant."""
        return sorted(self._specs.values(), key=lambda spec: (spec.name, spec.tenant_id or ""))

    def __bool__(self) -> bool:
        return bool(self._specs)


class BudgetBoard(Registry[BudgetSpec]):
    """Follows the topic. Nothing is stored: a start reads it from its beginning."""

    def __init__(self, clients: KafkaClients, settings: RuntimeSettings) -> None:
        super().__init__(clients, settings, BUDGETS)
        self._budgets = Budgets()
        self._states: dict[str, BudgetState] = {}
        self._warnings: dict[str, BudgetWarned] = {}
        self._spent: defaultdict[BudgetId, Decimal] = defaultdict(Decimal)
        self._events: defaultdict[BudgetId, int] = defaultdict(int)

    @property
    def budgets(self) -> Budgets:
        """The same object for as long as no budget is applied."""
        return self._budgets

    @property
    def states(self) -> Mapping[str, BudgetState]:
        """Where accounts stand, by the key of the record."""
        return self._states

    @property
    def warnings(self) -> Mapping[str, BudgetWarned]:
        """What was warned of, by the key of the record."""
        return self._warnings

    def state(self, spec: BudgetSpec, account: Account) -> BudgetState | None:
        """Where an account stands; None when it has spent nothing, or the budget has added up something else so far."""
        state = self._states.get(state_key(spec.tenant_id, spec.name, account))
        return state if state is not None and state.is_of(spec) else None

    def accounts(self, name: str, *, tenant_id: str | None = None) -> Sequence[BudgetState]:
        """Where the accounts of budgets of a name stand, of one tenant or of all; most spent first."""
        found = [
            state
            for state in self._states.values()
            if state.budget == name
            and tenant_id in (None, state.tenant_id)
            and any(spec.name == name and state.is_of(spec) for spec in self._budgets.of(state.tenant_id))
        ]
        return sorted(found, key=lambda state: (-state.spent, state.tenant_id, state.period, state.who or ""))

    def mean(self, spec: BudgetSpec) -> Decimal:
        """What one unit of usage has come to on average, over all accounts of the budget; 0 when nothing is known."""
        budget = spec.tenant_id, spec.name
        return self._spent[budget] / self._events[budget] if self._events[budget] else Decimal(0)

    def _remove(self, key: bytes) -> None:
        name = key.decode(errors="replace")
        self._warnings.pop(name, None)
        self._sum(self._states.pop(name, None), -1)
        if key in self._records:
            super()._remove(key)
            self._budgets = Budgets(self.current())

    def _put(self, key: bytes, event: Any) -> None:
        name = key.decode(errors="replace")
        match event:
            case BudgetState():
                self._sum(self._states.get(name), -1)
                self._states[name] = event
                self._sum(event, 1)
            case BudgetWarned():
                self._warnings[name] = event
            case _:
                super()._put(key, event)
                self._budgets = Budgets(self.current())

    def _sum(self, state: BudgetState | None, sign: int) -> None:
        if state is not None:
            budget = state.budget_tenant_id, state.budget
            self._spent[budget] += sign * state.spent
            self._events[budget] += sign * state.events


def state_key(budget_tenant_id: str | None, budget: str, account: Account) -> str:
    """The record key of an account's state. `who` is last, since it alone may have a slash in it."""
    return "/".join(("state", budget_tenant_id or "", budget, account.tenant_id, account.period, account.who or ""))
