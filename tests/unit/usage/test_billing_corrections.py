"""Credit notes, goodwill and adjustments together: what was billed for a month is what it comes to, once."""

import contextlib
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.invoices import CreditNoteIssued, InvoiceFinalized
from services.usage.billing.errors import BillingRefusedError
from services.usage.billing.rendering import as_csv, as_html
from tests.support.billing import PER_EVENT, Tenant, plan

JAN, FEB, MAR, APR = "2026-01", "2026-02", "2026-03", "2026-04"

INPUT: dict[str, Any] = {"name": "in", "scheme": "per_unit", "meter": "input_tokens"}
OUTPUT: dict[str, Any] = {"name": "out", "scheme": "per_unit", "meter": "output_tokens"}


def amounts(document: Any) -> list[tuple[str, str | None, str]]:
    return [(line.period, line.charge, str(line.amount)) for line in document.lines]


def nothing_to_credit(tenant: Tenant, invoice: InvoiceFinalized, key: str = "k") -> None:
    with pytest.raises(BillingRefusedError) as error:
        tenant.correct(invoice, key)
    assert error.value.refusal == "nothing-to-credit"


def test_a_month_that_comes_to_more_gives_nothing_back_whatever_one_of_its_charges_comes_to() -> None:
    tenant = Tenant(plan(INPUT | {"unit_price": "3"}, OUTPUT | {"unit_price": "1"}))
    tenant.use(JAN, input_tokens=10, output_tokens=10)
    january = tenant.finalize(JAN)
    assert amounts(january) == [(JAN, "in", "30.00"), (JAN, "out", "10.00")]

    tenant.plan = plan(INPUT | {"unit_price": "1.5"}, OUTPUT | {"unit_price": "9"})

    nothing_to_credit(tenant, january)
    assert amounts(tenant.bill(FEB))[2:] == [(JAN, "in", "-15.00"), (JAN, "out", "80.00")]  # 15 + 90 less 40


def test_a_minimum_that_is_used_up_by_late_usage_gives_nothing_back() -> None:
    tenant = Tenant(plan(minimum="10"))
    tenant.use(JAN, 4)
    january = tenant.finalize(JAN)
    assert amounts(january) == [(JAN, "events", "4.00"), (JAN, None, "6.00")]
    tenant.use(JAN, 2)
    nothing_to_credit(tenant, january)
    tenant.use(JAN, 6)
    nothing_to_credit(tenant, january)  # 12 now
    assert tenant.bill(FEB).total == 10 + 2  # the minimum of February, and what January comes to more


def test_a_plan_for_the_past_that_comes_to_a_little_more_gives_nothing_back() -> None:
    tenant = Tenant(plan({"name": "base", "scheme": "flat", "amount": "20"}))
    january = tenant.finalize(JAN)
    tenant.plan = plan({"name": "flat", "scheme": "flat", "amount": "20.13"})
    nothing_to_credit(tenant, january)


def test_the_lines_of_a_note_are_of_all_charges_and_nothing_of_them_is_made_again() -> None:
    tenant = Tenant(plan(INPUT | {"unit_price": "3"}, OUTPUT | {"unit_price": "1"}))
    tenant.use(JAN, input_tokens=10, output_tokens=10)
    january = tenant.finalize(JAN)
    tenant.plan = plan(INPUT | {"unit_price": "1"}, OUTPUT | {"unit_price": "1.5"})

    note = tenant.correct(january)  # 10 + 15 of 40

    assert amounts(note) == [(JAN, "in", "-20.00"), (JAN, "out", "5.00")]
    assert str(note.total) == "-15.00"
    assert amounts(tenant.bill(FEB)) == [(FEB, "in", "0.00"), (FEB, "out", "0.00")]
    nothing_to_credit(tenant, january, "again")


def test_what_credits_have_paid_goes_back_to_them() -> None:
    tenant = Tenant(plan(PER_EVENT | {"unit_price": "2"}))
    tenant.grant(amount="100", description="Paid in advance")
    tenant.use(JAN, 10)
    january = tenant.finalize(JAN)
    assert (str(january.subtotal), str(january.total), tenant.left()) == ("20.00", "0.00", {"g": 80})

    tenant.plan = plan()
    note = tenant.correct(january)

    assert (amounts(note), str(note.total)) == ([(JAN, "events", "-10.00")], "0.00")
    assert [(use.grant_id, str(use.amount), str(use.left)) for use in note.credits] == [("g", "10.00", "90.00")]
    assert tenant.left() == {"g": 90}
    assert tenant.bill(FEB).left_over == []
    assert as_csv(note).splitlines()[-1] == "CN-000001,acme,credit,2026-01,g,Paid in advance,,,,10.00,10.00,EUR"
    assert "Back to credit Paid in advance" in as_html(note)


def test_money_is_given_back_before_credits_and_those_that_expire_last_before_the_others() -> None:
    tenant = Tenant(plan(PER_EVENT | {"unit_price": "4"}))
    tenant.grant(grant_id="soon", amount="15", expires_at="2026-02-01T00:00:00Z")
    tenant.grant(grant_id="later", amount="20", expires_at="2027-01-01T00:00:00Z")
    tenant.use(JAN, 10)
    january = tenant.finalize(JAN)
    assert (str(january.total), tenant.left()) == ("5.00", {"soon": 0, "later": 0})

    tenant.plan = plan(PER_EVENT | {"unit_price": "1"})
    note = tenant.correct(january)

    assert str(note.total) == "-5.00"
    assert [(use.grant_id, use.amount) for use in note.credits] == [("later", 20), ("soon", 5)]
    tenant.use(FEB, 30)
    february = tenant.finalize(FEB)
    assert [use.grant_id for use in february.credits] == ["later"]  # what came back has its expiry still
    assert (str(february.total), tenant.left()) == ("10.00", {"soon": 5, "later": 0})


def test_what_was_invoiced_as_an_adjustment_is_given_back_by_a_note_on_the_invoice_of_its_month() -> None:
    tenant = Tenant(plan(PER_EVENT | {"unit_price": "5"}))
    january = tenant.finalize(JAN)
    tenant.use(JAN, 2)
    february = tenant.finalize(FEB)
    assert (str(january.total), str(february.total)) == ("0.00", "10.00")
    tenant.plan = plan(PER_EVENT | {"unit_price": "2"})

    nothing_to_credit(tenant, february)
    note = tenant.correct(january)

    assert (amounts(note), str(note.total)) == ([(JAN, "events", "-6.00")], "-6.00")
    assert tenant.bill(MAR).left_over == []
    with pytest.raises(BillingRefusedError, match=r"at most 4\.00 EUR"):
        tenant.goodwill(february, "4.01")
    assert amounts(tenant.goodwill(february, "4")) == [(JAN, None, "-4.00")]


def test_a_month_is_given_back_also_where_its_invoice_was_lowered_by_an_earlier_one() -> None:
    tenant = Tenant()
    tenant.use(JAN, 20)
    tenant.finalize(JAN)
    tenant.usage[JAN] = tenant.usage[JAN][:12]
    tenant.use(FEB, 10)
    february = tenant.finalize(FEB)
    assert str(february.total) == "2.00"  # 10 less 8 of January
    tenant.usage[FEB] = []

    assert str(tenant.correct(february).total) == "-10.00"
    assert sum(each.total for each in tenant.ledger.documents("acme")) == 12


def test_goodwill_and_a_later_correction_give_back_no_more_than_was_paid() -> None:
    tenant = Tenant()
    tenant.use(JAN, 5)
    january = tenant.finalize(JAN)
    tenant.goodwill(january, "5")
    tenant.usage[JAN] = tenant.usage[JAN][:1]
    tenant.use(FEB, 10)

    nothing_to_credit(tenant, january)
    assert amounts(tenant.bill(FEB)) == [(FEB, "events", "10.00")]
    assert tenant.bill(FEB).left_over == []
    tenant.use(JAN, 6)
    assert amounts(tenant.bill(FEB)) == [(FEB, "events", "10.00"), (JAN, "events", "2.00")]


def test_goodwill_of_a_part_leaves_the_rest_to_be_corrected() -> None:
    tenant = Tenant()
    tenant.use(JAN, 5)
    january = tenant.finalize(JAN)
    tenant.goodwill(january, "2")
    tenant.usage[JAN] = []
    tenant.use(FEB, 10)
    assert amounts(tenant.bill(FEB)) == [(FEB, "events", "10.00"), (JAN, "events", "-3.00")]
    assert str(tenant.correct(january).total) == "-3.00"


STEP = st.one_of(
    st.tuples(st.just("use"), st.integers(0, 4), st.integers(0, 9)),
    st.tuples(st.just("lose"), st.integers(0, 4), st.integers(1, 3)),
    st.tuples(st.just("price"), st.integers(0, 9), st.integers(0, 9)),
    st.tuples(st.just("correct"), st.integers(0, 4), st.just(0)),
    st.tuples(st.just("goodwill"), st.integers(0, 4), st.integers(1, 30)),
)
MONTHS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 40), st.lists(STEP, max_size=8)), min_size=1, max_size=5)


@given(MONTHS)
def test_whatever_is_done_in_whatever_order_each_month_is_billed_once(
    months: Sequence[tuple[int, int, Sequence[tuple[str, int, int]]]],
) -> None:
    """Each month: what is used of it, what is granted in it, and what is done once its invoice is there."""
    tenant = Tenant(_priced(3, 3))
    invoices: list[InvoiceFinalized] = []
    notes: list[CreditNoteIssued] = []
    for number, (used, granted, steps) in enumerate(months, 1):
        period = f"2026-{number:02d}"
        if granted:
            expires_at = None if granted % 2 else f"2026-{number + 1:02d}-01T00:00:00Z"
            tenant.grant(grant_id=period, amount=str(granted), expires_at=expires_at)
        tenant.use(period, 3, input_tokens=used, output_tokens=9 - used)
        invoices.append(tenant.finalize(period))
        for which, (step, one, other) in enumerate(steps):
            about = invoices[one % number]
            match step:
                case "use":
                    tenant.use(about.period, input_tokens=other, output_tokens=9 - other)
                case "lose":
                    tenant.usage[about.period] = tenant.usage[about.period][other:]
                case "price":
                    tenant.plan = _priced(one, other)
                case _:
                    with contextlib.suppress(BillingRefusedError):
                        key = f"{number}-{which}"
                        correction = step == "correct"
                        notes.append(
                            tenant.correct(about, key) if correction else tenant.goodwill(about, str(other), key)
                        )
            _check(tenant, invoices, notes)

    tenant.use("2026-12", 1000, input_tokens=1, output_tokens=1)
    tenant.plan = _priced(5, 5)
    invoices.append(tenant.finalize("2026-12"))
    _check(tenant, invoices, notes)
    assert tenant.bill("2027-01").left_over == []
    for period in {each.period for each in invoices}:
        comes_to = sum(line.amount for rated in tenant.rated([period]) for line in rated.lines)
        assert _billed(invoices, notes, period) == max(comes_to, _goodwill(notes, period))


def _check(tenant: Tenant, invoices: Sequence[InvoiceFinalized], notes: Sequence[CreditNoteIssued]) -> None:
    for note in notes:
        assert sum(line.amount for line in note.lines) < 0 >= note.total
        returned = sum(use.amount for use in note.credits)
        assert sum(line.amount for line in note.lines) == note.total - returned
    assert sum(each.total for each in (*invoices, *notes)) >= 0
    for balance in tenant.ledger.balances("acme"):
        used = _of_grant(invoices, balance.grant.grant_id) - _of_grant(notes, balance.grant.grant_id)
        assert used >= 0
        assert balance.left == balance.grant.amount - used >= 0
    for period in {line.period for each in invoices for line in each.lines}:
        assert _billed(invoices, notes, period) >= _goodwill(notes, period)


def _billed(invoices: Sequence[InvoiceFinalized], notes: Sequence[CreditNoteIssued], period: str) -> Decimal:
    lines = [line for each in (*invoices, *notes) for line in each.lines if line.period == period]
    return sum((line.amount for line in lines if line.kind != "goodwill"), Decimal(0))


def _goodwill(notes: Sequence[CreditNoteIssued], period: str) -> Decimal:
    lines = [line for each in notes for line in each.lines if line.period == period]
    return -sum((line.amount for line in lines if line.kind == "goodwill"), Decimal(0))


def _of_grant(documents: Sequence[InvoiceFinalized | CreditNoteIssued], grant_id: str) -> Decimal:
    uses = [use for each in documents for use in each.credits if use.grant_id == grant_id]
    return sum((use.amount for use in uses), Decimal(0))


def _priced(of_input: int, of_output: int) -> Any:
    charges = (INPUT | {"unit_price": str(of_input)}, OUTPUT | {"unit_price": str(of_output)})
    return plan(*charges, minimum="7")
