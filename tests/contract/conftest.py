"""Memory's store on both engines."""

import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
from qdrant_client import AsyncQdrantClient

from services.memory.qdrant_edge import EdgeMemoryStore
from services.memory.qdrant_server import ServerMemoryStore
from services.memory.store import MemoryStore
from tests.contract.test_memory_store import SERVER


@pytest.fixture
async def server() -> AsyncIterator[ServerMemoryStore]:
    collection = f"test-{uuid4().hex}"
    client = AsyncQdrantClient(url=SERVER) if SERVER else AsyncQdrantClient(location=":memory:")
    store = ServerMemoryStore(SERVER or ":memory:", collection=collection, client=client)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Payload indexes have no effect in the local Qdrant", UserWarning)
        await store.open()
    yield store
    for each in (await client.get_collections()).collections:
        if each.name.startswith(collection):
            await client.delete_collection(each.name)
    await store.close()


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[EdgeMemoryStore]:
    store = EdgeMemoryStore(tmp_path / "memory")
    await store.open()
    yield store
    await store.close()


@pytest.fixture(params=["edge", "server"])
def store(request: pytest.FixtureRequest) -> MemoryStore:
    return request.getfixturevalue(request.param)
