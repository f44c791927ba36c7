"""Invoices as CSV and as a page to print."""

import csv
import io
import re
from decimal import Decimal
from typing import Any

import pytest

from schemas.invoices import EXAMPLES
from services.usage.billing.rendering import CSV_COLUMNS, Shown, as_csv, as_html
from tests.support.billing import AT, PER_EVENT, Tenant, plan

JAN, FEB = "2026-01", "2026-02"
EVIL = "<script src=//evil.example>&\"'"


@pytest.fixture
def documents() -> list[Shown]:
    """A draft, two invoices, the second with an adjustment, a credit and usage without a price, and a credit note."""
    tiers: dict[str, Any] = {"tiers": [{"up_to": 2, "unit_price": "1", "flat_fee": "7"}], "beyond": {"unit_price": "2"}}
    tenant = Tenant(
        plan(
            {**PER_EVENT, **tiers, "name": "events", "scheme": "graduated", "description": EVIL, "included": 1},
            {"name": "models", "scheme": "pass_through"},
            minimum="5",
        )
    )
    draft = tenant.bill(JAN)
    tenant.use(JAN, 4)
    january = tenant.finalize(JAN)
    tenant.grant(amount="3", description=EVIL, expires_at="2027-01-01T00:00:00Z")
    tenant.use(JAN, 1)
    tenant.use(FEB, 2, provider="nobody")
    tenant.use(FEB, 1, input_tokens=1, cached_input_tokens=2)
    february = tenant.finalize(FEB)
    note = tenant.ledger.goodwill(tenant.document(february), Decimal(1), credit_note_id="k", reason=EVIL, at=AT)
    return [draft, january, february, note]


def rows(document: Shown) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(as_csv(document))))


def test_the_amounts_of_the_rows_add_up_to_the_total(documents: list[Shown]) -> None:
    for document in documents:
        assert sum(Decimal(row["amount"]) for row in rows(document)) == document.total
        assert {row["currency"] for row in rows(document)} == {document.currency}


def test_a_row_has_what_the_line_has(documents: list[Shown]) -> None:
    draft, january, february, _ = documents
    first = rows(january)[0]
    assert tuple(first) == CSV_COLUMNS
    assert (first["number"], rows(draft)[0]["number"]) == ("INV-000001", "")
    assert (first["quantity"], first["included"], first["amount"]) == ("4", "1", "11.00")
    assert first["description"] == EVIL
    assert [row["kind"] for row in rows(february)] == ["charge", "charge", "adjustment", "credit"]
    assert rows(february)[-1]["amount"] == "-3.00"


def test_a_page_shows_every_amount_and_the_hash(documents: list[Shown]) -> None:
    for document in documents:
        page = as_html(document)
        for line in document.lines:
            assert f"{line.amount:,f}" in page
        assert f"{document.total:,f} EUR" in page
    draft, january, february, note = map(as_html, documents)
    assert "Draft of an invoice" in draft
    assert "SHA-256" not in draft
    assert f"SHA-256 {getattr(documents[1], 'sha256', '')}" in january
    assert "2 at 1 + 7" in january
    assert "Adjustment of 2026-01: " in february
    assert "invoiced before: 11.00" in february
    assert "nobody knows their price" in february
    assert "Credit note CN-000001" in note
    assert "Of invoice</dt><dd>INV-000002" in note


def test_a_page_needs_nothing_from_elsewhere_and_text_is_only_text(documents: list[Shown]) -> None:
    for document in documents:
        page = as_html(document)
        assert "<script" not in page
        assert not re.search(r"<(link|img|iframe|object)\b|@import|url\(|\bsrc=[^/]|https?:", page)
    assert "&lt;script src=//evil.example&gt;" in as_html(documents[1])


def test_the_examples_of_the_contract_can_be_shown() -> None:
    for example in EXAMPLES[:2]:
        document: Any = example
        assert document.number in as_html(document)
        assert document.number in as_csv(document)
