"""One engine a module of tests: each test is a tenant of its own in it."""

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
import pytest_asyncio

from services.memory.qdrant_edge import EdgeMemoryStore
from tests.unit.memory.journal import Told


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EdgeMemoryStore]:
    store = EdgeMemoryStore(tmp_path_factory.mktemp("memory"))
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def told(engine: EdgeMemoryStore) -> Told:
    return Told(engine, f"tenant-{uuid4().hex[:12]}")
