"""No option of a read reaches another tenant's data."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.agents import ContextOptions, MessageRange, SearchOptions
from schemas.http import ContextRequest
from services.memory.cursors import BadCursorError
from services.memory.embeddings import Embeddings
from services.memory.fill import EmbeddingFill
from services.memory.qdrant_edge import EdgeMemoryStore
from services.memory.reads import NotFoundError, Reads
from services.memory.search import Search
from services.memory.store import Find, Range, VectorSpace
from services.runtime.failpoints import Failpoints
from tests.support.embedder import ScriptedEmbedder, UsageKept, meaning_of
from tests.unit.memory.journal import Told, added, answers, asks, created, deleted, opened, removed

TENANTS = ("acme", "other")
NAMES = st.sampled_from(
    ["t-1", "t-2", "u-1", "turn-1", "c-1", "m-1", "helper", "acme", "other", "", "*", "acme\x1ft-1"]
)
MAYBE = st.none() | NAMES
QUERIES = st.sampled_from(
    ["car", "automobile", "secret", "acme", "other", "*", "car OR tenant_id:other", "\x00", "the"]
)


class Shared:
    """One memory in which two tenants have the same ids and the same words."""

    def __init__(self, folder: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.store = EdgeMemoryStore(folder)
        embeddings = Embeddings(ScriptedEmbedder(tokens=None), UsageKept().record)
        self.reads = Reads(self.store, Search(self.store, embeddings))
        self.fill = EmbeddingFill(self.store, embeddings, Failpoints())
        self.cursors: list[str | None] = [None]
        self.run(self._tell())

    def run(self, reading: Any) -> Any:
        return self.loop.run_until_complete(reading)

    async def _tell(self) -> None:
        await self.store.open()
        for tenant in TENANTS:
            await Told(self.store, tenant).tell(
                created("t-1", title=f"secret of {tenant}", user_id="u-1"),
                opened("turn-1", user_id="u-1"),
                added("m-1", f"a car, the secret of {tenant}", user_id="u-1", turn_id="turn-1"),
                asks("m-2", "c-1", text=f"automobile of {tenant}"),
                answers("m-3", "c-1"),
                added("m-4", f"vehicle, {tenant}", thread_id="t-2", user_id="u-1", role="assistant", agent="helper"),
            )
        while await self.fill.fill_batch():
            pass
        for tenant in TENANTS:
            threads = await self.reads.threads(tenant, user_id=None, query=None, cursor=None, limit=1)
            messages = await self.reads.messages(tenant, "t-1", limit=1)
            hits = await self.reads.search(tenant, "car", limit=1)
            self.cursors += [threads.next_cursor, messages.next_cursor, hits.next_cursor]

    def close(self) -> None:
        self.run(self.store.close())
        self.loop.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    with TemporaryDirectory() as folder:
        shared = Shared(Path(folder) / "memory")
        yield shared
        shared.close()


def own(shared: Shared, tenant: str, reading: Any) -> None:
    """What a read gives names its tenant and nobody else's words."""
    try:
        answer = shared.run(reading)
    except (NotFoundError, BadCursorError):
        return
    text = answer.model_dump_json()
    others = [each for each in TENANTS if each != tenant]
    assert not [other for other in others if f'"tenant_id":"{other}"' in text or f"of {other}" in text], text


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([*TENANTS, "nobody", ""]), st.data())
def test_no_list_search_or_single_read_reaches_another_tenant(shared: Shared, tenant: str, data: st.DataObject) -> None:
    draw, reads = data.draw, shared.reads
    cursor, limit = draw(st.sampled_from(shared.cursors)), draw(st.integers(1, 50))
    own(shared, tenant, reads.thread(tenant, draw(NAMES)))
    own(shared, tenant, reads.message(tenant, draw(NAMES), draw(NAMES)))
    own(shared, tenant, reads.turn(tenant, draw(NAMES)))
    own(shared, tenant, reads.tool_call(tenant, draw(NAMES)))
    own(
        shared,
        tenant,
        reads.threads(
            tenant,
            user_id=draw(MAYBE),
            status=draw(MAYBE),
            query=draw(st.none() | QUERIES),
            order=draw(st.sampled_from(["updated", "created"])),
            cursor=cursor,
            limit=limit,
        ),
    )
    own(
        shared,
        tenant,
        reads.messages(
            tenant,
            draw(NAMES),
            cursor=cursor,
            limit=limit,
            descending=draw(st.booleans()),
            role=draw(MAYBE),
            status=draw(MAYBE | st.just("success")),
            agent=draw(MAYBE),
            turn_id=draw(MAYBE),
            exclude_tool=draw(st.booleans()),
            positions=draw(st.builds(Range, above=st.none() | st.integers(-1, 9), below=st.none() | st.integers(0, 9))),
        ),
    )
    own(
        shared,
        tenant,
        reads.search(
            tenant,
            draw(QUERIES),
            mode=draw(st.sampled_from(["text", "vector", "hybrid"])),
            user_id=draw(MAYBE),
            thread_id=draw(MAYBE),
            agent=draw(MAYBE),
            role=draw(MAYBE),
            least=draw(st.none() | st.floats(-2, 2)),
            cursor=cursor,
            limit=limit,
        ),
    )


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([*TENANTS, "nobody"]), st.data())
def test_no_option_of_a_context_reaches_another_tenant(shared: Shared, tenant: str, data: st.DataObject) -> None:
    draw = data.draw
    search = st.builds(
        SearchOptions,
        limit=st.integers(0, 100),
        text=st.booleans(),
        vector=st.booleans(),
        message_range=st.builds(MessageRange, before=st.integers(0, 20), after=st.integers(0, 20)),
        other_threads=st.booleans(),
        score_threshold=st.none() | st.floats(-2, 2),
    )
    options = ContextOptions(
        recent_messages=draw(st.integers(0, 100)),
        exclude_tool_messages=draw(st.booleans()),
        search=draw(st.none() | search),
        max_tokens=draw(st.none() | st.integers(1, 1000)),
    )
    request = ContextRequest(
        tenant_id=tenant,
        thread_id=draw(st.sampled_from(["t-1", "t-2", "t-3"])),
        turn_id=draw(MAYBE),
        user_id=draw(MAYBE),
        query=draw(st.none() | QUERIES),
        options=options,
    )
    own(shared, tenant, shared.reads.context(request))


@pytest.mark.parametrize("tenant", TENANTS)
async def test_a_deletion_that_names_what_another_tenant_has_too_leaves_the_others(tmp_path: Path, tenant: str) -> None:
    store = EdgeMemoryStore(tmp_path / "memory")
    await store.open()
    told = {each: Told(store, each) for each in TENANTS}
    for each in told.values():
        await each.tell(created("t-1"), added("m-1", "a car"), added("m-2", "a car", thread_id="t-2"))

    await told[tenant].tell(deleted("t-1"), removed("m-2", thread_id="t-2"))

    for each in told.values():
        gone = each.tenant == tenant
        texts = [page.items for page in [await each.reads.messages(each.tenant, name) for name in ("t-1", "t-2")]]
        assert [len(items) for items in texts] == ([0, 0] if gone else [1, 1])
        assert len((await each.reads.search(each.tenant, "car")).items) == (0 if gone else 2)
        assert len((await each.reads.threads(each.tenant, query=None)).items) == (1 if gone else 2)
    await store.close()


FIELDS = st.dictionaries(
    st.sampled_from(["tenant_id", "kind", "thread_id", "user_id", "role", "turn_id", "agent", "about"]),
    NAMES,
    max_size=3,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(TENANTS), FIELDS, FIELDS, st.booleans())
def test_no_filter_of_the_store_replaces_the_tenant(
    shared: Shared, tenant: str, where: dict[str, str], without: dict[str, str], bounded: bool
) -> None:
    store, space = shared.store, VectorSpace("meanings", 4)
    find = Find("message", tenant, where, without, {"created": Range(above=0)} if bounded else {})
    found = [
        *shared.run(store.scroll(find, order_by="position", descending=False, limit=100)),
        *shared.run(store.search(find, "car automobile vehicle secret", 100)),
        *shared.run(store.search_vector(find, space, meaning_of("car"), 100)),
    ]
    documents = shared.run(store.get([each.point_id for each in found]))
    assert {(each.tenant_id, each.kind) for each in documents} <= {(tenant, "message")}


def test_there_is_something_to_reach(shared: Shared) -> None:
    """A check that could find nothing would find nothing wrong."""
    for tenant in TENANTS:
        hits = shared.run(shared.reads.search(tenant, "car", mode="hybrid"))
        assert hits.items[0].message.message_id == "m-1"
        assert len(hits.items) == 3
    with pytest.raises(AssertionError):
        own(shared, "other", shared.reads.search("acme", "car"))
