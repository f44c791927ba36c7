"""From usage and a plan to invoices, adjustments, credits and credit notes, without a log."""

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.envelope import encode_event
from schemas.invoices import MOST_LINES, InvoiceFinalized, content_hash
from schemas.plans import PlanSpec, SubscriptionSpec
from schemas.topics import MAX_RECORD_BYTES
from services.usage.billing.adjustments import Item, RatedPeriod
from services.usage.billing.bill import Account, build_bill
from services.usage.billing.catalog import PlanCatalog
from services.usage.billing.errors import BillingRefusedError
from services.usage.billing.ledger import Ledger
from services.usage.billing.periods import ends_at, period_of, starts_at
from services.usage.billing.rating import PeriodUsage, rate_period, unpriced_usage
from tests.support.billing import AT, PER_EVENT, Tenant, cells_of, plan
from tests.support.prices import book_of, price

JAN, FEB, MAR = "2026-01", "2026-02", "2026-03"

EUROS = book_of(price(currency="EUR", rates={"input": "1", "output": "1"}))


def amounts(invoice: Any) -> list[tuple[str, str, str | None, str]]:
    return [(line.kind, line.period, line.charge, str(line.amount)) for line in invoice.lines]


def refused(error: pytest.ExceptionInfo[BillingRefusedError]) -> str:
    return error.value.refusal


def test_a_month_ends_where_the_next_one_begins() -> None:
    assert starts_at("2026-12") == datetime(2026, 12, 1, tzinfo=UTC)
    assert ends_at("2026-12") == starts_at("2027-01")
    assert ends_at(JAN) == starts_at(FEB)
    assert period_of(ends_at(JAN) - timedelta(microseconds=1)) == JAN


def test_the_lines_of_a_bill_are_the_charges_of_the_plan_and_their_sum_is_the_total() -> None:
    tenant = Tenant(
        plan(
            {"name": "base", "scheme": "flat", "amount": "29"},
            PER_EVENT | {"name": "tools", "usage": {"kind": "tool"}, "unit_price": "0.015"},
            {"name": "models", "scheme": "pass_through", "markup": "0.5", "included": "1"},
            PER_EVENT | {"name": "tokens", "meter": "tokens", "unit_price": "2", "per": 1_000_000, "included": 7},
        )
    )
    tenant.use(JAN, 3, kind="tool", tool="search", provider=None, model=None)
    tenant.use(JAN, input_tokens=3_000_000, output_tokens=1_000_000)
    tenant.use(JAN, input_tokens=10**9, billable=False)

    bill = tenant.bill(JAN)

    assert amounts(bill) == [
        ("charge", JAN, "base", "29.00"),
        ("charge", JAN, "tools", "0.05"),
        ("charge", JAN, "models", "4.50"),
        ("charge", JAN, "tokens", "8.00"),
    ]
    assert str(bill.lines[1].exact_amount) == "0.045"
    assert str(bill.lines[3].exact_amount) == "7.999986"
    assert (str(bill.subtotal), str(bill.total)) == ("41.55", "41.55")
    assert (bill.lines[3].unit, bill.lines[3].quantity, bill.lines[3].included) == ("tokens", 4_000_000, 7)
    assert (bill.lines[2].unit, bill.lines[2].quantity) == ("EUR", 4)


@given(
    st.lists(st.tuples(st.decimals(0, 1000, places=12), st.integers(0, 5)), max_size=5, min_size=1),
    st.decimals(0, 10_000, places=12),
)
def test_a_period_comes_to_the_sum_of_its_lines_and_to_the_minimum_at_least(
    prices: list[tuple[Decimal, int]], minimum: Decimal
) -> None:
    charges = [
        PER_EVENT | {"name": f"c{number}", "unit_price": of_event, "included": included}
        for number, (of_event, included) in enumerate(prices)
    ]
    spec = plan(*charges, minimum=minimum)
    lines = rate_period(spec, PeriodUsage("acme", JAN, cells_of(JAN, 3, book=EUROS)), EUROS)
    total = sum(line.amount for line in lines)

    assert total >= minimum.quantize(Decimal("0.01"), "ROUND_FLOOR")
    for line, (of_event, included) in zip(lines, prices, strict=False):
        assert line.exact_amount == of_event * max(0, 3 - included)
        assert abs(line.amount - line.exact_amount) <= Decimal("0.005")
    assert len(lines) == len(charges) or (lines[-1].kind, lines[-1].charge) == ("minimum", None)


def test_usage_whose_price_nobody_knows_in_the_currency_of_the_plan_is_told_and_not_free() -> None:
    tenant = Tenant(plan({"name": "models", "scheme": "pass_through"}), book_of(price(provider="p")))
    tenant.use(JAN, 2, input_tokens=1)
    tenant.use(JAN, 3, provider="other")
    tenant.use(JAN, 9, provider="other", billable=False)
    used = PeriodUsage("acme", JAN, tenant.usage[JAN])
    assert tenant.bill(JAN).unpriced_events == 5
    assert [(each.charge, each.provider, each.events) for each in unpriced_usage(tenant.plan, used, tenant.book)] == [
        ("models", "other", 3),
        ("models", "p", 2),
    ]

    absurd = Tenant(plan(PER_EVENT | {"meter": "cached_input_tokens"}))
    absurd.use(JAN, input_tokens=1, cached_input_tokens=2)
    bill = absurd.bill(JAN)
    assert (bill.unpriced_events, bill.total) == (1, 0)


def test_usage_that_comes_late_is_a_line_of_the_next_invoice_and_only_of_that() -> None:
    tenant = Tenant()
    tenant.use(JAN, 3)
    january = tenant.finalize(JAN)
    tenant.use(JAN, 2)
    tenant.use(FEB, 1)

    february, march = tenant.finalize(FEB), tenant.bill(MAR)

    assert amounts(january) == [("charge", JAN, "events", "3.00")]
    assert amounts(february) == [("charge", FEB, "events", "1.00"), ("adjustment", JAN, "events", "2.00")]
    assert (february.lines[1].quantity, february.lines[1].invoiced) == (5, 3)
    assert amounts(march) == [("charge", MAR, "events", "0.00")]


def test_a_price_or_plan_that_is_applied_for_the_past_is_a_line_and_never_an_edit() -> None:
    tenant = Tenant(plan(PER_EVENT | {"unit_price": "2"}, minimum="5"))
    tenant.use(JAN, 1)
    january = tenant.finalize(JAN)
    assert amounts(january) == [("charge", JAN, "events", "2.00"), ("minimum", JAN, None, "3.00")]
    tenant.use(FEB, 10)

    tenant.plan = plan(PER_EVENT | {"unit_price": "1.5", "name": "calls"})
    february = tenant.finalize(FEB)

    assert amounts(february) == [
        ("charge", FEB, "calls", "15.00"),
        ("adjustment", JAN, "calls", "1.50"),
        ("adjustment", JAN, "events", "-2.00"),
        ("adjustment", JAN, None, "-3.00"),
    ]
    assert str(february.total) == "11.50"
    assert tenant.differences(JAN) == []


def test_an_invoice_is_never_below_zero_and_the_rest_lowers_the_next_one() -> None:
    tenant = Tenant()
    tenant.use(JAN, 10)
    tenant.finalize(JAN)
    tenant.usage[JAN] = []
    tenant.use(FEB, 4)
    tenant.use(MAR, 7)

    february, march = tenant.finalize(FEB), tenant.finalize(MAR)

    assert (str(february.lines[1].amount), str(february.total)) == ("-4.00", "0.00")
    (left,) = february.left_over
    assert (left.period, left.amount, left.reason) == (JAN, -6, "below_zero")
    assert (str(march.lines[1].amount), str(march.total), march.left_over) == ("-6.00", "1.00", [])


def test_what_is_in_another_currency_waits() -> None:
    tenant = Tenant()
    tenant.use(JAN, 10)
    tenant.finalize(JAN)
    tenant.plan = plan(currency="USD", from_period=FEB)
    bill = tenant.bill(FEB)

    assert amounts(bill) == [("charge", FEB, "events", "0.00"), ("adjustment", JAN, "events", "10.00")]
    assert [(each.currency, each.amount, each.reason) for each in bill.left_over] == [("EUR", -10, "currency")]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=8))
def test_whatever_comes_late_or_goes_all_is_invoiced_once_in_the_end(
    months: list[tuple[int, int, int]],
) -> None:
    """Each month: events in time, events that come late, and the price of all from then on."""
    tenant = Tenant()
    for number, (in_time, late, price_of_event) in enumerate(months, 1):
        period = f"2026-{number:02d}"
        tenant.plan = plan(PER_EVENT | {"unit_price": str(price_of_event)})
        tenant.use(period, in_time)
        invoice = tenant.finalize(period)
        assert invoice.total == sum(line.amount for line in invoice.lines) >= 0
        tenant.use(period, late)
    tenant.use("2026-12", 1000)
    tenant.finalize("2026-12")

    events = 1000 + sum(in_time + late for in_time, late, _ in months)
    invoiced = sum(each.total for each in tenant.ledger.documents("acme"))
    assert invoiced == events * months[-1][2]
    assert tenant.bill("2027-01").total == 0


def test_more_adjustments_than_a_document_has_lines_for_wait_and_it_stays_below_the_largest_record() -> None:
    text = "x" * 200
    charges = [
        {
            **PER_EVENT,
            "name": f"{number:02d}" + "n" * 60,
            "description": text,
            "scheme": "graduated",
            "tiers": [{"up_to": number, "unit_price": "999999999.999999999999"} for number in range(1, 21)],
            "beyond": {"unit_price": "1"},
        }
        for number in range(100)
    ]
    spec = plan(*charges)
    used = PeriodUsage("acme", "2030-01", cells_of("2030-01", 100, book=EUROS))
    earlier = [RatedPeriod(f"2026-{month:02d}", "EUR", rate_period(spec, used, EUROS)) for month in range(1, 13)]
    bill = build_bill(spec, used, EUROS, earlier=earlier, account=Account({}))
    invoice = Ledger().finalized(bill, AT)

    assert len(invoice.lines) == MOST_LINES
    assert [each.reason for each in invoice.left_over] == ["too_many_lines"] * 300
    assert len(encode_event(invoice)) < MAX_RECORD_BYTES / 2


def test_credits_pay_in_the_order_of_their_expiry_then_of_their_age_and_what_is_left_stays() -> None:
    tenant = Tenant()
    tenant.grant(grant_id="for-ever", amount="5")
    tenant.grant(grant_id="later", amount="5", expires_at="2026-12-01T00:00:00Z")
    tenant.grant(grant_id="soon", amount="5", expires_at="2026-03-01T00:00:00Z")
    tenant.grant(grant_id="over", amount="5", expires_at="2026-01-01T00:00:00Z")
    tenant.grant(grant_id="dollars", amount="5", currency="USD")
    tenant.use(JAN, 7)
    tenant.use(FEB, 10)

    january, february = tenant.finalize(JAN), tenant.finalize(FEB)

    assert [(use.grant_id, use.amount, use.left) for use in january.credits] == [("soon", 5, 0), ("later", 2, 3)]
    assert (str(january.subtotal), str(january.total)) == ("7.00", "0.00")
    assert [(use.grant_id, use.amount) for use in february.credits] == [("later", 3), ("for-ever", 5)]
    assert str(february.total) == "2.00"
    left = {each.grant.grant_id: each.left for each in tenant.ledger.balances("acme")}
    assert left == {"for-ever": 0, "later": 0, "soon": 0, "over": 5, "dollars": 5}


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 5)), max_size=6), st.integers(0, 200))
def test_credits_pay_no_more_than_there_is_and_no_more_than_is_due(grants: list[tuple[int, int]], events: int) -> None:
    tenant = Tenant()
    for number, (amount, months) in enumerate(grants):
        expires_at = None if months == 0 else f"2026-{months + 1:02d}-01T00:00:00Z"
        tenant.grant(grant_id=str(number), amount=str(amount), expires_at=expires_at)
    tenant.use(JAN, events)
    invoice = tenant.finalize(JAN)
    paid = sum(use.amount for use in invoice.credits)

    assert paid == min(events, sum(amount for amount, _ in grants))
    assert invoice.total == events - paid
    assert all(each.left >= 0 for each in tenant.ledger.balances("acme"))
    assert sum(each.left for each in tenant.ledger.balances("acme")) == sum(amount for amount, _ in grants) - paid


def test_the_same_grant_twice_is_one_and_other_terms_under_its_id_are_refused() -> None:
    tenant = Tenant()
    tenant.grant()
    tenant.grant()
    assert [each.left for each in tenant.ledger.balances("acme")] == [10]
    with pytest.raises(BillingRefusedError, match="of other terms") as error:
        tenant.grant(amount="11")
    assert refused(error) == "other-terms"


@pytest.mark.parametrize(("amount", "currency"), [("0", "EUR"), ("0.001", "EUR"), ("0.5", "JPY")])
def test_an_amount_that_nobody_can_pay_is_refused(amount: str, currency: str) -> None:
    with pytest.raises(BillingRefusedError, match="has coins for") as error:
        Tenant().grant(amount=amount, currency=currency)
    assert refused(error) == "not-payable"


def test_a_credit_note_gives_back_what_a_period_came_to_less_and_no_later_invoice_does() -> None:
    tenant = Tenant()
    tenant.use(JAN, 10)
    january = tenant.finalize(JAN)
    tenant.usage[JAN] = tenant.usage[JAN][:7]

    note = tenant.correct(january)

    assert (note.number, note.invoice_number, str(note.total)) == ("CN-000001", "INV-000001", "-3.00")
    assert amounts(note) == [("adjustment", JAN, "events", "-3.00")]
    assert amounts(tenant.bill(FEB)) == [("charge", FEB, "events", "0.00")]
    with pytest.raises(BillingRefusedError) as error:
        tenant.correct(january, "again")
    assert refused(error) == "nothing-to-credit"


def test_a_price_that_is_not_known_any_more_gives_nothing_back() -> None:
    tenant = Tenant(plan({"name": "models", "scheme": "pass_through"}))
    tenant.use(JAN, input_tokens=10**6)
    january = tenant.finalize(JAN)
    assert amounts(january) == [("charge", JAN, "models", "1.00")]
    tenant.book = book_of()

    with pytest.raises(BillingRefusedError) as error:
        tenant.correct(january)
    assert refused(error) == "nothing-to-credit"
    tenant.plan = plan({"name": "models", "scheme": "pass_through"}, PER_EVENT)
    tenant.use(FEB, 5)
    february = tenant.bill(FEB)
    assert amounts(february)[-1] == ("adjustment", JAN, "models", "-1.00")
    assert february.unpriced_events == 5 + 1


def test_goodwill_is_given_beside_the_usage_and_never_more_than_was_to_be_paid() -> None:
    tenant = Tenant()
    tenant.use(JAN, 10)
    january = tenant.finalize(JAN)
    document = tenant.document(january)

    def goodwill(amount: str, key: str) -> Any:
        made = tenant.ledger.goodwill(document, Decimal(amount), credit_note_id=key, reason="Outage", at=AT)
        return tenant.write(made)

    assert str(goodwill("4", "one").total) == "-4.00"
    assert amounts(tenant.bill(FEB)) == [("charge", FEB, "events", "0.00")]
    with pytest.raises(BillingRefusedError, match=r"at most 6\.00 EUR") as error:
        goodwill("6.01", "two")
    assert refused(error) == "credited-too-much"
    assert str(goodwill("6", "two").total) == "-6.00"
    with pytest.raises(BillingRefusedError) as error:
        goodwill("0.001", "three")
    assert refused(error) == "not-payable"


def test_numbers_follow_each_other_and_the_first_invoice_of_a_period_counts() -> None:
    tenant = Tenant()
    tenant.use(JAN, 1)
    first, second = tenant.finalize(JAN), tenant.finalize(FEB)
    assert [first.number, second.number] == ["INV-000001", "INV-000002"]

    tenant.write(first.model_copy(update={"number": "INV-000009"}))

    assert tenant.ledger.numbered("INV-000009") is None
    assert [each.number for each in tenant.ledger.documents("acme")] == ["INV-000001", "INV-000002"]


def test_the_hash_is_of_the_document_as_it_is_on_the_log_and_of_all_of_it() -> None:
    tenant = Tenant()
    tenant.use(JAN, 1)
    value = json.loads(encode_event(tenant.finalize(JAN)))

    assert content_hash(value) == value["sha256"]
    assert content_hash(dict(reversed(value.items()))) == value["sha256"]
    for name in value.keys() - {"sha256"}:
        assert content_hash(value | {name: "else"}) != value["sha256"]
    assert InvoiceFinalized.model_validate(value).sha256 == value["sha256"]


def test_the_same_bill_is_built_of_the_same_usage_whenever_it_is_asked_for() -> None:
    tenant = Tenant()
    tenant.use(JAN, 3)
    assert tenant.bill(JAN) == tenant.bill(JAN)
    assert tenant.ledger.finalized(tenant.bill(JAN), AT) == tenant.ledger.finalized(tenant.bill(JAN), AT)


def subscription(**fields: Any) -> SubscriptionSpec:
    return SubscriptionSpec.model_validate({"name": "s", "plan": "pro", "from_period": JAN, **fields})


def held(*applied: PlanSpec | SubscriptionSpec, tenant: str = "acme", period: str = FEB) -> str | None:
    found = PlanCatalog(applied).plan_of(tenant, period)
    return found.description if found else None


def test_a_tenant_has_the_plan_of_its_subscription_in_the_version_of_the_month() -> None:
    old, new = plan(description="old"), plan(description="new", from_period=MAR)
    assert held(old, new) is None
    assert held(old, new, subscription()) == "old"
    assert held(old, new, subscription(), period=MAR) == "new"
    assert held(old, new, subscription(), period="2025-12") is None
    assert held(old, subscription(plan="other")) is None


def test_of_two_from_one_month_the_one_that_was_applied_last_counts() -> None:
    wrong, right = plan(description="wrong"), plan(description="right")
    assert held(wrong, right, subscription()) == "right"
    assert held(right, wrong, subscription()) == "wrong"
    assert held(right, subscription(plan="none"), subscription()) == "right"


def test_a_tenants_own_goes_before_everybodys_and_a_subscription_ends_with_one_without_a_plan() -> None:
    everybody, own = subscription(), subscription(tenant_id="acme", plan="special")
    common, special = plan(description="common"), plan(name="special", description="special")
    assert held(common, special, everybody, own) == "special"
    assert held(common, special, everybody, own, tenant="other") == "common"
    ended = subscription(tenant_id="acme", plan=None, from_period=FEB)
    assert held(common, special, everybody, own, ended, period=JAN) == "special"
    assert held(common, special, everybody, own, ended) is None
    assert held(common, plan(tenant_id="acme", description="its own"), everybody) == "its own"


def test_what_was_invoiced_is_compared_by_period_charge_and_currency() -> None:
    items = [Item(JAN, None, "EUR"), Item(JAN, "a", "EUR"), Item(FEB, "a", "EUR"), Item(JAN, "a", "USD")]
    assert [(each.period, each.charge, each.currency) for each in sorted(items, key=lambda each: each.order)] == [
        (JAN, "a", "EUR"),
        (JAN, "a", "USD"),
        (JAN, None, "EUR"),
        (FEB, "a", "EUR"),
    ]
