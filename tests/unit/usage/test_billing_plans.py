"""Slips in a plan are refused when it is applied; what is on the topic is read as it is."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from schemas.billing import GrantCredit
from schemas.envelope import RecordRejectedError, decode_event
from schemas.http import Page
from schemas.invoices import CreditTerms
from schemas.plans import PlanSpec, SubscriptionSpec
from schemas.topics import PLANS
from services.usage.billing.catalog import PlanCatalog
from services.usage.billing.errors import BillingRefusedError
from services.usage.billing.ledger import Ledger
from tests.support.billing import PER_EVENT

JAN = "2026-01"

PLAN: dict[str, Any] = {"name": "pro", "from_period": JAN, "currency": "EUR", "charges": [PER_EVENT]}


def tiered(*ends: int, scheme: str = "graduated") -> dict[str, Any]:
    charge = {name: value for name, value in PER_EVENT.items() if name != "unit_price"}
    tiers = [{"up_to": end, "unit_price": "1"} for end in ends]
    return PLAN | {"charges": [charge | {"scheme": scheme, "tiers": tiers, "beyond": {}}]}


SLIPS = [
    (tiered(10, 20, 10), ("charges", 0, "graduated", "tiers"), "expected each up_to once, got 10 twice"),
    (tiered(7, 7, scheme="volume"), ("charges", 0, "volume", "tiers"), "got 7 twice"),
    (tiered(0, 10), ("charges", 0, "graduated", "tiers"), "expected up_to above 0"),
    (PLAN | {"charges": [PER_EVENT, PER_EVENT]}, ("charges",), "expected each name once, got events twice"),
    (PLAN | {"currency": "ZZZ"}, ("currency",), "expected a currency of ISO 4217, such as EUR, got ZZZ"),
]


@pytest.mark.parametrize(("document", "field", "message"), SLIPS)
def test_a_slip_is_refused_with_its_field_and_read_where_it_is_on_the_topic(
    document: dict[str, Any], field: tuple[str | int, ...], message: str
) -> None:
    with pytest.raises(ValidationError, match=message) as error:
        PlanSpec.model_validate(document, extra="forbid")
    (told,) = error.value.errors()
    assert told["loc"] == field

    read = decode_event(PLANS, json.dumps(document).encode(), {})

    assert isinstance(read, PlanSpec)
    listed = Page[PlanSpec | SubscriptionSpec](items=[read])
    subscription = SubscriptionSpec(name="all", plan="pro", from_period=JAN)
    assert PlanCatalog([*listed.items, subscription]).plan_of("acme", JAN) == read
    with pytest.raises(ValidationError):
        PlanSpec.model_validate(document)


def test_reading_what_is_no_plan_leaves_the_checks_as_they_were() -> None:
    with pytest.raises(RecordRejectedError, match="from_period"):
        decode_event(PLANS, json.dumps({"name": "pro"}).encode(), {})
    with pytest.raises(ValidationError, match="ZZZ"):
        PlanSpec.model_validate(PLAN | {"currency": "ZZZ"})


def test_tiers_of_any_order_are_a_plan() -> None:
    assert PlanSpec.model_validate(tiered(20, 10)).charges


def test_a_grant_in_a_currency_that_does_not_exist_or_that_has_expired_is_refused() -> None:
    terms = {"grant_id": "g", "kind": "grant", "currency": "ZZZ", "amount": "1"}
    with pytest.raises(ValidationError, match="ISO 4217") as error:
        GrantCredit.model_validate(terms)
    assert error.value.errors()[0]["loc"] == ("currency",)

    ledger, ends = Ledger(), datetime(2026, 7, 1, tzinfo=UTC)
    short = CreditTerms.model_validate(terms | {"currency": "EUR", "expires_at": ends})
    with pytest.raises(BillingRefusedError, match="expires_at: expected a time to come") as refused:
        ledger.granted(short, ends)
    assert refused.value.refusal == "not-payable"
    granted = ledger.granted(short, ends - timedelta(seconds=1))
    ledger.take(granted, b"")
    assert ledger.granted(short, ends) == granted
