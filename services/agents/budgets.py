"""Whether budgets have room for a turn: by what is spent, and by what the turns that are in flight here may add."""

from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from typing import Protocol, get_args

from schemas.base import format_amount
from schemas.budgets import Account, BudgetSpec, BudgetState, By, Spender
from schemas.completions import TurnError
from services.runtime.budgets import Budgets

BYS: tuple[By, ...] = get_args(get_args(By)[0])

Scope = tuple[str, str, str | None, str | None]
"""By whom, tenant, who, and the thread where it is by thread."""


class Standing(Protocol):
    """What is known of the budgets now: their caps, and where their accounts stand."""

    @property
    def budgets(self) -> Budgets: ...

    def state(self, spec: BudgetSpec, account: Account) -> BudgetState | None: ...

    def mean(self, spec: BudgetSpec) -> Decimal: ...


class BudgetGate:
    """Judges by the caps as they are now, so that a budget that is raised is open at once.

    A turn in flight is expected to spend one more step: as much as a unit of usage of its account has on average, or of
    the whole budget where the account has none. The turns of other workers are not known here, nor is what a turn has
    spent in the moment until usage has counted it; so a cap may be overrun by about a turn a worker.
    """

    def __init__(self, standing: Standing) -> None:
        self._standing = standing
        self._open: dict[str, Spender] = {}
        self._counts: Counter[Scope] = Counter()

    def in_flight(self, key: str, spender: Spender | None) -> None:
        """A thread has this turn open from now on, or none."""
        before = self._open.get(key)
        if before == spender:
            return
        if before is not None:
            del self._open[key]
            for scope in _scopes(before):
                self._counts[scope] -= 1
                if not self._counts[scope]:
                    del self._counts[scope]
        if spender is not None:
            self._open[key] = spender
            self._counts.update(_scopes(spender))

    def closed(self, spender: Spender, at: datetime, *, opening: bool) -> TurnError | None:
        """Why nothing more may be spent; None while every budget has room.

        Args:
            opening: a turn wants to open: those in flight have a claim on the room that is left.
        """
        for spec in self._standing.budgets.of(spender.tenant_id):
            account = spec.account(spender, at)
            if spec.hard is None or account is None:
                continue
            state = self._standing.state(spec, account)
            spent = state.spent if state is not None else Decimal(0)
            turns = self._counts[_scope(spec, spender)] if opening else 0
            mean = state.spent / state.events if state is not None and state.events else self._standing.mean(spec)
            if spent + turns * mean >= spec.hard:
                return _used_up(spec, account, spent, turns)
        return None


def _scopes(spender: Spender) -> Iterator[Scope]:
    for by in BYS:
        yield by, spender.tenant_id, spender.who(by), None
        yield by, spender.tenant_id, spender.who(by), spender.thread_id


def _scope(spec: BudgetSpec, spender: Spender) -> Scope:
    return spec.by, spender.tenant_id, spender.who(spec.by), spender.thread_id if spec.per == "thread" else None


def _used_up(spec: BudgetSpec, account: Account, spent: Decimal, turns: int) -> TurnError:
    assert spec.hard is not None
    whose = f"tenant {account.tenant_id!r}" if account.who is None else f"{spec.by} {account.who!r}"
    unit = "tokens" if spec.unit == "tokens" else f"{spec.currency} of {spec.unit}"
    claimed = f", and {turns} turns in flight" if turns and spent < spec.hard else ""
    message = (
        f"budget {spec.name!r} is used up: {whose} has spent {format_amount(spent)} of {format_amount(spec.hard)} "
        f"{unit} in {account.period}{claimed}"
    )
    return TurnError(code="budget", message=message, retryable=spec.per != "thread" or bool(claimed))
