"""What was counted before a ledger began counts once, wherever it comes again."""

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from operator import attrgetter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.budgets import Account, BudgetSpec, Spender
from schemas.usage import UsageRecorded
from services.runtime.budgets import Budgets
from services.runtime.pricing.cells import cell_of
from services.runtime.pricing.sums import amounts_of
from services.usage.budgets.known import Known
from services.usage.budgets.ledger import Ledger
from services.usage.budgets.seed import CannotSeedError, can_seed, question_of
from services.usage.spending import FactIds, Spent
from tests.support.prices import book_of, price

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
JANUARY = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
BOOK = book_of(price(model="small"))


def budget(**fields: object) -> BudgetSpec:
    return BudgetSpec.model_validate({"name": "b", "unit": "tokens", "hard": 100, **fields})


def usage(number: int = 1, tokens: int = 10, **fields: object) -> UsageRecorded:
    known = {"usage_id": f"u{number}", "kind": "completion", "model": "small", "occurred_at": NOON}
    return UsageRecorded.model_validate({**known, "input_tokens": tokens, **fields})


def ids_of(facts: Iterable[str], last: datetime | None = NOON) -> FactIds:
    digests = sorted(hashlib.md5(fact.encode()).digest() for fact in facts)
    halves = sorted((int.from_bytes(each[:8], "little"), int.from_bytes(each[8:], "little")) for each in digests)
    return FactIds([high for high, _ in halves], [low for _, low in halves], last)


def known(*facts: str, since: datetime = JANUARY, tenants: tuple[str, ...] | None = None, ends: int = 1) -> Known:
    return Known(ids_of(facts), since, tenants, [ends])


def begun(*specs: BudgetSpec, by: str = "tenant", who: str | None = None, period: str = "2026-01") -> Ledger:
    """A ledger that has ten tokens of `u1`."""
    ledger = Ledger(Budgets(specs), NOON, [(spec, BOOK) for spec in specs])
    cell = cell_of(usage(), BOOK.all_boundaries())
    ledger.begin_with([Spent(by, Account("default", who, period), cell)])  # pyright: ignore
    ledger.know(known("default/u1"))
    return ledger


def spent_of(ledger: Ledger) -> list[int]:
    return [int(state.spent) for state in ledger.take_changed()]


@given(st.sets(st.text(max_size=5)), st.sets(st.text(max_size=5)))
def test_ids_have_what_they_were_made_of_and_nothing_else(facts: set[str], others: set[str]) -> None:
    ids = ids_of(facts)
    assert all(ids.has(fact) for fact in facts)
    assert not any(ids.has(fact) for fact in others - facts)


def test_facts_whose_hashes_are_half_the_same_are_told_apart() -> None:
    digest = hashlib.md5(b"a/1").digest()
    high, low = (int.from_bytes(each, "little") for each in (digest[:8], digest[8:]))
    assert FactIds([high, high, high], [5, low, 7], NOON).has("a/1")
    assert not FactIds([high, high], [5, 7], NOON).has("a/1")


def test_what_is_known_counts_no_more_and_what_is_new_counts_once() -> None:
    ledger = begun(budget())
    ledger.add([usage(1), usage(1, 500), usage(2, 7), usage(2, 7), usage(1, tenant_id="acme")])
    assert sorted(spent_of(ledger)) == [10, 17]


@pytest.mark.parametrize(
    ("fields", "by", "who", "spent"),
    [
        ({"by": "user"}, "user", "ann", [10]),
        ({"by": "user", "who": "ann"}, "user", "ann", [10]),
        ({"by": "user", "who": "bob"}, "user", "ann", []),
        ({"by": "team"}, "user", "ann", []),
        ({"by": "tenant", "who": "of no meaning"}, "tenant", None, [10]),
        ({"by": "tenant", "tenant_id": "acme"}, "tenant", None, []),
    ],
)
def test_sums_go_to_the_budgets_that_they_are_of(
    fields: dict[str, object], by: str, who: str | None, spent: list[int]
) -> None:
    assert spent_of(begun(budget(**fields), by=by, who=who)) == spent


def test_a_sum_of_a_period_that_is_over_is_left_out() -> None:
    assert spent_of(begun(budget(), period="2025-12")) == []


def test_what_one_ledger_knows_the_one_that_it_is_merged_into_knows_too() -> None:
    first, second = budget(name="first"), budget(name="second")
    standing = Ledger(Budgets([first, second]), NOON, [(first, BOOK)])
    standing.add([usage(1), usage(3, 5)])
    coming = standing.beside(NOON, [second], BOOK)
    coming.begin_with([Spent("tenant", Account("default", None, "2026-01"), cell_of(usage(1), BOOK.all_boundaries()))])
    coming.know(known("default/u1"))
    coming.add([usage(3, 5)])
    standing.merge(coming)
    standing.add([usage(1), usage(3, 5), usage(4, 1)])
    assert spent_of(standing) == [16, 16]


def test_what_is_known_is_forgotten_with_its_period() -> None:
    ledger = begun(budget())
    ledger.roll(NOON + DAY)
    ledger.add([usage(1)])
    ledger.roll(NOON + 2 * DAY)
    ledger.add([usage(1, 3, occurred_at=NOON + 2 * DAY)])
    assert spent_of(ledger) == [3]


def test_more_that_is_known_takes_the_place_of_less() -> None:
    less = known(tenants=("a",), since=JANUARY + DAY, ends=5)
    assert known(ends=5).covers(less)
    assert known(tenants=("a", "b"), ends=6).covers(less)
    assert not known(ends=4).covers(less)
    assert not known(tenants=("b",), ends=5).covers(less)
    assert not known(ends=5, since=JANUARY + 2 * DAY).covers(less)
    assert not less.covers(known())


def test_a_fact_that_belonged_to_no_account_at_first_counts_for_none_later() -> None:
    """It is one fact, as it was first read."""
    spec = budget(by="user")
    ledger = Ledger(Budgets([spec]), NOON, [(spec, BOOK)])
    ledger.add([usage(1), usage(1, user_id="ann"), usage(2, 3, user_id="ann")])
    assert spent_of(ledger) == [3]


def test_budgets_of_threads_are_read_from_the_log() -> None:
    spec = budget(per="thread")
    assert (can_seed(spec), can_seed(budget())) == (False, True)
    with pytest.raises(CannotSeedError):
        question_of([spec], Ledger(Budgets([spec]), NOON), BOOK)


def test_what_is_asked_is_no_more_than_the_budgets_need() -> None:
    tokens, money = budget(name="t", tenant_id="acme"), budget(name="m", tenant_id="zoo", by="user", unit="cost")
    query = question_of([tokens, money], Ledger(Budgets([tokens, money]), NOON), BOOK)
    assert (query.by, query.per, query.since) == ({"tenant": False, "user": True}, "month", JANUARY)
    assert query.tenants == ("acme", "zoo")
    assert question_of([tokens, budget()], Ledger(Budgets([tokens]), NOON), BOOK).tenants is None


@given(st.integers(0, 300_000), st.integers(0, 60), st.sampled_from(["acme", "other"]))
def test_an_amount_in_the_cells_of_everybody_is_that_in_the_tenants_own(tokens: int, days: int, tenant: str) -> None:
    book = book_of(
        price(tenant_id="acme", tiers=[{"above_input_tokens": 128_000, "rates": {"input": "9"}}]),
        price(name="later", effective_from=JANUARY + 20 * DAY, rates={"input": "7"}),
        price(name="other", tenant_id="other", effective_from=JANUARY + 9 * DAY, rates={"input": "5"}),
    )
    event = usage(tokens=tokens, tenant_id=tenant, occurred_at=JANUARY + days * DAY)
    fine, own = (cell_of(event, each) for each in (book.all_boundaries(), book.boundaries(tenant)))
    assert amounts_of([fine], tenant, book) == amounts_of([own], tenant, book)


SPECS = [
    budget(name="all", unit="cost"),
    budget(name="of-acme", tenant_id="acme"),
    budget(name="users", by="user", per="day", unit="cost"),
    budget(name="acmes-users", by="user", tenant_id="acme"),
]
USAGES = st.lists(
    st.builds(
        lambda number, tokens, tenant, user, days: usage(
            number, tokens, tenant_id=tenant, user_id=user, occurred_at=NOON + days * DAY
        ),
        st.integers(0, 9),
        st.integers(0, 5),
        st.sampled_from(["acme", "zoo"]),
        st.sampled_from(["ann", "bob", None]),
        st.sampled_from([0, 0, -1, -2]),
    ),
    max_size=25,
)


def stored(usages: Iterable[UsageRecorded]) -> dict[str, UsageRecorded]:
    """What tables have: each fact as it was first read."""
    first: dict[str, UsageRecorded] = {}
    for each in usages:
        first.setdefault(f"{each.tenant_id}/{each.usage_id}", each)
    return first


def begin(ledger: Ledger, spec: BudgetSpec, facts: dict[str, UsageRecorded], place: int) -> None:
    query = question_of([spec], ledger, BOOK)
    asked = {
        fact: each
        for fact, each in facts.items()
        if each.occurred_at >= query.since and (query.tenants is None or each.tenant_id in query.tenants)
    }
    for each in asked.values():
        spender = Spender(each.tenant_id, each.user_id, each.agent, each.thread_id, each.team_id)
        account = spec.account(spender, each.occurred_at)
        if account is not None:
            ledger.begin_with([Spent(spec.by, account, cell_of(each, BOOK.all_boundaries()))])
    last = max((each.occurred_at for each in asked.values()), default=None)
    ledger.know(Known(ids_of(asked, last), query.since, query.tenants, [place]))


@given(USAGES, st.permutations(SPECS), st.data())
def test_budgets_that_begin_one_after_the_other_wherever_the_tables_are_come_to_the_sums_of_the_log(
    usages: list[UsageRecorded], specs: list[BudgetSpec], data: st.DataObject
) -> None:
    """Facts come again with other values too, but for the time: of which period one is decides what is asked for."""
    first = stored(usages)
    usages = [
        each.model_copy(update={"occurred_at": first[f"{each.tenant_id}/{each.usage_id}"].occurred_at})
        for each in usages
    ]
    standing, place = Ledger(Budgets(SPECS), NOON), 0
    for spec in specs:
        further = data.draw(st.integers(place, len(usages)), "standing")
        standing.add(usages[place:further])
        place = further
        tables = data.draw(st.integers(0, place), "tables")
        coming = standing.beside(NOON, [spec], BOOK)
        begin(coming, spec, stored(usages[:tables]), tables)
        coming.add(usages[tables:place])
        standing.merge(coming)
    standing.add(usages[place:])
    counted = Ledger(Budgets(SPECS), NOON, [(spec, BOOK) for spec in SPECS])
    counted.add(usages)
    key = attrgetter("budget", "tenant_id", "period", "who")
    assert sorted(standing.take_changed(), key=lambda each: str(key(each))) == sorted(
        counted.take_changed(), key=lambda each: str(key(each))
    )
