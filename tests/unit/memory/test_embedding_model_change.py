"""A new model embeds everything anew; until it is done meaning is searched by the former one."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from schemas.http import RebuildStatus
from services.memory import search, upkeep
from services.memory.app import build_embedder, build_former_embedder
from services.memory.embeddings import Asker, Embedded, EmbedderUnavailableError, Embeddings
from services.memory.fill import EmbeddingFill
from services.memory.qdrant_edge import EdgeMemoryStore
from services.memory.search import FormerModel, Search, SearchResult
from services.memory.settings import MemorySettings
from services.memory.store import Find, VectorSpace
from services.memory.upkeep import Upkeep
from services.runtime.failpoints import Failpoints
from tests.support.embedder import ScriptedEmbedder, UsageKept
from tests.support.raw_server import answering, raw_server, whole
from tests.unit.memory.journal import Told, added

OLD = VectorSpace("old", 4)


@dataclass
class Changing:
    """A memory whose messages have vectors of the model `old`, started anew with `new`."""

    told: Told
    old: ScriptedEmbedder = field(default_factory=lambda: ScriptedEmbedder(model="old"))
    new: ScriptedEmbedder = field(default_factory=lambda: ScriptedEmbedder(model="new"))
    usage: UsageKept = field(default_factory=UsageKept)

    def start(self, *, former: bool = True) -> None:
        store, present = self.told.store, Embeddings(self.new, self.usage.record)
        self.former = FormerModel(store, Embeddings(self.old, self.usage.record)) if former else None
        self.fill = EmbeddingFill(store, present, Failpoints(), self.former)
        self.search = Search(store, present, self.former)

    async def near(self, query: str) -> list[str]:
        result = await self.ask(query)
        assert result.without_vector is None
        bodies = await self.told.store.bodies([each.point_id for each in result.found])
        return sorted(body.split('"message_id":"')[1].split('"')[0] for body in bodies.values())

    async def ask(self, query: str) -> SearchResult:
        find = Find("message", self.told.tenant)
        return await self.search.messages(find, query, ("vector",), 100, Asker(self.told.tenant), least=0.5)


@pytest.fixture
async def changing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Changing]:
    monkeypatch.setattr(search, "LOOK_SECONDS", 0.0)
    store = EdgeMemoryStore(tmp_path / "memory")
    await store.open()
    changing = Changing(Told(store, "acme"))
    await changing.told.tell(*(added(f"m-{number:02}", f"car {number}") for number in range(20)))
    fill = EmbeddingFill(store, Embeddings(changing.old, changing.usage.record), Failpoints())
    while await fill.fill_batch():
        pass
    changing.start()
    yield changing
    await store.close()


ALL = [f"m-{number:02}" for number in range(20)]


async def test_meaning_goes_by_the_former_model_until_the_new_one_is_done(changing: Changing) -> None:
    assert changing.former
    while await changing.told.store.without_vector(VectorSpace("new", 4), 1):
        assert await changing.near("car") == ALL
        assert changing.old.asked[-1] == "car"
        await changing.fill.fill_batch()
    asked = len(changing.old.asked)
    assert await changing.near("an automobile") == ALL
    assert changing.new.asked[-1] == "an automobile"
    assert len(changing.old.asked) == asked
    assert not await changing.former.needed()


async def test_a_message_that_comes_after_the_switch_is_no_way_back(changing: Changing) -> None:
    while await changing.fill.fill_batch():
        pass
    await changing.told.tell(added("later", "car"))
    await changing.near("vehicle")
    assert changing.new.asked[-1] == "vehicle"


async def test_the_switch_does_not_wait_for_messages_that_come_and_come(changing: Changing) -> None:
    for number, expected in enumerate((ALL, ALL, [*ALL, "n-0", "n-1"])):
        await changing.fill.fill_batch()
        await changing.told.tell(added(f"n-{number}", "car"))
        assert await changing.near("vehicle") == expected
    assert changing.new.asked[-1] == "vehicle"


async def test_without_a_former_model_meaning_finds_what_is_done_so_far(changing: Changing) -> None:
    changing.start(former=False)
    await changing.fill.fill_batch()
    assert await changing.near("car") == ALL[12:]


async def test_who_goes_back_before_the_end_finds_what_was_embedded_at_once(changing: Changing) -> None:
    await changing.fill.fill_batch()
    changing.new = changing.old
    changing.start(former=False)
    assert await changing.near("car") == ALL


async def test_a_start_with_messages_of_a_model_that_nobody_names_says_once_what_to_set(changing: Changing) -> None:
    async def said(*, former: bool) -> list[tuple[int, str]]:
        changing.start(former=former)
        with capture_logs() as logs:
            for _ in range(2):
                await changing.fill.fill_batch()
        return [(each["messages"], each["reason"]) for each in logs if each["event"] == "former_model_unnamed"]

    changing.new.batch = 4
    assert await said(former=True) == []
    [(messages, reason)] = await said(former=False)
    assert messages == len(ALL) - 3 * changing.new.batch
    assert {"TURNLOG_EMBEDDING_FORMER_MODEL", "TURNLOG_EMBEDDING_FORMER_BASE_URL"} <= set(re.findall(r"\w+", reason))
    while await changing.fill.fill_batch():
        pass
    await changing.told.tell(*(added(f"later-{number}", "car") for number in range(20)))
    assert await said(former=False) == []


async def test_the_new_model_may_be_away_as_long_as_it_likes(changing: Changing) -> None:
    changing.new.trouble = EmbedderUnavailableError("no such model")
    with pytest.raises(EmbedderUnavailableError):
        await changing.fill.fill_batch()
    assert await changing.near("car") == ALL


async def test_a_former_model_that_is_away_says_so_and_is_not_needed_after_the_switch(changing: Changing) -> None:
    changing.old.trouble = EmbedderUnavailableError("the old model is away")
    assert (await changing.ask("car")).without_vector == "the old model is away"
    while await changing.fill.fill_batch():
        pass
    assert await changing.near("car") == ALL


async def test_a_query_does_not_wait_for_a_former_model_that_does_not_answer(
    changing: Changing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "QUERY_SECONDS", 0.01)

    async def silent(texts: object) -> Embedded:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(changing.old, "embed", silent)
    assert (await changing.ask("car")).without_vector == "old did not answer within 0.01 s"


async def test_a_rebuild_takes_no_former_vectors_along_so_it_switches(changing: Changing) -> None:
    await changing.near("car")
    store = changing.told.store
    build = await store.begin_build()
    assert await build.positions() == {}
    await store.switch()
    assert await changing.near("car") == []
    assert changing.new.asked[-1] == "car"


async def test_the_live_store_is_not_copied_while_the_former_vectors_are_searched(
    changing: Changing, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Began(Exception):
        pass

    class Rebuilding:
        async def run_unasked(self, builds: object) -> None:
            raise Began

    monkeypatch.setattr(upkeep, "MOST_UNINDEXED", 1)
    changing.new.batch = len(ALL) - 1
    changing.start()
    store = changing.told.store
    assert isinstance(store, EdgeMemoryStore)
    present = Embeddings(changing.new, changing.usage.record)
    keeping = Upkeep(store, present, Rebuilding(), changing.former)  # type: ignore[arg-type]
    await changing.fill.fill_batch()
    assert await keeping.optimise_when_due()
    await changing.fill.fill_batch()
    with pytest.raises(Began):
        await keeping.optimise_when_due()


async def test_a_copy_that_brings_no_vector_into_an_index_is_not_made_again_soon(
    changing: Changing, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Rebuilding:
        async def run_unasked(self, builds: object) -> RebuildStatus:
            return RebuildStatus(state="done")

    monkeypatch.setattr(upkeep, "MOST_UNINDEXED", 1)
    changing.start()
    store = changing.told.store
    assert isinstance(store, EdgeMemoryStore)
    while await changing.fill.fill_batch():
        pass
    keeping = Upkeep(store, Embeddings(changing.new, changing.usage.record), Rebuilding())  # type: ignore[arg-type]
    assert not await keeping.optimise_when_due()


@pytest.mark.parametrize(
    ("present", "former", "built"),
    [
        ("new", None, None),
        ("new", "none", None),
        ("new", "new", None),
        ("new", "old", "old"),
        ("new", "wordllama", "wordllama"),
        ("wordllama", "old", "old"),
    ],
)
def test_the_former_model_is_at_an_endpoint_or_in_this_process(
    tmp_path: Path, present: str, former: str | None, built: str | None
) -> None:
    settings = MemorySettings(data_dir=tmp_path, embedding_model=present, embedding_former_model=former)
    embedder, made = build_former_embedder(settings), build_embedder(settings)
    assert made
    assert made.model == present
    assert (embedder.model if embedder else None) == built


@pytest.mark.parametrize(
    ("moved", "former_key", "sent"),
    [(False, None, "present"), (False, "former", "former"), (True, None, None), (True, "former", "former")],
)
async def test_the_former_model_is_asked_where_it_is_with_a_key_that_was_meant_for_there(
    moved: bool, former_key: str | None, sent: str | None
) -> None:
    answer = whole(200, json.dumps({"data": [{"index": 0, "embedding": [1.0]}]}).encode())
    async with raw_server(answering(answer)) as present, raw_server(answering(answer)) as elsewhere:
        settings = MemorySettings(
            embedding_model="new",
            embedding_base_url=present.base_url,
            embedding_api_key=SecretStr("present"),
            embedding_former_model="old",
            embedding_former_base_url=elsewhere.base_url if moved else None,
            embedding_former_api_key=SecretStr(former_key) if former_key else None,
        )
        former = build_former_embedder(settings)
        assert former
        await former.embed(["car"])
        await former.close()
    asked, left_alone = (elsewhere, present) if moved else (present, elsewhere)
    assert left_alone.requests == []
    [request] = asked.requests
    assert re.findall(r"Authorization: Bearer (\w+)", request.decode()) == ([sent] if sent else [])
