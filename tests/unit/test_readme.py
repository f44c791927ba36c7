"""What can be said of the README without running it."""

import re
import shlex

import yaml
from pydantic import TypeAdapter

from schemas.agents import AgentSpec
from services.agents.providers import providers_from
from services.agents.settings import AgentsSettings
from services.memory.settings import MemorySettings
from services.runtime.settings import RuntimeSettings
from services.usage.settings import UsageSettings
from tests.conftest import ROOT
from tests.support.readme import COMMANDS, FILES, OF_ANOTHER_TEST, README, RUNS_UNTIL_STOPPED


def test_every_command_is_run_by_some_test() -> None:
    assert set(OF_ANOTHER_TEST) <= set(COMMANDS)
    assert set(RUNS_UNTIL_STOPPED) <= set(COMMANDS)
    makefile = (ROOT / "Makefile").read_text()
    for command in COMMANDS:
        if match := re.search(r"\bmake (\w+)", command):
            assert re.search(rf"^{match[1]}:", makefile, re.MULTILINE)


def test_a_key_makes_it_openai() -> None:
    providers = providers_from(AgentsSettings(), {"OPENAI_API_KEY": "sk-test"})

    assert providers.default.base_url == "https://api.openai.com/v1"


def test_the_settings_for_real_servers_exist_and_take_these_values() -> None:
    exports = [pair for line in COMMANDS if line.startswith("export") for pair in shlex.split(line, comments=True)[1:]]
    values = dict(pair.split("=", 1) for pair in exports)
    kinds = (RuntimeSettings, AgentsSettings, MemorySettings, UsageSettings)
    fields = {f"TURNLOG_{name.upper()}": field for kind in kinds for name, field in kind.model_fields.items()}

    assert len(values) >= 7
    for name, value in values.items():
        assert TypeAdapter(fields[name].annotation).validate_python(value) is not None


def test_the_rooms_that_the_readme_names_exist() -> None:
    for path in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / path).is_file(), path


def test_the_readmes_agent_is_an_agent() -> None:
    assert AgentSpec.model_validate(yaml.safe_load(FILES["pirate.yaml"])).name == "pirate"
