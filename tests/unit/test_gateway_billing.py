"""`/v1/invoices` and its kin: a tenant reads its own, and only the operator writes."""

from typing import Any, cast

import httpx
import pytest
from fastapi import Response

from schemas.http import ComponentHealth
from schemas.invoices import EXAMPLES
from schemas.plans import EXAMPLES as PLANS_EXAMPLES
from schemas.topics import PLANS, Topic
from services.gateway.app import build_api
from services.gateway.ports import Ports
from services.gateway.settings import GatewaySettings

INVOICE = EXAMPLES[0].model_dump(mode="json", exclude_none=True)
GRANT = {"grant_id": "g", "tenant_id": "acme", "kind": "grant", "currency": "EUR", "amount": "1"}


class Behind:
    """Usage, the log and the registry of plans: what they were asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any] | str]] = []
        self.sent: list[tuple[str, Any]] = []

    async def get(self, path: str, **parameters: Any) -> Any:
        self.asked.append((path, parameters))
        return {"items": [], "next_cursor": None}

    async def post(self, path: str, body: str) -> Any:
        self.asked.append((path, body))
        return {**INVOICE, "a_field_of_tomorrow": "kept"} if "credits" not in path else EXAMPLES[2].model_dump()

    async def stream(self, path: str, **parameters: str) -> Response:
        self.asked.append((path, parameters))
        return Response(b"as it is", media_type="text/plain")

    async def send(self, topic: Topic, event: Any, key: str) -> None:
        assert topic is PLANS
        self.sent.append((key, event))

    def history(self) -> list[Any]:
        return PLANS_EXAMPLES


@pytest.fixture
def behind() -> Behind:
    return Behind()


def client(behind: Behind, **settings: Any) -> httpx.AsyncClient:
    nothing, own = cast("Any", None), cast("Any", behind)
    ports = Ports(
        settings=GatewaySettings(_env_file=None, **settings),  # pyright: ignore
        log=own,
        memory=nothing,
        usage=own,
        agents=nothing,
        tools=nothing,
        prices=nothing,
        budgets=nothing,
        plans=own,
    )

    async def check() -> dict[str, ComponentHealth]:
        return {}

    headers = {"x-tenant-id": "acme"}
    transport = httpx.ASGITransport(build_api(ports, check))
    return httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers)


async def test_the_operator_asks_about_any_tenant(behind: Behind) -> None:
    async with client(behind) as http:
        await http.get("/v1/invoices", params={"tenant_id": "acme", "limit": "5"})
        await http.get("/v1/credits", params={"limit": 2, "cursor": "grant-1"})
        await http.get("/v1/invoices/draft", params={"tenant_id": "acme", "period": "2026-01", "currency": "EUR"})
        shown = await http.get("/v1/invoices/INV-000001", params={"tenant_id": "acme", "form": "html"})
    assert shown.text == "as it is"
    assert behind.asked == [
        ("invoices", {"tenant_id": "acme", "limit": 5, "cursor": None}),
        ("credits", {"tenant_id": "default", "limit": 2, "cursor": "grant-1"}),
        ("invoices/draft", {"tenant_id": "acme", "period": "2026-01", "form": "json", "currency": "EUR"}),
        ("invoices/INV-000001", {"tenant_id": "acme", "form": "html"}),
    ]


async def test_a_document_is_handed_on_as_it_is_so_that_its_hash_holds(behind: Behind) -> None:
    async with client(behind) as http:
        finalized = await http.post("/v1/invoices", json={"tenant_id": "acme", "period": "2026-01"})
        note = await http.post("/v1/invoices/INV-000001/credit-notes?tenant_id=acme", json={"key": "k", "reason": "r"})
    assert finalized.json() == note.json() == {**INVOICE, "a_field_of_tomorrow": "kept"}
    assert behind.asked[1][0] == "invoices/INV-000001/credit-notes?tenant_id=acme"


async def test_a_tenant_reads_its_own_and_no_other_ones(behind: Behind) -> None:
    async with client(behind, trust_tenant_header=True) as http:
        for path in ("/v1/invoices", "/v1/credits", "/v1/invoices/INV-1", "/v1/invoices/draft?period=2026-01"):
            assert (await http.get(path)).status_code == 200
            refused = await http.get(path, params={"tenant_id": "other", "period": "2026-01"})
            assert (refused.status_code, refused.json()["type"]) == (403, "urn:turnlog:problem:other-tenant")
    assert {cast("dict[str, Any]", parameters)["tenant_id"] for _, parameters in behind.asked} == {"acme"}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/plans", None),
        ("POST", "/v1/plans", PLANS_EXAMPLES[0].model_dump(mode="json")),
        ("POST", "/v1/subscriptions", PLANS_EXAMPLES[1].model_dump(mode="json")),
        ("POST", "/v1/invoices", {"tenant_id": "acme", "period": "2026-01"}),
        ("POST", "/v1/invoices/INV-000001/credit-notes", {"key": "k", "reason": "r"}),
        ("POST", "/v1/credits", GRANT),
    ],
)
async def test_what_is_paid_is_the_operators_to_set(behind: Behind, method: str, path: str, body: Any) -> None:
    async with client(behind, trust_tenant_header=True) as http:
        refused = await http.request(method, path, json=body)
    assert (refused.status_code, refused.json()["type"]) == (403, "urn:turnlog:problem:operators-only")
    assert (behind.asked, behind.sent) == ([], [])
    async with client(behind) as http:
        assert (await http.request(method, path, json=body)).status_code in (200, 201)


async def test_plans_and_subscriptions_are_applied_and_listed(behind: Behind) -> None:
    plan, subscription = (each.model_dump(mode="json") for each in PLANS_EXAMPLES)
    async with client(behind) as http:
        applied = [await http.post("/v1/plans", json=plan), await http.post("/v1/subscriptions", json=subscription)]
        listed = (await http.get("/v1/plans")).json()["items"]
    versions = [each.json()["version"] for each in applied]
    assert [key for key, _ in behind.sent] == [f"pro@{versions[0]}", f"acme/acme@{versions[1]}"]
    assert [event for _, event in behind.sent] == PLANS_EXAMPLES
    assert [each["type"] for each in listed] == ["plan.applied", "subscription.applied"]


@pytest.mark.parametrize(
    ("path", "body", "location"),
    [
        ("/v1/plans", {"charges": [{"name": "a", "scheme": "flat", "amount": "1", "amoumt": "2"}]}, "amoumt"),
        ("/v1/plans", {"charges": [{"name": "a", "scheme": "by_mood"}]}, "charges"),
        ("/v1/subscriptions", {"plann": "pro"}, "plann"),
        ("/v1/invoices", {"period": "2026-1"}, "period"),
        ("/v1/invoices", {"period": "2026-01", "allow_unprized": True}, "allow_unprized"),
        ("/v1/invoices/INV-000001/credit-notes", {"key": "k", "reason": "r", "amonut": "1"}, "amonut"),
        ("/v1/credits", GRANT | {"expires": "2026-01-01"}, "expires"),
    ],
)
async def test_a_slip_of_the_pen_is_refused_by_its_place(
    behind: Behind, path: str, body: dict[str, Any], location: str
) -> None:
    if path in ("/v1/plans", "/v1/subscriptions"):
        body = {"name": "n", "from_period": "2026-01", **body}
    async with client(behind) as http:
        response = await http.post(path, json=body)
    assert response.status_code == 422
    assert any(location in error["location"] for error in response.json()["errors"]), response.text
    assert (behind.asked, behind.sent) == ([], [])
