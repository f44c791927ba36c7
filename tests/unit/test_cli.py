"""The command line without a broker: what it imports, how it complains, what its README says."""

import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from schemas.agents import AgentSpec
from schemas.prices import PriceSpec
from services.cli.app import app
from services.cli.catalog import read_specs
from services.runtime.errors import ConfigurationError
from tests.conftest import ROOT

HEAVY = ("qdrant", "chdb", "clickhouse_connect", "openai", "fastapi", "xllamacpp")

README = (ROOT / "services" / "cli" / "README.md").read_text()


def test_help_imports_no_store_and_no_model() -> None:
    script = (
        "import sys; from services.cli.app import app; "
        f"sys.exit(', '.join(each for each in {HEAVY!r} if any(name.startswith(each) for name in sys.modules)) or 0)"
    )
    finished = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)

    assert finished.returncode == 0, finished.stderr


def test_every_command_has_a_help_text_and_a_line_in_the_readme() -> None:
    groups = {group.name: group.typer_instance for group in app.registered_groups}
    commands = [(each.name, each.callback) for each in app.registered_commands]
    commands += [
        (f"{name} {each.name}", each.callback) for name, group in groups.items() for each in group.registered_commands
    ]

    assert len(commands) >= 13
    for name, callback in commands:
        assert callback is not None, name
        assert callback.__doc__, name
        assert f"`turnlog {name}" in README, name


def test_every_command_of_the_readme_exists() -> None:
    named = set(re.findall(r"`turnlog ([a-z-]+(?: [a-z]+)?)", README))
    for command in named:
        finished = CliRunner().invoke(app, [*command.split(), "--help"])
        assert finished.exit_code == 0, command


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "has no document in it"),
        ("name: [", "is not YAML"),
        ("name: fine\n---\nname: bad name!", "document 2: name: "),
        ("name: fine\ninstrcutions: oops", "document 1: instrcutions: Extra inputs are not permitted"),
        ("- a list", "document 1"),
    ],
)
def test_a_mistake_in_an_agents_file_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "agents.yaml"
    file.write_text(text)

    with pytest.raises(ConfigurationError, match=re.escape(complaint)):
        read_specs(file, AgentSpec)


def test_a_file_of_prices_is_read_as_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text(
        "name: own\nprovider: mine\neffective_from: 2026-01-01T00:00:00Z\nrates: {input: 0.1, output: 0.30}\n"
    )

    (price,) = read_specs(file, PriceSpec)

    assert (price.rates.input, price.rates.output) == (Decimal("0.1"), Decimal("0.3"))
    file.write_text("name: own\neffective_from: 2026-01-01T00:00:00Z\nrates: {imput: 0.1}\n")
    with pytest.raises(ConfigurationError, match=r"rates\.imput: Extra inputs are not permitted"):
        read_specs(file, PriceSpec)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        read_specs(tmp_path / "nowhere.yaml", AgentSpec)


def test_an_unknown_service_is_answered_with_the_known_ones() -> None:
    finished = CliRunner().invoke(app, ["run", "coffee"])

    assert finished.exit_code == 2
    assert "memory, usage, tools, agents, gateway" in " ".join(finished.output.replace("│", " ").split())
