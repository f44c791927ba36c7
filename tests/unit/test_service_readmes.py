"""The READMEs of services say what the code does."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from schemas.agents import AgentSpec
from services.agents.context_handlers import ContextHandlerEntry
from services.agents.providers import providers_from
from services.agents.settings import AgentsSettings
from services.gateway.app import build_api
from services.gateway.settings import GatewaySettings
from services.runtime.settings import RuntimeSettings
from tests.conftest import ROOT

ROOMS: dict[str, type[RuntimeSettings]] = {
    "agents": AgentsSettings,
    "gateway": GatewaySettings,
    "runtime": RuntimeSettings,
}


def readme(room: str) -> str:
    return (ROOT / "services" / room / "README.md").read_text()


@pytest.mark.parametrize("room", ROOMS)
def test_the_table_of_settings_is_the_settings_own(room: str) -> None:
    common = set() if room == "runtime" else RuntimeSettings.model_fields.keys()
    own = {
        f"TURNLOG_{name.upper()}": (shown(field.default), field.description)
        for name, field in ROOMS[room].model_fields.items()
        if name not in common
    }
    rows = re.findall(r"^\| `(TURNLOG_\w+)` \| (.*?) \| (.*?) \|$", readme(room), re.MULTILINE)

    assert {name: (default, meaning) for name, default, meaning in rows} == own


def shown(default: object) -> str:
    match default:
        case None | "":
            return "unset"
        case bool():
            return str(default).lower()
        case int() | float():
            return f"{default:g}"
        case _:
            return f"`{default}`"


def test_the_agents_readme_tells_every_field_of_an_agent() -> None:
    told = set(re.findall(r"`([\w.]+)`", readme("agents")))
    fields = AgentSpec.model_fields.keys() - {"type", "tenant_id", "version"}

    assert fields <= told


def test_the_providers_and_context_handlers_of_the_agents_readme_are_read() -> None:
    [block, handlers] = re.findall(r"```yaml\n(.*?)```", readme("agents"), re.DOTALL)
    settings = AgentsSettings(providers=block)

    names = {each.name for each in providers_from(settings, {"GROQ_API_KEY": "k"})}

    assert "groq" in names
    assert yaml.safe_load(block)[0]["api_key_env"] == "GROQ_API_KEY"
    entries = [ContextHandlerEntry.model_validate(row) for row in yaml.safe_load(handlers)]
    assert [bool(each.url) for each in entries] == [True, False]


def test_the_gateways_readme_tells_every_endpoint() -> None:
    async def ready() -> dict[str, object]:
        return {}

    app = build_api(SimpleNamespace(), ready)  # pyright: ignore[reportArgumentType]
    paths = {re.sub(r"\{\w+\}", "{id}", path) for path in app.openapi()["paths"]}
    told = readme("gateway")

    assert len(paths) > 15
    for path in paths:
        assert path in told or path.removesuffix("/{id}") in told, path
    for path in re.findall(r"/v1/[\w/{}-]+", told):
        assert path.rstrip("/") in paths, path


@pytest.mark.parametrize("room", ["agents", "cli", "gateway", "memory", "runtime", "tools", "usage"])
def test_a_readme_leads_to_files_that_exist(room: str) -> None:
    folder = ROOT / "services" / room
    for link in re.findall(r"\]\(([^)#]+)\)", readme(room)):
        assert (folder / Path(link)).exists(), link
