"""One broker for each process that runs tests; each test has topics of its own behind a prefix of its own."""

import os
import secrets
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import settings

from infra.local.kafka import running_kafka
from tests.scripted_model.server import ScriptedModel

ROOT = Path(__file__).parents[1]

CACHE = Path(os.environ.setdefault("TURNLOG_CACHE_DIR", str(ROOT / ".turnlog" / "cache")))
"""The jars of `make run`, so that neither fetches what the other has."""

settings.register_profile("turnlog", deadline=None)  # how long an example takes is the machine's affair
settings.load_profile("turnlog")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
"""A shell makes what it runs in the background deaf to Ctrl-C, and children inherit that; tests stop them by it."""


def pytest_addoption(parser: pytest.Parser) -> None:
    drawn = secrets.randbelow(1_000_000)
    parser.addoption("--seed", type=int, default=drawn, help="what random tests are drawn from, as a run's head has it")


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {config.getoption('--seed')}"


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    return request.config.getoption("--seed")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test sees no setting of the shell that runs it."""
    for name in list(os.environ):
        if name.startswith(("TURNLOG_", "OPENAI_")) and not name.startswith(("TURNLOG_TEST_", "TURNLOG_CACHE_DIR")):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the broker of this process. A test that stops or kills a broker starts one of its own."""
    with running_kafka(data_dir=tmp_path_factory.mktemp("kafka")) as broker:
        yield broker.bootstrap


@pytest.fixture
def prefix() -> str:
    """Put before every topic of a test."""
    return f"{uuid4().hex[:10]}."


@pytest.fixture
async def model() -> AsyncIterator[ScriptedModel]:
    async with ScriptedModel() as server:
        yield server
