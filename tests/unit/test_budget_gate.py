"""Whether budgets have room: by what is spent, and by what is in flight."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from schemas.budgets import Account, BudgetSpec, BudgetState, Spender
from services.agents.budgets import BudgetGate
from services.runtime.budgets import Budgets

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


def is_open(gate: BudgetGate, spender: Spender = ANN, *, at: datetime = NOON) -> bool:
    return gate.closed(spender, at, opening=True) is None


def test_an_account_is_closed_once_its_hard_cap_is_reached_and_others_are_not() -> None:
    spec = budget(by="user")
    assert is_open(BudgetGate(spent(spec, ANN, 99)))
    gate = BudgetGate(spent(spec, ANN, 100))
    assert [is_open(gate, each) for each in (ANN, BOB)] == [False, True]
    error = gate.closed(ANN, NOON, opening=True)
    assert error is not None
    assert (error.code, error.retryable) == ("budget", True)
    assert error.message == "budget 'b' is used up: user 'ann' has spent 100 of 100 tokens in 2026-01"


def test_the_next_period_is_open_by_the_clock_alone() -> None:
    gate = BudgetGate(spent(budget(per="day"), ANN, 100))
    assert [is_open(gate, at=NOON + hours * timedelta(hours=1)) for hours in (11, 12)] == [False, True]


def test_a_budget_that_is_raised_is_open_at_once() -> None:
    standing = spent(budget(), ANN, 100)
    gate = BudgetGate(standing)
    assert not is_open(gate)
    standing.budgets = Budgets([budget(hard=101)])
    assert is_open(gate)


def test_without_a_hard_cap_nothing_closes_and_a_cap_of_nothing_is_closed_from_the_start() -> None:
    assert is_open(BudgetGate(spent(budget(hard=None, soft=1), ANN, 100)))
    assert not is_open(BudgetGate(Standing(budget(hard=0))))


def test_turns_in_flight_have_a_claim_on_the_room_that_is_left() -> None:
    gate = BudgetGate(spent(budget(), ANN, 70, events=7))
    for number in range(3):
        assert is_open(gate), number
        gate.in_flight(f"t-{number}", ANN._replace(thread_id=f"t-{number}"))
    error = gate.closed(ANN, NOON, opening=True)
    assert error is not None
    assert error.message.endswith("has spent 70 of 100 tokens in 2026-01, and 3 turns in flight")
    assert gate.closed(ANN, NOON, opening=False) is None, "they do not stop each other"
    gate.in_flight("t-1", None)
    assert is_open(gate)


def test_an_account_that_has_spent_nothing_is_judged_by_the_mean_of_the_budget() -> None:
    gate = BudgetGate(Standing(budget(by="user"), mean=50))
    gate.in_flight("t-1", ANN)
    assert is_open(gate)
    gate.in_flight("t-2", ANN._replace(thread_id="t-2"))
    assert [is_open(gate, each) for each in (ANN, BOB)] == [False, True]


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
                gate = BudgetGate(Standing(budget(by=by, per=per, hard=cap), mean=1))
                for key, spender in said:
                    gate.in_flight(key, spender)
                assert is_open(gate, asks) == expected
