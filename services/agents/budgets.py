"""Whether budgets have room for a turn: by what is spent, and by what the turns that are in flight here may add."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from math import ceil
from typing import NamedTuple, Protocol, get_args

from schemas.base import format_amount
from schemas.budgets import Account, BudgetSpec, BudgetState, By, Spender
from schemas.completions import TurnError
from schemas.usage import UsageRecorded
from services.runtime.budgets import Budgets
from services.runtime.pricing.book import PriceBook
from services.runtime.pricing.sums import amounts_of_one

BYS: tuple[By, ...] = get_args(get_args(By)[0])

Scope = tuple[str, str, str | None, str | None]
"""By whom, tenant, who, and the thread where it is by thread."""


REMEMBERED_AGENTS = 1_000
"""Agents whose last calls are remembered, those that were asked last."""

SMOOTHING = Decimal(1) / 8
"""Weight of the latest call in the mean of an agent."""


class Claim(NamedTuple):
    """A turn in flight: who spends, what its agent asks, and the tokens that its next call is sent at least."""

    spender: Spender
    provider: str
    model: str
    input_tokens: int


class _Asked(NamedTuple):
    agent: str | None
    provider: str
    model: str


@dataclass(slots=True)
class _Turns:
    """Turns in flight that ask the same."""

    count: int = 0
    input_tokens: int = 0


@dataclass(frozen=True, slots=True)
class _Mean:
    """What the last calls of an agent have come to."""

    provider: str | None
    model: str | None
    input_tokens: Decimal
    output_tokens: Decimal


class Standing(Protocol):
    """What is known of the budgets now: their caps, and where their accounts stand."""

    @property
    def budgets(self) -> Budgets: ...

    def state(self, spec: BudgetSpec, account: Account) -> BudgetState | None: ...

    def mean(self, spec: BudgetSpec) -> Decimal: ...


class BudgetGate:
    """Judges by the caps as they are now, so that a budget that is raised is open at once.

    A turn in flight is expected to spend one more step: as much as a unit of usage of its account has on average, or of
    the whole budget where the account has none. Where neither has any it is what the calls of its agent have come to
    lately, and what it is going to send at least. The turns of other workers are not known here, nor is what a turn has
    spent in the moment until usage has counted it; so a cap may be overrun by about a turn a worker.
    """

    def __init__(self, standing: Standing, prices: Callable[[], PriceBook]) -> None:
        self._standing = standing
        self._prices = prices
        self._open: dict[str, Claim] = {}
        self._turns: dict[Scope, dict[_Asked, _Turns]] = {}
        self._means: OrderedDict[tuple[str, str | None], _Mean] = OrderedDict()

    def in_flight(self, key: str, claim: Claim | None) -> None:
        """A thread has this turn open from now on, or none."""
        before = self._open.get(key)
        if before == claim:
            return
        if before is not None:
            del self._open[key]
            self._add(before, -1)
        if claim is not None:
            self._open[key] = claim
            self._add(claim, 1)

    def spent(self, usage: UsageRecorded) -> None:
        """A call has ended well: what the next ones of its agent may come to."""
        key = usage.tenant_id, usage.agent
        before = self._means.get(key)
        counts = Decimal(usage.input_tokens), Decimal(usage.output_tokens)
        if before is not None:
            old = before.input_tokens, before.output_tokens
            counts = tuple(was + (now - was) * SMOOTHING for was, now in zip(old, counts, strict=True))
        self._means[key] = _Mean(usage.provider, usage.model, *counts)
        self._means.move_to_end(key)
        if len(self._means) > REMEMBERED_AGENTS:
            self._means.popitem(last=False)

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
            asked = self._turns.get(_scope(spec, spender), {}) if opening else {}
            turns = sum(each.count for each in asked.values())
            claimed = self._claimed(spec, spender.tenant_id, state, asked, at) if turns else 0
            if spent + claimed >= spec.hard:
                return _used_up(spec, account, spent, turns)
        return None

    def _claimed(
        self,
        spec: BudgetSpec,
        tenant_id: str,
        state: BudgetState | None,
        asked: dict[_Asked, _Turns],
        at: datetime,
    ) -> Decimal:
        """What the turns in flight of an account are expected to spend."""
        mean = state.spent / state.events if state is not None and state.events else Decimal(0)
        if mean := mean or self._standing.mean(spec):
            return mean * sum(each.count for each in asked.values())
        return sum((self._expected(spec, tenant_id, of, turns, at) for of, turns in asked.items()), Decimal(0))

    def _expected(self, spec: BudgetSpec, tenant_id: str, of: _Asked, turns: _Turns, at: datetime) -> Decimal:
        """What turns of one agent are expected to spend, by the last calls of the agent; their own input at least."""
        own = Decimal(turns.input_tokens) / turns.count
        mean = self._means.get((tenant_id, of.agent)) or _Mean(of.provider, of.model, own, Decimal(0))
        call = UsageRecorded(
            usage_id="expected",
            tenant_id=tenant_id,
            agent=of.agent,
            kind="completion",
            provider=mean.provider,
            model=mean.model,
            input_tokens=ceil(max(own, mean.input_tokens)),
            output_tokens=ceil(mean.output_tokens),
            occurred_at=at,
        )
        if spec.unit == "tokens":
            return Decimal(turns.count * (call.input_tokens + call.output_tokens))
        amounts = amounts_of_one(call, self._prices())
        each = (amounts.cost if spec.unit == "cost" else amounts.price).get(spec.currency, Decimal(0))
        return turns.count * each

    def _add(self, claim: Claim, sign: int) -> None:
        asked = _Asked(claim.spender.agent, claim.provider, claim.model)
        for scope in _scopes(claim.spender):
            of_scope = self._turns.setdefault(scope, {})
            turns = of_scope.setdefault(asked, _Turns())
            turns.count += sign
            turns.input_tokens += sign * claim.input_tokens
            if not turns.count:
                del of_scope[asked]
            if not of_scope:
                del self._turns[scope]


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
