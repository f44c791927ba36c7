"""What is known of the topic `budgets`."""

from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest

from schemas.budgets import Account, BudgetSpec, BudgetState
from schemas.envelope import encode_event
from services.runtime.budgets import BudgetBoard, state_key
from services.runtime.kafka import Record
from services.runtime.registry import spec_key
from services.runtime.settings import RuntimeSettings
from services.usage.budgets.ledger import warning_id, warning_of

JANUARY = "2026-01"
ANN, BOB = Account("default", "ann", JANUARY), Account("default", "bob", JANUARY)


def budget(**fields: object) -> BudgetSpec:
    return BudgetSpec.model_validate({"name": "b", "by": "user", "unit": "tokens", "soft": 5, "hard": 100, **fields})


def state(spec: BudgetSpec, account: Account, spent: int, events: int = 1) -> BudgetState:
    what = spec.model_dump(include={"by", "per", "unit", "currency", "soft", "hard"})
    whose = {"tenant_id": account.tenant_id, "who": account.who, "period": account.period}
    return BudgetState.model_validate(
        {"budget": spec.name, "budget_tenant_id": spec.tenant_id, "budget_version": spec.version, "spent": spent}
        | {"events": events, "level": spec.level(Decimal(spent))}
        | what
        | whose
    )


class Topic:
    """A board, and its records one by one."""

    def __init__(self) -> None:
        settings = RuntimeSettings(_env_file=None)  # pyright: ignore
        no_kafka: Any = SimpleNamespace(consumer=lambda: None)
        self.board = BudgetBoard(no_kafka, settings)

    def says(self, event: BudgetSpec | BudgetState) -> None:
        key = spec_key(event) if isinstance(event, BudgetSpec) else self.key(event)
        self.record(key, encode_event(event))

    def record(self, key: str, value: bytes | None) -> None:
        self.board._take(Record("budgets", 0, 0, 0, 0, key.encode(), value, None, 0, 0, ()))

    @staticmethod
    def key(event: BudgetState) -> str:
        return state_key(event.budget_tenant_id, event.budget, event.account)


@pytest.fixture
async def topic() -> Topic:
    return Topic()


async def test_the_last_state_of_an_account_counts_and_a_tombstone_ends_it(topic: Topic) -> None:
    topic.says(budget())
    assert topic.board.state(budget(), ANN) is None
    topic.says(state(budget(), ANN, 7))
    topic.says(last := state(budget(), ANN, 9))
    assert topic.board.state(budget(), ANN) == last
    topic.record(topic.key(last), None)
    assert topic.board.state(budget(), ANN) is None
    assert list(topic.board.budgets.all()) == [budget()]


async def test_a_state_holds_for_other_caps_and_not_for_another_sum(topic: Topic) -> None:
    topic.says(told := state(budget(), ANN, 9))
    assert topic.board.state(budget(hard=10), ANN) == told
    assert topic.board.state(budget(unit="cost"), ANN) is None
    assert topic.board.state(budget(tenant_id="default"), ANN) is None


async def test_the_budgets_are_the_same_object_until_one_is_applied(topic: Topic) -> None:
    topic.says(budget())
    before = topic.board.budgets
    topic.says(state(budget(), ANN, 9))
    assert topic.board.budgets is before
    topic.says(budget(hard=200))
    topic.says(budget())
    assert list(topic.board.budgets.all()) == [budget()]
    assert topic.board.budgets is not before


async def test_the_mean_is_over_all_accounts_as_they_stand(topic: Topic) -> None:
    assert topic.board.mean(budget()) == 0
    topic.says(state(budget(), ANN, 100, events=9))
    topic.says(state(budget(), ANN, 10, events=2))
    topic.says(state(budget(), BOB, 20, events=3))
    assert topic.board.mean(budget()) == 6
    topic.record(topic.key(state(budget(), ANN, 10)), None)
    assert topic.board.mean(budget()) == Decimal(20) / 3


async def test_accounts_are_listed_most_spent_first_those_of_the_budget_that_holds(topic: Topic) -> None:
    topic.says(budget())
    topic.says(budget(name="other"))
    for each in (ANN, BOB, Account("acme", "ann", JANUARY)):
        topic.says(state(budget(), each, len(topic.board.states) + 1))
    topic.says(state(budget(name="other"), ANN, 50))
    topic.says(state(budget(per="day"), Account("default", "ann", "2026-01-31"), 60))
    assert [each.spent for each in topic.board.accounts("b")] == [3, 2, 1]
    assert [each.spent for each in topic.board.accounts("b", tenant_id="default")] == [2, 1]
    topic.says(budget(tenant_id="acme"))
    assert [each.spent for each in topic.board.accounts("b")] == [2, 1], "acme has a budget of its own now"


async def test_a_warning_is_known_by_its_id_and_what_is_nothing_changes_nothing(topic: Topic) -> None:
    warned = warning_of(state(budget(), ANN, 9), datetime(2026, 1, 31, tzinfo=UTC))
    assert warned is not None
    topic.record(warning_id(warned), encode_event(warned))
    topic.record("nonsense", b"no json")
    assert list(topic.board.warnings) == [warning_id(warned)]
    assert not topic.board.budgets


def test_no_two_accounts_share_a_key() -> None:
    keys = [
        spec_key(budget()),
        spec_key(budget(tenant_id="state")),
        *(
            state_key(owner, name, account)
            for owner in (None, "t")
            for name in ("b", "c")
            for account in (
                ANN,
                BOB,
                Account("default", None, JANUARY),
                Account("default", "b/c", "2026"),
                Account("default", "c", "2026"),
            )
        ),
    ]
    assert len(set(keys)) == len(keys)
