"""Whether budgets have room: by what is spent, and by what is in flight."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.budgets import Account, BudgetSpec, BudgetState, Spender
from schemas.prices import PriceSpec
from schemas.usage import UsageRecorded
from services.agents.budgets import BudgetGate, Claim
from services.runtime.budgets import Budgets
from tests.support.prices import book_of, price

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
ANN = Spender("default", "ann", "assistant", "t-1")
BOB = Spender("default", "bob", "assistant", "t-2")


class Standing:
    """The budgets, and what their accounts have spent in how many events."""

    def __init__(self, *specs: BudgetSpec, mean: int = 0) -> None:
        self.budgets = Budgets(specs)
        self.spent: dict[tuple[str, Account], tuple[int, int]] = {}
        self._mean = Decimal(mean)

    def state(self, spec: BudgetSpec, account: Account) -> BudgetState | None:
        if (spec.name, account) not in self.spent:
            return None
        spent, events = self.spent[spec.name, account]
        what = spec.model_dump(include={"by", "per", "unit", "currency"})
        whose = {"tenant_id": account.tenant_id, "who": account.who, "period": account.period}
        return BudgetState(
            budget=spec.name, budget_version="", **what, **whose, spent=Decimal(spent), events=events, level="ok"
        )

    def mean(self, spec: BudgetSpec) -> Decimal:
        return self._mean


def budget(**fields: object) -> BudgetSpec:
    return BudgetSpec.model_validate({"name": "b", "unit": "tokens", "hard": 100, **fields})


def spent(spec: BudgetSpec, spender: Spender, tokens: int, events: int = 1, *, mean: int = 0) -> Standing:
    standing = Standing(spec, mean=mean)
    account = spec.account(spender, NOON)
    assert account is not None
    standing.spent[spec.name, account] = tokens, events
    return standing


def gate_of(standing: Standing, *prices: PriceSpec) -> BudgetGate:
    return BudgetGate(standing, lambda: book_of(*prices))


def claim(spender: Spender, tokens: int = 4) -> Claim:
    """A turn whose prompt has so many tokens."""
    return Claim(spender, "p", "m", tokens)


def used(spender: Spender, input_tokens: int, output_tokens: int, **fields: Any) -> UsageRecorded:
    """A call of the spender's agent that has ended."""
    counts = {"input_tokens": input_tokens, "output_tokens": output_tokens}
    asked = {"kind": "completion", "provider": "p", "model": "m", "agent": spender.agent, "occurred_at": NOON}
    said = {"usage_id": "u", "tenant_id": spender.tenant_id, **asked, **counts, **fields}
    return UsageRecorded.model_validate(said)


def opened(gate: BudgetGate, prompts: int, spender: Spender = ANN, tokens: int = 4) -> int:
    """How many of so many prompts that come at once open a turn."""
    count = 0
    for number in range(prompts):
        asks = spender._replace(thread_id=f"{spender.user_id}-{number}")
        if is_open(gate, asks):
            gate.in_flight(f"{spender.user_id}-{number}", claim(asks, tokens))
            count += 1
    return count


def is_open(gate: BudgetGate, spender: Spender = ANN, *, at: datetime = NOON) -> bool:
    return gate.closed(spender, at, opening=True) is None


def test_an_account_is_closed_once_its_hard_cap_is_reached_and_others_are_not() -> None:
    spec = budget(by="user")
    assert is_open(gate_of(spent(spec, ANN, 99)))
    gate = gate_of(spent(spec, ANN, 100))
    assert [is_open(gate, each) for each in (ANN, BOB)] == [False, True]
    error = gate.closed(ANN, NOON, opening=True)
    assert error is not None
    assert (error.code, error.retryable) == ("budget", True)
    assert error.message == "budget 'b' is used up: user 'ann' has spent 100 of 100 tokens in 2026-01"


def test_the_next_period_is_open_by_the_clock_alone() -> None:
    gate = gate_of(spent(budget(per="day"), ANN, 100))
    assert [is_open(gate, at=NOON + hours * timedelta(hours=1)) for hours in (11, 12)] == [False, True]


def test_a_budget_that_is_raised_is_open_at_once() -> None:
    standing = spent(budget(), ANN, 100)
    gate = gate_of(standing)
    assert not is_open(gate)
    standing.budgets = Budgets([budget(hard=101)])
    assert is_open(gate)


def test_without_a_hard_cap_nothing_closes_and_a_cap_of_nothing_is_closed_from_the_start() -> None:
    assert is_open(gate_of(spent(budget(hard=None, soft=1), ANN, 100)))
    assert not is_open(gate_of(Standing(budget(hard=0))))


def test_turns_in_flight_have_a_claim_on_the_room_that_is_left() -> None:
    gate = gate_of(spent(budget(), ANN, 70, events=7))
    for number in range(3):
        assert is_open(gate), number
        gate.in_flight(f"t-{number}", claim(ANN._replace(thread_id=f"t-{number}")))
    error = gate.closed(ANN, NOON, opening=True)
    assert error is not None
    assert error.message.endswith("has spent 70 of 100 tokens in 2026-01, and 3 turns in flight")
    assert gate.closed(ANN, NOON, opening=False) is None, "they do not stop each other"
    gate.in_flight("t-1", None)
    assert is_open(gate)


def test_an_account_that_has_spent_nothing_is_judged_by_the_mean_of_the_budget() -> None:
    gate = gate_of(Standing(budget(by="user"), mean=50))
    gate.in_flight("t-1", claim(ANN))
    assert is_open(gate)
    gate.in_flight("t-2", claim(ANN._replace(thread_id="t-2")))
    assert [is_open(gate, each) for each in (ANN, BOB)] == [False, True]


def test_where_nothing_is_spent_yet_a_turn_in_flight_counts_with_its_own_input_at_least() -> None:
    gate = gate_of(Standing(budget(by="user", hard=10)))
    assert opened(gate, 40) == 3
    error = gate.closed(ANN, NOON, opening=True)
    assert error is not None
    assert error.message.endswith("has spent 0 of 10 tokens in 2026-01, and 3 turns in flight")
    assert is_open(gate, BOB)


def test_where_nothing_is_spent_yet_a_turn_in_flight_counts_as_the_last_calls_of_its_agent() -> None:
    gate = gate_of(Standing(budget(by="user", hard=100)))
    gate.spent(used(BOB, 10, 6))
    assert opened(gate, 40) == 7
    gate.spent(used(BOB._replace(agent="other"), 10_000, 10_000))
    gate.spent(used(BOB._replace(tenant_id="acme"), 10_000, 10_000))
    assert opened(gate, 40, ANN._replace(user_id="eve")) == 7
    for _ in range(100):
        gate.spent(used(BOB, 40, 10))
    assert opened(gate, 40, BOB) == 2


def test_what_is_known_of_the_agent_after_a_turn_has_opened_counts_for_it_too() -> None:
    gate = gate_of(Standing(budget(by="user", hard=100)))
    assert opened(gate, 2) == 2
    gate.spent(used(ANN, 40, 10))
    assert not is_open(gate)


def test_a_call_with_more_input_than_the_last_ones_counts_with_its_own() -> None:
    gate = gate_of(Standing(budget(by="user", hard=100)))
    gate.spent(used(ANN, 1, 6))
    assert opened(gate, 40, tokens=44) == 2


def test_an_account_whose_usage_comes_to_nothing_is_judged_by_the_estimate() -> None:
    assert opened(gate_of(spent(budget(hard=10), ANN, 0)), 40) == 3


def test_a_roomy_budget_of_which_nothing_is_spent_lets_all_run() -> None:
    gate = gate_of(Standing(budget(by="user", hard=1_000_000)))
    gate.spent(used(ANN, 10, 6))
    assert opened(gate, 40) == 40


@pytest.mark.parametrize(("unit", "count"), [("cost", 5), ("price", 3)])
def test_the_estimate_of_a_budget_of_money_is_by_the_prices(unit: str, count: int) -> None:
    prices = [
        price("cost", rates={"input": "250000", "output": "500000"}),
        price("list", figure="price", markup="1"),
    ]
    gate = gate_of(Standing(budget(unit=unit, hard=5)), *prices)
    assert opened(gate, 40) == count
    assert opened(gate_of(Standing(budget(unit=unit, hard=5, currency="EUR")), *prices), 40) == 40
    later = gate_of(Standing(budget(unit=unit, hard=25)), *prices)
    later.spent(used(BOB, 4, 8))
    assert opened(later, 40) == count


def test_in_money_that_nobody_has_a_price_for_a_turn_is_expected_to_cost_nothing() -> None:
    assert opened(gate_of(Standing(budget(unit="cost", hard=1))), 40) == 40


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["t-1", "t-2", "t-3"]),
            st.none()
            | st.builds(
                Spender,
                st.just("default"),
                st.sampled_from(["ann", None]),
                st.sampled_from(["a", "b"]),
                st.just("t"),
                st.sampled_from(["red", None]),
            ),
        )
    )
)
def test_what_is_in_flight_is_what_was_said_last_of_each_thread(said: list[tuple[str, Spender | None]]) -> None:
    last = dict(said)
    open_now = [each for each in last.values() if each is not None]
    whose = {"tenant": None, "team": "red", "user": "ann", "agent": "a"}
    asks = Spender("default", "ann", "a", "t", "red")
    for by, who in whose.items():
        claims = sum(who is None or who in (each.user_id, each.agent, each.team_id) for each in open_now)
        for per in ("month", "thread"):
            for cap, expected in ((claims + 1, True), (claims, False)):
                gate = gate_of(Standing(budget(by=by, per=per, hard=cap), mean=1))
                for key, spender in said:
                    gate.in_flight(key, claim(spender) if spender else None)
                assert is_open(gate, asks) == expected
