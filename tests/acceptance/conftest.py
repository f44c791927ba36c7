"""One `turnlog up` for the tests that only talk to it; those that stop, kill or share it start their own."""

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
import pytest_asyncio

from tests.scripted_model.server import ScriptedModel
from tests.support.installation import Installation, installation


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_model() -> AsyncIterator[ScriptedModel]:
    async with ScriptedModel() as server:
        yield server


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def turnlog(
    kafka: str, shared_model: ScriptedModel, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Installation]:
    """Everything in one process, ready, with the sample agent and tools."""
    folder = tmp_path_factory.mktemp("turnlog")
    prefix = f"{uuid4().hex[:10]}."
    async with installation(folder, model_url=shared_model.base_url, kafka=kafka, prefix=prefix) as made:
        running = await made.up()
        yield made
        assert await running.interrupt() == 0, running.output


@pytest.fixture
def thread() -> str:
    return f"t-{uuid4().hex[:12]}"


@pytest_asyncio.fixture(loop_scope="session")
async def fresh(kafka: str, shared_model: ScriptedModel, tmp_path: Path, prefix: str) -> AsyncIterator[Installation]:
    """An installation with nothing running yet."""
    async with installation(tmp_path, model_url=shared_model.base_url, kafka=kafka, prefix=prefix) as made:
        yield made
