"""`/v1/budgets`: the operator's to apply, a tenant's to look at its own."""

from typing import Any, cast

import httpx
import pytest

from schemas.budgets import Account, BudgetSpec
from schemas.http import ComponentHealth
from schemas.topics import BUDGETS, Topic
from services.gateway.app import build_api
from services.gateway.ports import Ports
from services.gateway.settings import GatewaySettings
from tests.unit.test_budget_board import Topic as BudgetsTopic
from tests.unit.test_budget_board import budget, state

ACME = {"x-tenant-id": "acme"}
BUDGET = {"name": "daily", "by": "user", "per": "day", "unit": "tokens", "hard": "1000"}


class Installation:
    """A gateway whose log is a board alone."""

    def __init__(self) -> None:
        self.topic = BudgetsTopic()

    async def send(self, topic: Topic, event: BudgetSpec, key: str) -> None:
        assert topic is BUDGETS
        self.topic.says(event)

    def client(self, **settings: Any) -> httpx.AsyncClient:
        nothing = cast("Any", None)
        ports = Ports(
            settings=GatewaySettings(_env_file=None, **settings),  # pyright: ignore
            log=cast("Any", self),
            memory=nothing,
            usage=nothing,
            agents=nothing,
            tools=nothing,
            prices=nothing,
            budgets=self.topic.board,
            plans=nothing,
        )

        async def check() -> dict[str, ComponentHealth]:
            return {}

        return httpx.AsyncClient(transport=httpx.ASGITransport(build_api(ports, check)), base_url="http://gateway")


@pytest.fixture
async def installation() -> Installation:
    return Installation()


async def test_a_budget_is_applied_and_listed(installation: Installation) -> None:
    async with installation.client() as http:
        response = await http.post("/v1/budgets", json=BUDGET)
        assert response.status_code == 201
        (listed,) = (await http.get("/v1/budgets")).json()["items"]
        assert {name: listed[name] for name in BUDGET} == BUDGET
        assert (await http.get("/v1/budgets/daily/accounts")).json() == {"items": [], "next_cursor": None}


@pytest.mark.parametrize("change", [{"hrad": "5"}, {"hard": "-1"}, {"per": "year"}, {"by": "planet"}])
async def test_a_budget_with_a_slip_in_it_is_refused(installation: Installation, change: dict[str, str]) -> None:
    async with installation.client() as http:
        response = await http.post("/v1/budgets", json=BUDGET | change)
    assert response.status_code == 422
    assert f"body.{next(iter(change))}" in {error["location"] for error in response.json()["errors"]}
    assert not installation.topic.board.budgets


async def test_accounts_are_paged_and_narrowed(installation: Installation) -> None:
    installation.topic.says(budget())
    for number in range(5):
        installation.topic.says(state(budget(), Account("default", f"u-{number}", "2026-01"), number * 30))
    async with installation.client() as http:
        first = (await http.get("/v1/budgets/b/accounts?limit=2")).json()
        assert [each["spent"] for each in first["items"]] == ["120", "90"]
        rest = (await http.get(f"/v1/budgets/b/accounts?limit=9&cursor={first['next_cursor']}")).json()
        assert ([each["spent"] for each in rest["items"]], rest["next_cursor"]) == (["60", "30", "0"], None)
        over = (await http.get("/v1/budgets/b/accounts?level=exceeded")).json()["items"]
        assert [each["who"] for each in over] == ["u-4"]
        assert (await http.get("/v1/budgets/nobodys/accounts")).status_code == 404


async def test_a_tenant_applies_none_and_sees_its_own(installation: Installation) -> None:
    installation.topic.says(budget())
    installation.topic.says(budget(name="theirs", tenant_id="other"))
    for tenant in ("acme", "other"):
        installation.topic.says(state(budget(), Account(tenant, "ann", "2026-01"), 9))
    async with installation.client(trust_tenant_header=True) as http:
        refused = await http.post("/v1/budgets", json=BUDGET, headers=ACME)
        assert (refused.status_code, refused.json()["type"]) == (403, "urn:turnlog:problem:operators-only")
        assert [each["name"] for each in (await http.get("/v1/budgets", headers=ACME)).json()["items"]] == ["b"]
        accounts = (await http.get("/v1/budgets/b/accounts", headers=ACME)).json()["items"]
        assert [each["tenant_id"] for each in accounts] == ["acme"]
        assert (await http.get("/v1/budgets/theirs/accounts", headers=ACME)).status_code == 404
