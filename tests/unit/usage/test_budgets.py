"""Sums of budgets: exact, whatever order usage comes in and however often."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.budgets import Account, BudgetSpec, BudgetState
from schemas.usage import UsageRecorded
from services.usage.budgets.accounts import account_of
from services.usage.budgets.ledger import Ledger, warning_id, warning_of
from tests.support.prices import book_of, price

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
DAY = timedelta(days=1)
JANUARY = Account(tenant_id="default", period="2026-01")

USAGES = st.lists(
    st.builds(
        lambda number, tokens, user, days, model: usage(
            str(number), tokens, user_id=user, occurred_at=NOON + days * DAY, model=model
        ),
        st.integers(0, 1000),
        st.integers(0, 10_000),
        st.sampled_from(["u-1", "u-2", None]),
        st.integers(-1, 1),
        st.sampled_from(["small", "unknown"]),
    ),
    max_size=20,
    unique_by=lambda each: each.usage_id,
)
BUDGETS = st.builds(
    lambda by, per, unit: budget(by=by, per=per, unit=unit),
    st.sampled_from(["tenant", "user", "agent"]),
    st.sampled_from(["day", "month", "thread"]),
    st.sampled_from(["tokens", "cost", "price"]),
)
BOOK = book_of(price(model="small"))


def budget(**fields: object) -> BudgetSpec:
    return BudgetSpec.model_validate({"name": "b", "unit": "tokens", "soft": 80, "hard": 100, **fields})


def usage(usage_id: str = "1", tokens: int = 10, **fields: object) -> UsageRecorded:
    known = {"thread_id": "t-1", "agent": "assistant", "kind": "completion", "provider": "house", "model": "small"}
    counts = {"usage_id": usage_id, "input_tokens": tokens, "occurred_at": NOON}
    return UsageRecorded.model_validate({**known, **counts, **fields})


def states(spec: BudgetSpec, usages: Sequence[UsageRecorded]) -> dict[Account, BudgetState]:
    ledger = Ledger(spec, BOOK)
    accounts = {account for each in usages if (account := ledger.add(each)) is not None}
    return {account: ledger.state(account, [7]) for account in accounts}


@given(BUDGETS, USAGES, st.data())
def test_order_and_repetition_of_usage_change_nothing(
    spec: BudgetSpec, usages: list[UsageRecorded], data: st.DataObject
) -> None:
    repeated = data.draw(st.lists(st.sampled_from(usages), max_size=10)) if usages else []
    again = data.draw(st.permutations([*usages, *repeated]))
    assert states(spec, again) == states(spec, usages)


@given(BUDGETS, USAGES)
def test_every_usage_is_in_one_account_or_in_none(spec: BudgetSpec, usages: list[UsageRecorded]) -> None:
    counted = [each for each in usages if account_of(spec, each) is not None]
    found = states(spec, usages).values()
    if spec.unit == "tokens":
        assert sum(state.spent for state in found) == sum(each.input_tokens for each in counted)
    else:
        priced = [each for each in counted if each.model == "small"]
        expected = sum((each.input_tokens * Decimal("0.0000025") for each in priced), Decimal(0))
        assert sum(state.spent for state in found) == expected
        assert sum(state.uncounted_events for state in found) == len(counted) - len(priced)


def test_the_caps_are_reached_at_their_amount() -> None:
    assert [budget().level(Decimal(spent)) for spent in (79, 80, 99, 100)] == ["ok", "warned", "warned", "exceeded"]
    assert budget(hard=None).level(Decimal(10**9)) == "warned"
    assert budget(soft=None, hard=0).level(Decimal(0)) == "exceeded"


def test_a_budget_of_the_day_opens_again_with_the_next_day() -> None:
    days = states(budget(per="day"), [usage("1", 100), usage("2", 1, occurred_at=NOON + DAY)])
    assert [(account.period, state.level) for account, state in sorted(days.items(), key=lambda it: it[0].period)] == [
        ("2026-01-31", "exceeded"),
        ("2026-02-01", "ok"),
    ]


def test_each_user_has_an_account_and_work_of_no_user_has_none() -> None:
    spec = budget(by="user")
    assert account_of(spec, usage(user_id="u-1")) == Account(tenant_id="default", who="u-1", period="2026-01")
    assert account_of(spec, usage()) is None
    assert account_of(budget(by="user", who="u-2"), usage(user_id="u-1")) is None
    assert account_of(budget(tenant_id="acme"), usage()) is None
    assert account_of(budget(per="thread"), usage(thread_id=None)) is None


def test_a_raised_budget_is_open_at_once_and_keeps_its_sum() -> None:
    ledger = Ledger(budget(), BOOK)
    ledger.add(usage(tokens=100))
    assert ledger.state(JANUARY, []).level == "exceeded"
    ledger.change_caps(budget(soft=150, hard=200))
    assert (ledger.state(JANUARY, []).spent, ledger.state(JANUARY, []).level) == (100, "ok")
    with pytest.raises(ValueError, match="ledger of its own"):
        ledger.change_caps(budget(per="day"))


def test_a_crossing_is_one_warning_and_another_cap_another() -> None:
    def warning(soft: int, tokens: int) -> str | None:
        ledger = Ledger(budget(soft=soft, hard=200), BOOK)
        ledger.add(usage(tokens=tokens))
        warned = warning_of(ledger.state(JANUARY, []), NOON + tokens * DAY)
        return warned and warning_id(warned)

    assert warning(80, 79) is None
    assert warning(80, 80) == warning(80, 300)
    assert warning(80, 80) != warning(90, 90)


def test_an_account_that_is_forgotten_stands_at_nothing() -> None:
    ledger = Ledger(budget(), BOOK)
    ledger.add(usage(tokens=100))
    ledger.forget(JANUARY)
    assert ledger.state(JANUARY, []).spent == 0


def test_what_is_not_billable_costs_and_has_no_price() -> None:
    lost = usage(tokens=1_000_000, billable=False, outcome="lost")
    assert states(budget(unit="cost"), [lost])[JANUARY].spent == Decimal("2.5")
    free = states(budget(unit="price"), [lost])[JANUARY]
    assert (free.spent, free.uncounted_events) == (0, 0)


def test_another_currency_is_uncounted_and_not_nothing() -> None:
    state = states(budget(unit="cost", currency="EUR"), [usage()])[JANUARY]
    assert (state.spent, state.uncounted_events) == (0, 1)


@pytest.mark.parametrize(
    "fields",
    [{"soft": -1}, {"soft": "0.0000000000001"}, {"hard": "1e15"}, {"hard": "NaN"}, {"currency": "dollars"}],
)
def test_a_budget_that_makes_no_sense_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        budget(**fields)
