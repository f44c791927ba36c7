"""`/v1/prices`: the operator's alone, and no slip of the pen gets through."""

from collections.abc import AsyncIterator
from typing import Any, cast

import httpx
import pytest

from schemas.http import ComponentHealth
from schemas.prices import PriceSpec
from schemas.topics import PRICES, Topic
from services.gateway.app import build_api
from services.gateway.ports import Ports
from services.gateway.settings import GatewaySettings

PRICE = {
    "name": "mine",
    "provider": "mine",
    "effective_from": "2026-01-01T00:00:00.000000Z",
    "rates": {"input": "0.0000001", "output": "0.30"},
}


class Written:
    """The log and the registry that reads it, in one."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self._prices: list[PriceSpec] = []

    async def send(self, topic: Topic, event: PriceSpec, key: str) -> None:
        assert topic is PRICES
        self.keys.append(key)
        self._prices.append(event)

    def history(self) -> list[PriceSpec]:
        return self._prices


@pytest.fixture
def written() -> Written:
    return Written()


def client(written: Written, **settings: Any) -> httpx.AsyncClient:
    nothing = cast("Any", None)
    ports = Ports(
        settings=GatewaySettings(_env_file=None, **settings),  # pyright: ignore
        log=cast("Any", written),
        memory=nothing,
        usage=nothing,
        agents=nothing,
        tools=nothing,
        prices=cast("Any", written),
        budgets=nothing,
        plans=nothing,
    )

    async def check() -> dict[str, ComponentHealth]:
        return {}

    return httpx.AsyncClient(transport=httpx.ASGITransport(build_api(ports, check)), base_url="http://gateway")


@pytest.fixture
async def http(written: Written) -> AsyncIterator[httpx.AsyncClient]:
    async with client(written) as opened:
        yield opened


async def test_a_price_is_applied_and_listed_as_it_was_written(http: httpx.AsyncClient, written: Written) -> None:
    response = await http.post("/v1/prices", json=PRICE)
    assert response.status_code == 201
    version = response.json()["version"]
    assert written.keys == [f"mine@{version}"]
    (listed,) = (await http.get("/v1/prices")).json()["items"]
    assert {name: listed[name] for name in PRICE} == PRICE | {
        "rates": {"cached_input": None, "reasoning": None, "call": None, "image": None, **PRICE["rates"]}
    }


@pytest.mark.parametrize(
    ("change", "location"),
    [
        ({"rates": {"imput": "1"}}, "body.rates.imput"),
        ({"modell": "m"}, "body.modell"),
        ({"rates": {"input": "-1"}}, "body.rates.input"),
        ({"effective_from": "2026-01-01T00:00:00"}, "body.effective_from"),
    ],
)
async def test_a_price_with_a_slip_in_it_is_refused_by_the_place_of_it(
    http: httpx.AsyncClient, written: Written, change: dict[str, Any], location: str
) -> None:
    response = await http.post("/v1/prices", json=PRICE | change)
    assert response.status_code == 422
    assert location in {error["location"] for error in response.json()["errors"]}
    assert written.keys == []


async def test_a_tenant_neither_sets_nor_sees_prices(written: Written) -> None:
    async with client(written, trust_tenant_header=True) as http:
        for response in (await http.post("/v1/prices", json=PRICE), await http.get("/v1/prices")):
            assert response.status_code == 403
            assert response.json()["type"] == "urn:turnlog:problem:operators-only"
    assert written.keys == []
