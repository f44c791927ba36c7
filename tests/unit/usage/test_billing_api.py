"""The routes of billing over a store that answers from a list and a log in memory."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any, cast

import httpx
import pytest
from fastapi import FastAPI

from schemas.envelope import encode_event
from schemas.plans import SubscriptionSpec
from services.runtime.errors import UnavailableError
from services.runtime.pricing.book import PriceBook
from services.runtime.web import install_problems
from services.usage.billing.api import install_billing
from services.usage.billing.billing import Billing
from services.usage.billing.catalog import PlanCatalog, PlanDefinition
from services.usage.billing.ledger import Ledger, LedgerEvent
from services.usage.queries import UsageGroup, UsageQuery
from services.usage.retention import Retention
from services.usage.store import TooMuchAskedError
from tests.support.billing import cells_of, plan
from tests.support.prices import book_of

JAN, FEB, MAR = "2026-01", "2026-02", "2026-03"
ALL = SubscriptionSpec(name="all", plan="pro", from_period=JAN)
COUNTS = dict.fromkeys(
    ("billable_events", "input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens"), 0
)


class Around:
    """Store, log, prices, plans and progress, in one."""

    def __init__(self) -> None:
        self.ledger_now = Ledger()
        self.events: dict[str, int] = {}
        self.sums: dict[str, int] = {}
        self.asked: list[UsageQuery] = []
        self.read = 0
        self.trouble: Exception | None = None
        self.now = datetime(2026, 3, 1, tzinfo=UTC)
        self.kept_months: int | None = None
        self.applied: list[PlanDefinition] = [plan(), ALL]
        self._lock = asyncio.Lock()

    async def query(self, query: UsageQuery) -> Sequence[UsageGroup]:
        self.asked.append(query)
        if self.trouble is not None:
            raise self.trouble
        await asyncio.sleep(0)
        return [
            UsageGroup(
                group={"bucket": f"{month}-01T00:00:00Z"},
                events=count,
                cells=cells_of(month, count, book=self.book()),
                **COUNTS,
            )
            for month, count in (self.events | ({} if query.from_rows else self.sums)).items()
            if query.since is not None and query.until is not None
            if query.since.strftime("%Y-%m") <= month < query.until.strftime("%Y-%m")
        ]

    def kept_from(self, now: datetime) -> datetime | None:
        return Retention(self.kept_months).kept_from(now)

    async def ledger(self) -> Ledger:
        return self.ledger_now

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator["Writer"]:
        async with self._lock:
            yield Writer(self.ledger_now)

    def book(self) -> PriceBook:
        return book_of()

    def catalog(self) -> PlanCatalog:
        return PlanCatalog(self.applied)

    async def catch_up(self) -> None:
        self.read += 1

    async def positions(self) -> list[int]:
        return [3]

    async def read_all(self) -> list[int]:
        self.read += 1
        return [7]


class Writer:
    """As one of the log: what is written is in the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    async def write(self, event: LedgerEvent, at: datetime) -> None:
        await asyncio.sleep(0)
        self.ledger.take(event, encode_event(event))


@pytest.fixture
def around() -> Around:
    return Around()


@pytest.fixture
async def http(around: Around) -> AsyncIterator[httpx.AsyncClient]:
    app, given = FastAPI(), cast("Any", around)
    install_problems(app)
    billing = Billing(given, given, prices=given, plans=given, progress=given, retention=given, now=lambda: around.now)
    install_billing(app, billing)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://usage") as client:
        yield client


def problem(response: httpx.Response, status: int, slug: str) -> str:
    assert (response.status_code, response.json()["type"]) == (status, f"urn:turnlog:problem:{slug}")
    return response.json()["detail"]


async def finalize(http: httpx.AsyncClient, period: str = JAN, **fields: Any) -> httpx.Response:
    return await http.post("/invoices", json={"period": period, **fields})


async def test_a_month_is_read_from_the_rows_and_earlier_ones_where_their_sums_are_not_as_invoiced(
    http: httpx.AsyncClient, around: Around
) -> None:
    around.events = {JAN: 2, FEB: 5}
    january = (await finalize(http)).json()
    around.events[JAN] = 3
    february = (await finalize(http, FEB)).json()

    assert [line["amount"] for line in january["lines"]] == ["2.00"]
    assert [(line["period"], line["amount"]) for line in february["lines"]] == [(FEB, "5.00"), (JAN, "1.00")]
    assert [(query.from_rows, query.bucket) for query in around.asked] == [
        (True, None),
        (True, None),
        (False, "month"),
        (True, None),
    ]
    assert (february["usage_ends"], around.read) == ([7], 6)


async def test_sums_that_are_not_those_of_the_rows_adjust_nothing(http: httpx.AsyncClient, around: Around) -> None:
    around.events = {JAN: 2, FEB: 5}
    await finalize(http)
    around.sums = {JAN: 4}
    february = (await finalize(http, FEB)).json()

    assert [(line["period"], line["amount"]) for line in february["lines"]] == [(FEB, "5.00")]


async def test_those_who_ask_at_once_get_one_invoice(http: httpx.AsyncClient, around: Around) -> None:
    around.events = {JAN: 2}
    answers = await asyncio.gather(*(finalize(http) for _ in range(5)))

    assert len({answer.content for answer in answers}) == 1
    assert len(around.ledger_now.documents("default")) == 1


async def test_a_draft_reads_nothing_to_its_end_and_writes_nothing(http: httpx.AsyncClient, around: Around) -> None:
    around.events = {JAN: 2}
    draft = await http.get("/invoices/draft", params={"period": JAN})

    assert (draft.json()["total"], draft.json()["usage_ends"]) == ("2.00", [3])
    assert (around.read, around.ledger_now.documents("default")) == (0, [])


@pytest.mark.parametrize(("form", "kind"), [("json", "application/json"), ("csv", "text/csv"), ("html", "text/html")])
async def test_a_document_comes_in_the_form_that_is_asked_for(http: httpx.AsyncClient, form: str, kind: str) -> None:
    await finalize(http)
    for path in ("/invoices/INV-000001", f"/invoices/draft?period={FEB}"):
        response = await http.get(path, params={**httpx.URL(f"http://h{path}").params, "form": form})
        assert response.headers["content-type"].startswith(kind)
        assert "events" in response.text


async def test_pages_hold_every_document_once_the_latest_first(http: httpx.AsyncClient, around: Around) -> None:
    around.now = datetime(2027, 1, 1, tzinfo=UTC)
    for month in range(1, 8):
        await finalize(http, f"2026-{month:02d}")
    parameters, told = {"limit": "3"}, []
    while True:
        page = (await http.get("/invoices", params=parameters)).json()
        told += [each["number"] for each in page["items"]]
        if page["next_cursor"] is None:
            break
        parameters["cursor"] = page["next_cursor"]
    assert told == [f"INV-{number:06d}" for number in range(7, 0, -1)]


async def test_what_is_not_there_or_cannot_be_is_told(http: httpx.AsyncClient, around: Around) -> None:
    problem(await http.get("/invoices/INV-000001"), 404, "no-such-invoice")
    problem(await http.get("/invoices", params={"cursor": "INV-000001"}), 404, "no-such-invoice")
    assert "ends at 2026-04-01" in problem(await finalize(http, "2026-03"), 409, "period-not-over")
    problem(await finalize(http, "2025-12"), 409, "no-plan")
    await finalize(http)
    problem(await http.get("/invoices/INV-000001", params={"tenant_id": "other"}), 404, "no-such-invoice")
    note = {"key": "k", "reason": "r"}
    problem(await http.post("/invoices/INV-000001/credit-notes", json=note), 409, "nothing-to-credit")
    problem(await http.post("/invoices/INV-000001/credit-notes", json=note | {"amount": "1"}), 409, "credited-too-much")
    grant = {"grant_id": "g", "kind": "grant", "currency": "EUR", "amount": "0"}
    problem(await http.post("/credits", json=grant), 422, "not-payable")


async def test_a_credit_note_is_of_an_invoice_and_not_of_another_one(http: httpx.AsyncClient, around: Around) -> None:
    around.events = {JAN: 2}
    await finalize(http)
    note = {"key": "k", "reason": "r", "amount": "1"}
    issued = (await http.post("/invoices/INV-000001/credit-notes", json=note)).json()
    problem(await http.post(f"/invoices/{issued['number']}/credit-notes", json=note), 404, "no-such-invoice")


async def test_while_something_is_down_the_answer_says_so(http: httpx.AsyncClient, around: Around) -> None:
    around.trouble = UnavailableError("ClickHouse does not answer")
    problem(await http.get("/invoices/draft", params={"period": JAN}), 503, "unavailable")
    around.trouble = TooMuchAskedError("it would read more than 7 rows")
    problem(await http.get("/invoices/draft", params={"period": JAN}), 422, "too-much-asked")
    assert around.ledger_now.documents("default") == []


async def test_a_month_whose_usage_is_not_kept_stays_as_it_was_invoiced(
    http: httpx.AsyncClient, around: Around
) -> None:
    around.events = {JAN: 2, FEB: 5}
    january = (await finalize(http)).json()
    around.kept_months, around.now = 1, datetime(2026, 3, 31, tzinfo=UTC)
    around.events[JAN] = 0
    february = (await finalize(http, FEB)).json()
    assert [(line["period"], line["amount"]) for line in february["lines"]] == [(FEB, "5.00")]
    assert (await finalize(http)).json() == january
    draft = await http.get("/invoices/draft", params={"period": JAN, "tenant_id": "other"})
    assert "2026-01 is not kept" in problem(draft, 409, "usage-not-kept")
    note = {"key": "k", "reason": "r"}
    refused = await http.post(f"/invoices/{january['number']}/credit-notes", json=note)
    problem(refused, 409, "usage-not-kept")
    goodwill = await http.post(f"/invoices/{january['number']}/credit-notes", json=note | {"amount": "1"})
    assert goodwill.json()["total"] == "-1.00", goodwill.text


async def drafted(http: httpx.AsyncClient, period: str, **parameters: str) -> httpx.Response:
    return await http.get("/invoices/draft", params={"period": period, **parameters})


def lines(response: httpx.Response) -> list[tuple[str, str, str]]:
    return [(line["period"], line["charge"], line["amount"]) for line in response.json()["lines"]]


async def test_what_comes_late_of_a_customer_who_has_left_is_an_invoice_of_adjustments_alone(
    http: httpx.AsyncClient, around: Around
) -> None:
    around.now = datetime(2026, 4, 1, tzinfo=UTC)
    around.events = {JAN: 2}
    await finalize(http)
    around.applied.append(ALL.model_copy(update={"plan": None, "from_period": FEB}))
    assert "waits" not in problem(await drafted(http, FEB), 409, "no-plan")

    around.events = {JAN: 5, FEB: 7}
    draft, february = await drafted(http, FEB), await finalize(http, FEB)

    assert lines(draft) == lines(february) == [(JAN, "events", "3.00")]
    assert {name: february.json()[name] for name in ("number", "total", "currency", "plan")} == {
        "number": "INV-000002",
        "total": "3.00",
        "currency": "EUR",
        "plan": "pro",
    }
    assert (await finalize(http, FEB)).content == february.content
    around.events[JAN] = 1
    for refused in (await drafted(http, MAR), await finalize(http, MAR)):
        assert "; -4.00 EUR of 2026-01 waits: a credit note" in problem(refused, 409, "no-plan")
    note = await http.post("/invoices/INV-000001/credit-notes", json={"key": "k", "reason": "r"})
    assert note.json()["total"] == "-4.00"


async def test_what_comes_late_of_a_month_in_another_currency_is_an_invoice_in_that_one(
    http: httpx.AsyncClient, around: Around
) -> None:
    around.now = datetime(2026, 4, 1, tzinfo=UTC)
    around.events = {JAN: 2, FEB: 1, MAR: 1}
    around.applied = [plan(), plan(currency="USD", from_period=FEB), ALL]
    await finalize(http)
    around.events[JAN] = 5
    early = await finalize(http, MAR, currency="EUR")
    assert (lines(early), early.json()["currency"]) == ([(JAN, "events", "3.00")], "EUR")
    around.events[JAN] = 6

    february = await finalize(http, FEB)
    (waits,) = february.json()["left_over"]
    euros = await finalize(http, FEB, currency="EUR")
    march = await finalize(http, MAR)

    assert lines(february) == [(FEB, "events", "1.00")]
    assert (waits["currency"], waits["amount"], waits["reason"]) == ("EUR", "1.00", "currency")
    assert (lines(euros), euros.json()["number"]) == ([(JAN, "events", "1.00")], "INV-000004")
    assert (await finalize(http, FEB, currency="EUR")).content == euros.content
    assert (await finalize(http, FEB, currency="USD")).content == february.content
    assert (lines(march), march.json()["left_over"]) == ([(MAR, "events", "1.00")], [])
    problem(await drafted(http, FEB, currency="EUR"), 409, "already-finalized")
    around.now = datetime(2026, 5, 1, tzinfo=UTC)
    problem(await finalize(http, "2026-04", currency="EUR"), 409, "nothing-to-invoice")
    assert around.ledger_now.periods("default") == [JAN, FEB, MAR]


async def test_a_month_whose_plan_has_another_currency_by_now_is_not_invoiced_again(
    http: httpx.AsyncClient, around: Around
) -> None:
    around.events = {JAN: 2}
    january = await finalize(http)
    around.applied.append(plan(currency="USD"))
    assert (await finalize(http)).content == january.content
    problem(await finalize(http, currency="USD"), 409, "nothing-to-invoice")
    waits = problem(await finalize(http, FEB, currency="JPY"), 409, "nothing-to-invoice")
    assert "; 2.00 USD of 2026-01 waits: ask for it with currency USD" in waits


async def test_a_subscription_to_a_plan_that_does_not_exist_is_told(http: httpx.AsyncClient, around: Around) -> None:
    around.applied.append(ALL.model_copy(update={"plan": "prO", "from_period": FEB}))
    assert "its subscription is to 'prO', and there is no plan" in problem(await drafted(http, FEB), 409, "no-plan")
    assert (await drafted(http, JAN)).status_code == 200


async def test_the_draft_of_a_month_that_is_invoiced_says_so(http: httpx.AsyncClient, around: Around) -> None:
    around.events = {JAN: 2}
    assert (await drafted(http, JAN)).json().get("finalized_as") is None
    await finalize(http)
    around.events[JAN] = 9
    again = await drafted(http, JAN)
    assert (again.json()["finalized_as"], lines(again)) == ("INV-000001", [(JAN, "events", "9.00")])
    assert "The invoice of the month is INV-000001." in (await drafted(http, JAN, form="html")).text
    assert lines(await drafted(http, FEB)) == [(FEB, "events", "0.00"), (JAN, "events", "7.00")]


async def test_the_key_of_a_credit_note_with_other_terms_is_refused(http: httpx.AsyncClient, around: Around) -> None:
    around.events = {JAN: 5}
    await finalize(http)
    path, goodwill = "/invoices/INV-000001/credit-notes", {"key": "k", "reason": "r", "amount": "2"}
    issued = await http.post(path, json=goodwill)
    assert (await http.post(path, json=goodwill | {"amount": "2.00"})).content == issued.content
    around.events[JAN] = 1
    correction = {"key": "c", "reason": "r"}
    corrected = await http.post(path, json=correction)
    assert (await http.post(path, json=correction)).content == corrected.content
    for other in (goodwill | {"amount": "3"}, goodwill | {"reason": "s"}, {"key": "k", "reason": "r"}):
        assert "CN-000001" in problem(await http.post(path, json=other), 409, "other-terms")
    problem(await http.post(path, json=correction | {"amount": "3"}), 409, "other-terms")
    assert len(around.ledger_now.documents("default")) == 3


async def test_pages_of_grants_are_as_long_as_is_asked_for(http: httpx.AsyncClient) -> None:
    for number in range(7):
        terms = {"grant_id": f"g{number}", "kind": "grant", "currency": "EUR", "amount": "1"}
        assert (await http.post("/credits", json=terms)).status_code == 200
    parameters, told = {"limit": "3"}, list[list[str]]()
    while True:
        page = (await http.get("/credits", params=parameters)).json()
        told.append([each["grant"]["grant_id"] for each in page["items"]])
        if page["next_cursor"] is None:
            break
        parameters["cursor"] = page["next_cursor"]
    assert told == [["g0", "g1", "g2"], ["g3", "g4", "g5"], ["g6"]]
    assert len((await http.get("/credits")).json()["items"]) == 7
    problem(await http.get("/credits", params={"cursor": "g9"}), 404, "no-such-grant")
    problem(await http.get("/credits", params={"limit": "0"}), 422, "invalid-request")
