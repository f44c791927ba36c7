"""A gateway over the memory of a test, without a log between them: commands are carried out as they are written."""

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

import httpx

from schemas.agents import AgentSpec
from schemas.envelope import encode_event
from schemas.http import ComponentHealth, Problem
from schemas.topics import PROMPTS
from services.gateway.accepting import hold_to_readers
from services.gateway.app import build_api
from services.gateway.ports import Ports
from services.gateway.settings import GatewaySettings
from services.memory.api import build_api as build_memory_api
from services.runtime.web import PROBLEM_JSON, ProblemError
from tests.unit.memory.journal import Told
from tests.unit.turn.story import Story, as_read


class Reached:
    """Everything has been read."""

    async def wait_for(self, partition: int, min_offset: int, timeout_seconds: float) -> None: ...


async def check() -> dict[str, ComponentHealth]:
    return {}


class Memory:
    """The service over HTTP, as the gateway asks it."""

    def __init__(self, told: Told) -> None:
        transport = httpx.ASGITransport(build_memory_api(told.reads, Reached(), check))
        self._http = httpx.AsyncClient(transport=transport, base_url="http://memory")

    async def get(self, path: str, **parameters: Any) -> Any:
        asked = {name: value for name, value in parameters.items() if value is not None}
        return self._said(await self._http.get(f"/{path}", params=asked))

    async def post(self, path: str, body: str) -> Any:
        return self._said(await self._http.post(f"/{path}", content=body, headers={"Content-Type": "application/json"}))

    def _said(self, response: httpx.Response) -> Any:
        if response.headers["content-type"] == PROBLEM_JSON:
            raise ProblemError(Problem.model_validate_json(response.content))
        return response.json()


@dataclass
class Log:
    """A worker of the story takes every command at once. `deltas`: by turn, what has come of its steps."""

    told: Told
    story: Story
    deltas: dict[str, Mapping[int, str]] = field(default_factory=dict[str, Mapping[int, str]])

    def journal_position(self, thread_id: str) -> tuple[int, int]:
        return 0, self.told.offset

    async def written(self, tenant_id: str, thread_id: str, turn_id: str, since: datetime) -> Mapping[int, str]:
        return self.deltas.get(turn_id, {})

    async def submit(self, event: Any) -> tuple[int, int]:
        hold_to_readers(PROMPTS, encode_event(event), {"ce_type": event.type})
        await self.told.tell(*self.story.command(as_read(event, PROMPTS)))
        return 0, self.story.offset - 1


class Agents(dict[str, AgentSpec]):
    def get(self, name: str, *, tenant_id: str) -> AgentSpec | None:  # pyright: ignore
        return super().get(name)


@dataclass
class Gateway:
    """`http` speaks for the tenant of the test."""

    told: Told
    http: httpx.AsyncClient
    log: Log
    agents: Agents

    async def asked(self, method: str, path: str, body: Any = None, *, status: int = 202) -> Any:
        """The JSON of an answer that has this status."""
        response = await self.http.request(method, f"/v1/{path}", json=body)
        assert response.status_code == status, response.text
        return response.json()

    async def read(self, path: str, *, status: int = 200) -> Any:
        return await self.asked("GET", path, status=status)


@contextlib.asynccontextmanager
async def gateway_over(told: Told) -> AsyncIterator[Gateway]:
    settings = GatewaySettings(_env_file=None, trust_tenant_header=True)  # pyright: ignore
    log, agents = Log(told, Story(tenant_id=told.tenant, at=datetime.now(UTC))), Agents()
    nothing: dict[str, Any] = dict.fromkeys(field.name for field in fields(Ports))
    ports = Ports(**nothing | {"settings": settings, "log": log, "memory": Memory(told), "agents": agents})
    transport = httpx.ASGITransport(build_api(ports, check))
    headers = {"X-Tenant-Id": told.tenant}
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers) as http:
        yield Gateway(told, http, log, agents)
