"""Sums of budgets: exact, whatever order usage comes in and however often."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from operator import attrgetter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.budgets import Account, BudgetSpec, BudgetState, Spender
from schemas.usage import UsageRecorded
from services.runtime.budgets import Budgets, state_key
from services.runtime.kafka import Record
from services.usage.budgets.ledger import Ledger, warning_id, warning_of
from services.usage.budgets.periods import earliest_period, reads_from
from services.usage.budgets.reading import usage_in
from tests.support.prices import book_of, price

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
DAY = timedelta(days=1)
JANUARY = Account("default", None, "2026-01")

USAGES = st.lists(
    st.builds(
        lambda number, tokens, user, days, model: usage(
            str(number),
            tokens,
            user_id=user,
            team_id=user and f"team of {user}",
            occurred_at=NOON + days * DAY,
            model=model,
        ),
        st.integers(0, 1000),
        st.integers(0, 10_000),
        st.sampled_from(["u-1", "u-2", None]),
        st.integers(-2, 1),
        st.sampled_from(["small", "unknown"]),
    ),
    max_size=20,
    unique_by=lambda each: each.usage_id,
)
BUDGETS = st.lists(
    st.builds(
        lambda name, tenant, by, per, unit: budget(name=name, tenant_id=tenant, by=by, per=per, unit=unit),
        st.sampled_from(["a", "b"]),
        st.sampled_from([None, "default", "acme"]),
        st.sampled_from(["tenant", "team", "user", "agent"]),
        st.sampled_from(["day", "month", "thread"]),
        st.sampled_from(["tokens", "cost", "price"]),
    ),
    max_size=4,
    unique_by=lambda spec: (spec.tenant_id, spec.name),
)
BOOK = book_of(price(model="small"))


def budget(**fields: object) -> BudgetSpec:
    return BudgetSpec.model_validate({"name": "b", "unit": "tokens", "soft": 80, "hard": 100, **fields})


def usage(usage_id: str = "1", tokens: int = 10, **fields: object) -> UsageRecorded:
    known = {"thread_id": "t-1", "agent": "assistant", "kind": "completion", "provider": "house", "model": "small"}
    counts = {"usage_id": usage_id, "input_tokens": tokens, "occurred_at": NOON}
    return UsageRecorded.model_validate({**known, **counts, **fields})


def ledger_of(*specs: BudgetSpec) -> Ledger:
    return Ledger(Budgets(specs), NOON, [(spec, BOOK) for spec in specs])


def states(specs: Sequence[BudgetSpec], usages: Sequence[UsageRecorded]) -> dict[str, BudgetState]:
    ledger = ledger_of(*specs)
    ledger.add(usages)
    return {state_key(each.budget_tenant_id, each.budget, each.account): each for each in ledger.take_changed()}


def the_state(spec: BudgetSpec, *usages: UsageRecorded) -> BudgetState:
    (state,) = states([spec], usages).values()
    return state


@given(BUDGETS, USAGES, st.data())
def test_order_and_repetition_of_usage_change_nothing(
    specs: list[BudgetSpec], usages: list[UsageRecorded], data: st.DataObject
) -> None:
    repeated = data.draw(st.lists(st.sampled_from(usages), max_size=10)) if usages else []
    again = data.draw(st.permutations([*usages, *repeated]))
    assert states(specs, again) == states(specs, usages)


@given(BUDGETS, USAGES, st.data())
def test_a_ledger_that_began_anew_comes_to_what_it_was(
    specs: list[BudgetSpec], usages: list[UsageRecorded], data: st.DataObject
) -> None:
    """What was taken and told on the way, and what of it was lost, has no part in the sums."""
    ledger = ledger_of(*specs)
    told: dict[str, BudgetState] = {}
    for each in usages:
        ledger.add([each])
        if data.draw(st.booleans()):
            told |= {state_key(it.budget_tenant_id, it.budget, it.account): it for it in ledger.take_changed()}
    told |= {state_key(it.budget_tenant_id, it.budget, it.account): it for it in ledger.take_changed()}
    assert told == states(specs, usages)


@given(BUDGETS, USAGES)
def test_every_usage_of_a_period_that_runs_is_in_one_account_of_a_budget_or_in_none(
    specs: list[BudgetSpec], usages: list[UsageRecorded]
) -> None:
    found = states(specs, usages).values()
    for spec in Budgets(specs).of("default"):
        counted = [
            each
            for each in usages
            if (
                account := spec.account(
                    Spender("default", each.user_id, each.agent, each.thread_id, each.team_id), each.occurred_at
                )
            )
            and account.period >= earliest_period(spec.per, NOON)
        ]
        mine = [state for state in found if state.is_of(spec)]
        assert sum(state.events + state.uncounted_events for state in mine) == len(counted)
        rate = Decimal(1) if spec.unit == "tokens" else Decimal("0.0000025")
        priced = [each for each in counted if spec.unit == "tokens" or each.model == "small"]
        assert sum(state.spent for state in mine) == sum((each.input_tokens * rate for each in priced), Decimal(0))


@given(BUDGETS, st.lists(st.integers(-40 * 24, 40 * 24), min_size=1))
def test_what_may_be_counted_is_read_again_at_a_start(specs: list[BudgetSpec], hours: list[int]) -> None:
    """Usage may be on the log an hour before its own time, and any time after it."""
    since = reads_from(specs, NOON)
    for hour in hours:
        at = NOON + timedelta(hours=hour)
        counted = any(
            account.period >= earliest_period(spec.per, NOON)
            for spec in specs
            if (account := spec.account(Spender("default", "u-1", "assistant", "t-1"), at)) is not None
        )
        if counted and since is not None:
            assert at - timedelta(hours=1) >= since


def test_a_day_that_is_over_is_counted_for_one_day_more() -> None:
    assert [earliest_period(per, NOON) for per in ("day", "month", "thread")] == ["2026-01-30", "2026-01", ""]
    assert earliest_period("month", NOON + DAY) == "2026-01"
    assert earliest_period("month", NOON + 2 * DAY) == "2026-02"
    assert reads_from([budget(per="day")], NOON) == datetime(2026, 1, 29, 23, tzinfo=UTC)
    assert reads_from([budget(per="day"), budget(per="thread")], NOON) is None


def test_the_caps_are_reached_at_their_amount() -> None:
    assert [budget().level(Decimal(spent)) for spent in (79, 80, 99, 100)] == ["ok", "warned", "warned", "exceeded"]
    assert budget(hard=None).level(Decimal(10**9)) == "warned"
    assert budget(soft=None, hard=0).level(Decimal(0)) == "exceeded"


def test_a_budget_of_the_day_opens_again_with_the_next_day() -> None:
    days = states([budget(per="day")], [usage("1", 100), usage("2", 1, occurred_at=NOON + DAY)]).values()
    assert sorted((state.period, state.level) for state in days) == [("2026-01-31", "exceeded"), ("2026-02-01", "ok")]


def test_a_period_that_is_over_is_forgotten_and_late_usage_of_it_is_not_counted() -> None:
    ledger = ledger_of(budget(per="day"))
    ledger.add([usage("1", 100)])
    ledger.roll(NOON + 2 * DAY)
    ledger.add([usage("2", 100), usage("3", 5, occurred_at=NOON + 2 * DAY)])
    assert [(state.period, state.spent) for state in ledger.take_changed()] == [("2026-02-02", 5)]


def test_each_user_has_an_account_and_work_of_no_user_has_none() -> None:
    ann, nobody = Spender("default", "u-1", None, None), Spender("default", None, "assistant", None)
    spec = budget(by="user")
    assert spec.account(ann, NOON) == Account("default", "u-1", "2026-01")
    assert spec.account(nobody, NOON) is None
    assert budget(by="team").account(ann, NOON) is None
    assert budget(by="team").account(ann._replace(team_id="red"), NOON) == Account("default", "red", "2026-01")
    assert budget(by="user", who="u-2").account(ann, NOON) is None
    assert budget(tenant_id="acme").account(ann, NOON) is None
    assert budget(per="thread").account(ann, NOON) is None


def test_a_tenants_own_budget_goes_before_everybodys_of_the_same_name() -> None:
    everybodys, own = budget(hard=100), budget(tenant_id="acme", hard=500)
    budgets = Budgets([everybodys, own])
    assert [list(budgets.of(tenant)) for tenant in ("default", "acme")] == [[everybodys], [own]]


def test_a_raised_budget_is_open_at_once_and_keeps_its_sum() -> None:
    ledger = ledger_of(budget())
    ledger.add([usage(tokens=100)])
    assert [state.level for state in ledger.take_changed()] == ["exceeded"]
    assert not ledger.follow(Budgets([budget(soft=150, hard=200)]))
    assert [(state.spent, state.level) for state in ledger.take_changed()] == [(100, "ok")]
    assert ledger.missing(BOOK) == []


@pytest.mark.parametrize("spec", [budget(per="day"), budget(who="u-1"), budget(by="user"), budget(name="other")])
def test_another_budget_is_counted_from_the_log_and_what_stands_is_not(spec: BudgetSpec) -> None:
    other = budget(name="stays")
    ledger = ledger_of(budget(), other)
    ledger.add([usage(tokens=7)])
    assert ledger.follow(Budgets([spec, other]))
    assert ledger.missing(BOOK) == [spec]
    assert [(state.budget, state.spent) for state in ledger.take_changed()] == [("stays", 7)]


def test_other_prices_want_the_budgets_of_money_counted_anew_which_stand_until_then() -> None:
    dearer = book_of(price(model="small", rates={"input": "5"}))
    tokens, money = budget(name="tokens"), budget(name="money", unit="cost")
    ledger = ledger_of(tokens, money)
    before = usage("1", 1_000_000)
    ledger.add([before])
    assert (ledger.missing(BOOK), ledger.missing(dearer)) == ([], [money])
    coming = ledger.beside(NOON, [money], dearer)
    coming.add([before])
    assert {state.budget: state.spent for state in ledger.take_changed()} == {"tokens": 10**6, "money": Decimal("2.5")}
    ledger.merge(coming)
    ledger.add([before, usage("2", 1_000_000)])
    assert {state.budget: state.spent for state in ledger.take_changed()} == {"tokens": 2 * 10**6, "money": 10}
    assert ledger.missing(dearer) == []


def test_a_tenant_that_has_its_own_budget_is_not_counted_in_everybodys_and_comes_back_to_it_from_the_log() -> None:
    everybodys, own = budget(), budget(tenant_id="acme")
    ledger = ledger_of(everybodys)
    ledger.add([usage("1", 3), usage("2", 4, tenant_id="acme")])
    ledger.follow(Budgets([everybodys, own]))
    ledger.add([usage("3", 5, tenant_id="acme")])
    assert [(state.tenant_id, state.spent) for state in ledger.take_changed()] == [("default", 3)]
    assert ledger.missing(BOOK) == [own]
    assert ledger.follow(Budgets([everybodys]))
    assert ledger.missing(BOOK) == [everybodys]


@given(BUDGETS, BUDGETS, USAGES, st.data())
def test_budgets_that_came_one_after_the_other_have_the_sums_of_those_that_were_there_at_once(
    before: list[BudgetSpec], after: list[BudgetSpec], usages: list[UsageRecorded], data: st.DataObject
) -> None:
    """What is missing is counted beside what stands, from the beginning, while usage goes on to both."""
    split = data.draw(st.integers(0, len(usages)))
    ledger = ledger_of(*before)
    ledger.add(usages[:split])
    ledger.follow(Budgets(after))
    missing = list(ledger.missing(BOOK))
    ledger.add(usages[split:])
    for spec in missing:
        coming = ledger.beside(NOON, [spec], BOOK)
        coming.add(usages)
        ledger.merge(coming)
    assert ledger.missing(BOOK) == []
    ledger.add(usages)
    told = {state_key(each.budget_tenant_id, each.budget, each.account): each for each in ledger.take_changed()}
    assert told == states(after, usages)


def test_a_crossing_is_one_warning_and_another_cap_another() -> None:
    def warning(soft: int, tokens: int) -> str | None:
        warned = warning_of(the_state(budget(soft=soft, hard=200), usage(tokens=tokens)), NOON + tokens * DAY)
        return warned and warning_id(warned)

    assert warning(80, 79) is None
    assert warning(80, 80) == warning(80, 300)
    assert warning(80, 80) != warning(90, 90)


def test_what_is_not_billable_costs_and_has_no_price() -> None:
    lost = usage(tokens=1_000_000, billable=False, outcome="lost")
    assert the_state(budget(unit="cost"), lost).spent == Decimal("2.5")
    free = the_state(budget(unit="price"), lost)
    assert (free.spent, free.uncounted_events) == (0, 0)


def test_another_currency_is_uncounted_and_not_nothing() -> None:
    state = the_state(budget(unit="cost", currency="EUR"), usage())
    assert (state.spent, state.events, state.uncounted_events) == (0, 0, 1)


@pytest.mark.parametrize(
    "fields",
    [{"soft": -1}, {"soft": "0.0000000000001"}, {"hard": "1e15"}, {"hard": "NaN"}, {"currency": "dollars"}],
)
def test_a_budget_that_makes_no_sense_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        budget(**fields)


TEXTS = st.sampled_from(["acme", "default", "u-1", "ü/1", 'u"1', "u\\1"])


@given(
    st.lists(
        st.builds(lambda who, tenant: (who, tenant), st.none() | TEXTS, st.sampled_from([None, "acme", "default"]))
    ),
    st.lists(
        st.tuples(TEXTS, st.sampled_from([None, "acme"]), st.sampled_from(["raw", "ascii", "escaped"])), max_size=5
    ),
)
def test_records_that_are_left_out_unread_would_not_have_counted(
    budgets: list[tuple[str | None, str | None]], spenders: list[tuple[str, str | None, str]]
) -> None:
    specs = [
        budget(name=f"b{number}", by="user" if who else "tenant", who=who, tenant_id=tenant)
        for number, (who, tenant) in enumerate(budgets)
    ]
    records = [record_of(number, *spender) for number, spender in enumerate(spenders)]
    all_read, some_read = ledger_of(*specs), ledger_of(*specs)
    all_read.add(usage_in(records))
    texts = some_read.texts()
    some_read.add(usage_in(records, None if texts is None else [f'"{text}"'.encode() for text in texts]))
    key = attrgetter("budget", "tenant_id", "period")
    assert sorted(all_read.take_changed(), key=key) == sorted(some_read.take_changed(), key=key)


def record_of(number: int, user: str, tenant: str | None, written: str) -> Record:
    """Usage on the log, as one of several writers writes it."""
    fields = usage(str(number)).model_dump(mode="json", exclude_none=True) | {"user_id": user}
    fields |= {"tenant_id": tenant} if tenant else {}
    if not tenant:
        del fields["tenant_id"]
    text = json.dumps(fields, ensure_ascii=written == "ascii")
    if written == "escaped":
        text = text.replace("u", "\\u0075").replace("a", "\\u0061")
    at = int(NOON.timestamp() * 1000)
    value = text.encode()
    return Record("usage", 0, number, at, 0, None, value, None, 0, len(value), ())


def test_what_has_to_be_read_is_known_where_every_budget_is_about_one() -> None:
    mine = budget(name="mine", by="user", who="u-1")
    assert ledger_of(mine, budget(tenant_id="acme")).texts() == {"u-1", "acme"}
    for other in (budget(), budget(tenant_id="default"), budget(by="user", tenant_id=None)):
        assert ledger_of(mine, other).texts() is None
    acme = usage_in([record_of(1, "u-1", "acme", "raw"), record_of(2, "u-1", None, "raw")], [b'"acme"'])
    assert [each.usage_id for each in acme] == ["1"]
