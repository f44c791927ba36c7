"""The import contracts of `pyproject.toml`: each is shown a violation in a small copy of the layout, and fails."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
CONTRACTS = {
    contract["id"]: contract["name"]
    for contract in tomllib.loads(PYPROJECT.read_text())["tool"]["importlinter"]["contracts"]
}

LAYOUT = {
    "schemas/topics.py": "import json",
    "services/runtime/kafka.py": "import aiokafka\nfrom aiokafka.errors import KafkaError\nimport schemas.topics",
    "services/runtime/settings.py": "import schemas.topics",
    "services/agents/openai.py": "import openai\nfrom services.runtime import settings",
    "services/agents/lean.py": "import aiohttp",
    "services/agents/context_hook.py": "import aiohttp",
    "services/agents/app.py": "from services.agents import openai\nfrom services.runtime.kafka import aiokafka",
    "services/memory/qdrant_shard.py": "import qdrant_edge",
    "services/memory/qdrant_optimise.py": "import qdrant_edge",
    "services/memory/qdrant_server.py": "import qdrant_client",
    "services/memory/qdrant_text.py": "from qdrant_edge import Bm25",
    "services/memory/app.py": "from services.memory import qdrant_shard, qdrant_server\nimport services.runtime",
    "services/memory/embedder_local.py": "import wordllama",
    "services/memory/embedder_http.py": "import aiohttp",
    "services/usage/clickhouse.py": "import clickhouse_connect",
    "services/usage/pricing/defaults.py": "import genai_prices",
    "services/usage/app.py": "from services.usage import clickhouse",
    "services/cli/app.py": "import infra.local.kafka\nimport services.agents.app\nimport services.usage.app",
    "infra/local/kafka.py": "import infra.local.node",
    "infra/local/node.py": "import aiokafka",
}
"""What the contracts allow, as small as it can be."""

VIOLATIONS = [
    ("contract-stands-alone", "schemas/prompts.py", "import services.runtime.settings"),
    ("contract-stands-alone", "schemas/deltas.py", "import infra.local.kafka"),
    ("services-apart", "services/agents/intake.py", "import services.memory.app"),
    ("services-apart", "services/tools/app.py", "import services.cli.app"),
    ("services-apart", "services/runtime/web.py", "import services.usage.app"),
    ("launcher-apart", "services/memory/reads.py", "import infra.local.kafka"),
    ("kafka-adapter", "services/runtime/registry.py", "import aiokafka"),
    ("kafka-adapter", "services/agents/kafka.py", "import aiokafka"),
    ("kafka-adapter", "infra/local/model.py", "import aiokafka"),
    ("clickhouse-adapter", "services/usage/queries.py", "import clickhouse_connect"),
    ("packaged-prices-adapter", "services/usage/pricing/book.py", "import genai_prices"),
    ("chdb-behind-its-client", "services/usage/store.py", "import chdb"),
    ("qdrant-adapter", "services/memory/context.py", "import qdrant_client"),
    ("qdrant-adapter", "services/agents/recent.py", "import qdrant_edge"),
    ("wordllama-adapter", "services/memory/fusion.py", "import wordllama"),
    ("memory-over-http", "services/memory/fill.py", "import aiohttp"),
    ("openai-adapter", "services/agents/actor.py", "import openai"),
    ("openai-adapter", "services/memory/embeddings.py", "import openai"),
    ("agents-over-http", "services/agents/chat.py", "import aiohttp"),
]


def lint(root: Path, files: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Writes the files, each folder a package, and runs the linter there with the project's own contracts."""
    for path, text in files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text + "\n")
        for folder in target.relative_to(root).parents[:-1]:
            (root / folder / "__init__.py").touch()
    (root / "pyproject.toml").write_text(PYPROJECT.read_text())
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=root,
        env=os.environ | {"COLUMNS": "200", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def named(path: str) -> str:
    return path.removesuffix(".py").replace("/", ".")


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """What the linter says of each broken contract, by the contract's name, once all violations are in place."""
    violations = {path: text for _, path, text in VIOLATIONS}
    done = lint(tmp_path_factory.mktemp("violations"), {**LAYOUT, **violations})
    assert done.returncode == 1, done.stdout + done.stderr
    details = done.stdout.partition("Broken contracts")[2]
    sections = re.split(r"^(.+)\n-+$", details, flags=re.MULTILINE)[1:]
    return dict(zip(sections[::2], sections[1::2], strict=True))


def test_what_the_contracts_allow_passes(tmp_path: Path) -> None:
    done = lint(tmp_path, LAYOUT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(CONTRACTS)} kept, 0 broken" in done.stdout


@pytest.mark.parametrize(("contract", "path", "text"), VIOLATIONS, ids=[f"{row[1]}: {row[2]}" for row in VIOLATIONS])
def test_a_violation_breaks_its_contract(contract: str, path: str, text: str, broken: Mapping[str, str]) -> None:
    section = broken[CONTRACTS[contract]]
    imported = text.removeprefix("import ")
    assert re.search(rf"{re.escape(named(path))} -> {re.escape(imported)}\b", section), section


def test_every_contract_is_shown_a_violation() -> None:
    assert {contract for contract, _, _ in VIOLATIONS} == set(CONTRACTS)
