"""Invoices on the real broker: each once and in a row, whatever is killed and whoever else writes."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from schemas.invoices import Bill, content_hash
from services.runtime.errors import UnavailableError
from services.runtime.failpoints import Failpoints
from services.runtime.kafka import KafkaClients
from services.usage.billing.invoice_log import InvoiceLog
from tests.support.billing import AT, Tenant
from tests.support.installation import free_ports
from tests.support.usage_service import UsageInstallation, spent, usage_installation
from tests.support.waiting import eventually

pytestmark = pytest.mark.broker

JAN, FEB = "2026-01", "2026-02"

PLAN: dict[str, Any] = {
    "type": "plan.applied",
    "name": "pro",
    "currency": "EUR",
    "from_period": JAN,
    "charges": [
        {"name": "calls", "scheme": "per_unit", "meter": "events", "unit_price": "0.5"},
        {"name": "models", "scheme": "pass_through", "markup": "0.1"},
    ],
}
EVERYBODY: dict[str, Any] = {"type": "subscription.applied", "name": "all", "plan": "pro", "from_period": JAN}
PRICE: dict[str, Any] = {
    "name": "small",
    "model": "small",
    "currency": "EUR",
    "effective_from": "2026-01-01T00:00:00Z",
    "rates": {"input": "1000", "output": "0"},
}


@pytest.fixture
async def installation(kafka: str, prefix: str, tmp_path: Path) -> AsyncIterator[UsageInstallation]:
    """With a plan and prices for one of two models."""
    async with usage_installation(kafka, prefix, tmp_path) as made:
        await made.log.publish("plans", PLAN, key="pro@1")
        await made.log.publish("plans", EVERYBODY, key="all@1")
        await made.log.publish("prices", PRICE, key="small@1")
        yield made


class Office:
    """The routes of billing of one service."""

    def __init__(self, installation: UsageInstallation, port: int) -> None:
        self._http = installation.http
        self._url = f"http://127.0.0.1:{port}"

    async def ask(self, method: str, path: str, status: int = 200, **options: Any) -> dict[str, Any]:
        async with self._http.request(method, self._url + path, **options) as response:
            body: dict[str, Any] = await response.json()
            assert response.status == status, body
            return body

    async def until_ready(self) -> None:
        async def ready() -> bool:
            async with self._http.get(f"{self._url}/readyz") as response:
                return response.status == 200

        await eventually(ready, "readiness", seconds=60)

    async def draft(self, period: str = JAN, **parameters: str) -> dict[str, Any]:
        return await self.ask("GET", "/invoices/draft", params={"period": period, **parameters})

    async def finalize(self, period: str = JAN, status: int = 200, **fields: Any) -> dict[str, Any]:
        return await self.ask("POST", "/invoices", status, json={"period": period, **fields})

    async def refused(self, slug: str, call: Any) -> str:
        body = await call
        assert body["type"] == f"urn:turnlog:problem:{slug}"
        return body["detail"]


def small(number: int, **fields: Any) -> dict[str, Any]:
    """An event of a model that has a price: a cent for ten tokens of input."""
    return spent(number, model="small", **fields)


def amounts(document: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(line["period"], line["charge"], line["amount"]) for line in document["lines"]]


async def test_usage_on_the_log_becomes_an_invoice_and_what_comes_later_is_in_the_next_one(
    installation: UsageInstallation,
) -> None:
    await installation.publish(*(small(number) for number in range(10)))
    async with installation.service() as service:
        await installation.until_counted(service.port, 10)
        office = Office(installation, service.port)
        draft = await office.draft()
        assert amounts(draft) == [(JAN, "calls", "5.00"), (JAN, "models", "0.05")]
        assert (draft["total"], draft["unpriced_events"]) == ("5.05", 0)

        january = await office.finalize()
        again = await office.finalize()
        listed = (await office.ask("GET", "/invoices"))["items"]

        assert january == again == await office.ask("GET", "/invoices/INV-000001")
        assert {name: january[name] for name in ("lines", "total")} == {
            "lines": [{k: v for k, v in line.items() if v is not None} for line in draft["lines"]],
            "total": "5.05",
        }
        assert [(each["number"], each["kind"], each["total"]) for each in listed] == [("INV-000001", "invoice", "5.05")]
        assert sum(january["usage_ends"]) >= 10

        await installation.publish(small(10), small(11), small(1000, occurred_at="2026-02-03T00:00:00Z"))
        february = await office.finalize(FEB)
        assert amounts(february) == [
            (FEB, "calls", "0.50"),
            (FEB, "models", "1.10"),
            (JAN, "calls", "1.00"),
            (JAN, "models", "0.02"),
        ]
        assert amounts(await office.draft("2026-03")) == [("2026-03", "calls", "0.00"), ("2026-03", "models", "0.00")]

    written = await installation.log.events("invoices")
    assert [each["number"] for each in written] == ["INV-000001", "INV-000002"]
    for event in written:
        document = {name: value for name, value in event.items() if name not in ("position", "headers", "record_key")}
        assert content_hash(document) == event["sha256"]


async def test_what_is_finalized_has_read_all_usage_and_every_price_that_is_on_the_log(
    installation: UsageInstallation,
) -> None:
    async with installation.service() as service:
        office = Office(installation, service.port)
        for number in range(1, 6):
            tenant = f"t-{number}"
            await installation.publish(*(small(each, tenant_id=tenant) for each in range(20 * number)))
            invoice = await office.finalize(tenant_id=tenant)
            assert (invoice["number"], invoice["lines"][0]["quantity"]) == (f"INV-00000{number}", str(20 * number))


async def test_what_cannot_be_invoiced_is_refused_with_the_reason(installation: UsageInstallation) -> None:
    await installation.publish(small(1), spent(2, model="nobody's"))
    async with installation.service() as service:
        await installation.until_counted(service.port, 2)
        office = Office(installation, service.port)
        assert (await office.draft())["unpriced"] == [
            {"charge": "models", "kind": "completion", "model": "nobody's", "events": 1}
        ]
        assert "nobody knows the price of 1 events" in await office.refused(
            "unpriced-usage", office.finalize(status=409)
        )
        await office.refused("period-not-over", office.finalize("2105-01", status=409))
        await office.refused("no-plan", office.finalize("2025-12", status=409))
        await office.refused("no-such-invoice", office.ask("GET", "/invoices/INV-000001", 404))
        await office.refused("invalid-request", office.finalize("2026-13", status=422))
        await office.refused("invalid-request", office.finalize(allow_unprized=True, status=422))

        invoice = await office.finalize(allow_unpriced=True)
        assert invoice["unpriced_events"] == 1
        mine = {"tenant_id": "other"}
        await office.refused("no-such-invoice", office.ask("GET", "/invoices/INV-000001", 404, params=mine))
        assert (await office.ask("GET", "/invoices", params=mine))["items"] == []


async def test_credits_and_credit_notes_are_on_the_log_and_survive_a_restart(installation: UsageInstallation) -> None:
    await installation.publish(*(small(number) for number in range(10)))
    terms = {"grant_id": "welcome", "kind": "grant", "currency": "EUR", "amount": "2.00"}
    async with installation.service() as service:
        office = Office(installation, service.port)
        granted = await office.ask("POST", "/credits", json=terms)
        assert granted == await office.ask("POST", "/credits", json=terms)
        await office.refused("other-terms", office.ask("POST", "/credits", 409, json=terms | {"amount": "3"}))
        invoice = await office.finalize()
        assert (invoice["subtotal"], invoice["credits"][0]["amount"], invoice["total"]) == ("5.05", "2.00", "3.05")
        cheaper = PLAN | {"charges": [PLAN["charges"][0] | {"unit_price": "0.4"}, PLAN["charges"][1]]}
        await installation.log.publish("plans", cheaper, key="pro@2")
    async with installation.service() as service:
        office = Office(installation, service.port)
        (waiting,) = (await office.draft(FEB))["left_over"]
        assert (waiting["period"], waiting["amount"], waiting["reason"]) == (JAN, "-1.00", "below_zero")
        path = f"/invoices/{invoice['number']}/credit-notes"
        wanted = {"key": "cheaper", "reason": "New terms"}
        note = await office.ask("POST", path, json=wanted)
        assert (note["number"], note["total"], amounts(note)) == ("CN-000001", "-1.00", [(JAN, "calls", "-1.00")])
        assert note == await office.ask("POST", path, json=wanted)
        await office.refused("nothing-to-credit", office.ask("POST", path, 409, json=wanted | {"key": "more"}))
        too_much = wanted | {"key": "sorry", "amount": "2.06"}
        await office.refused("credited-too-much", office.ask("POST", path, 409, json=too_much))
        assert (await office.ask("POST", path, json=too_much | {"amount": "2.05"}))["total"] == "-2.05"
        assert (await office.draft(FEB))["left_over"] == []
        (balance,) = (await office.ask("GET", "/credits"))["items"]
        assert balance["left"] == "0.00"
        page = await office.ask("GET", "/invoices", params={"limit": "2"})
        rest = await office.ask("GET", "/invoices", params={"limit": "2", "cursor": page["next_cursor"]})
        numbers = [each["number"] for each in (*page["items"], *rest["items"])]
        assert (numbers, rest["next_cursor"]) == (["CN-000002", "CN-000001", "INV-000001"], None)

        await office.refused("other-terms", office.ask("POST", path, 409, json=wanted | {"reason": "Another"}))
        cheap = PLAN | {"charges": [PLAN["charges"][0] | {"unit_price": "0.1"}, PLAN["charges"][1]]}
        await installation.log.publish("plans", cheap, key="pro@3")
        last = await office.ask("POST", path, json=wanted | {"key": "last"})
        assert (last["total"], amounts(last)) == ("0.00", [(JAN, "calls", "-2.00")])  # all but the goodwill
        assert [(each["amount"], each["left"]) for each in last["credits"]] == [("2.00", "2.00")]
    async with installation.service() as service:
        office = Office(installation, service.port)
        (balance,) = (await office.ask("GET", "/credits"))["items"]
        assert (balance["left"], (await office.draft(FEB))["left_over"]) == ("2.00", [])
        assert (await office.draft(JAN))["finalized_as"] == "INV-000001"


@pytest.mark.parametrize("point", ["invoice.before_commit", "invoice.after_commit"])
async def test_a_kill_while_an_invoice_is_written_leaves_it_there_once_or_not_at_all(
    installation: UsageInstallation, point: str
) -> None:
    port = free_ports(3) + 2
    await installation.publish(*(small(number) for number in range(10)))
    killed = await installation.process(port, TURNLOG_FAILPOINTS=f"{point}=kill@1")
    await installation.until_counted(port, 10)
    office = Office(installation, port)
    await office.until_ready()
    with pytest.raises(aiohttp.ClientError):
        await office.finalize()
    assert await asyncio.wait_for(killed.wait(), 60) == -signal.SIGKILL
    before = await installation.log.events("invoices")
    assert len(before) == (0 if point == "invoice.before_commit" else 1)

    again = await installation.process(port)
    try:
        await installation.until_counted(port, 10)
        await office.until_ready()
        invoice = await office.finalize()
        assert invoice == await office.finalize()
        other = await office.finalize(tenant_id="other")
        assert (invoice["number"], other["number"]) == ("INV-000001", "INV-000002")
        written = await installation.log.events("invoices")
        assert [each["sha256"] for each in written] == [invoice["sha256"], other["sha256"]]
        assert written[: len(before)] == before
    finally:
        again.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(again.wait(), 30) == 0


async def test_two_that_write_at_once_number_in_a_row_and_write_each_invoice_once(
    installation: UsageInstallation,
) -> None:
    """Two services fence each other; whoever is refused asks again."""
    clients = KafkaClients(installation.settings, client_id="test")
    logs = [InvoiceLog(clients, installation.settings, Failpoints()) for _ in range(2)]
    bill = Tenant().bill(JAN)
    refused = 0

    async def finalize(log: InvoiceLog, tenant_id: str) -> str:
        nonlocal refused
        while True:
            try:
                async with log.writing() as writing:
                    wanted = Bill.model_validate(bill.model_dump() | {"tenant_id": tenant_id})
                    if writing.ledger.invoice(tenant_id, JAN) is None:
                        await writing.write(writing.ledger.finalized(wanted, AT), AT)
                    document = writing.ledger.invoice(tenant_id, JAN)
                    assert document is not None
                    return document.number
            except UnavailableError:
                refused += 1

    for log in logs:
        await log.start()
    try:
        tenants = [f"t-{number}" for number in range(12)]
        numbers = await asyncio.wait_for(
            asyncio.gather(*(finalize(log, tenant) for tenant in tenants for log in logs)), 90
        )
    finally:
        for log in logs:
            await log.stop()

    assert numbers[::2] == numbers[1::2]
    written = await installation.log.events("invoices")
    assert [each["number"] for each in written] == [f"INV-{number:06d}" for number in range(1, 13)]
    assert sorted(each["tenant_id"] for each in written) == sorted(tenants)


async def test_a_record_that_is_no_document_does_not_stop_the_others(installation: UsageInstallation) -> None:
    await installation.log.publish("invoices", b"no json")
    async with installation.service() as service:
        invoice = await Office(installation, service.port).finalize()
        assert invoice["number"] == "INV-000001"
