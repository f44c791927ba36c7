"""A context and a search by words, by meaning and by both, through the engine."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from schemas.agents import ContextOptions, MessageRange, SearchOptions
from schemas.http import ContextRequest, ContextResponse
from services.memory.embeddings import EmbedderUnavailableError, Embeddings
from services.memory.fill import EmbeddingFill
from services.memory.qdrant_edge import EdgeMemoryStore
from services.memory.reads import Reads
from services.memory.search import Search
from services.runtime.failpoints import Failpoints
from tests.support.embedder import ScriptedEmbedder, UsageKept
from tests.unit.memory.journal import Told, added, opened


@pytest_asyncio.fixture
async def embedder() -> ScriptedEmbedder:
    return ScriptedEmbedder()


@pytest.fixture
async def usage() -> UsageKept:
    return UsageKept()


@pytest.fixture
async def told(tmp_path: Path, embedder: ScriptedEmbedder, usage: UsageKept) -> AsyncIterator[Told]:
    """A conversation whose messages have their vectors."""
    store = EdgeMemoryStore(tmp_path / "memory")
    await store.open()
    told = Told(store, "acme")
    embeddings = Embeddings(embedder, usage.record)
    told.reads = Reads(store, Search(store, embeddings))
    await told.tell(
        added("m-0", "My automobile is in the garage", user_id="u-1"),
        *(added(f"m-{number}", f"small talk {number}", user_id="u-1") for number in range(1, 6)),
        added("m-6", "The dog ate a shoe", user_id="u-1"),
        added("m-7", "small talk 7", user_id="u-1"),
        added("elsewhere", "A vehicle was stolen", thread_id="t-2", user_id="u-1"),
        added("theirs", "Somebody else's car", thread_id="t-3", user_id="u-2"),
    )
    fill = EmbeddingFill(store, embeddings, Failpoints())
    while await fill.fill_batch():
        pass
    usage.events.clear()
    yield told
    await store.close()


ALONE = MessageRange(before=0, after=0)


async def context(told: Told, query: str, *, recent: int = 0, **search: Any) -> ContextResponse:
    given = {"message_range": ALONE, "vector": True, "score_threshold": 0.5} | search
    options = ContextOptions(recent_messages=recent, search=SearchOptions.model_validate(given))
    request = ContextRequest(tenant_id="acme", thread_id="t-1", user_id="u-1", query=query, options=options)
    return await told.reads.context(request)


def found(answer: ContextResponse) -> dict[str, list[str]]:
    return {each.message.message_id: list(each.found_by) for each in answer.messages}


async def test_meaning_finds_what_words_do_not(told: Told) -> None:
    assert found(await context(told, "car", vector=False, score_threshold=None)) == {}
    assert found(await context(told, "car", text=False)) == {"m-0": ["vector"]}
    assert found(await context(told, "car dog")) == {"m-0": ["vector"], "m-6": ["text", "vector"]}


async def test_the_threshold_is_of_the_cosine_and_takes_nothing_from_the_words(told: Told) -> None:
    assert found(await context(told, "the dog ate", score_threshold=0.999)) == {"m-6": ["text", "vector"]}
    assert found(await context(told, "shoe puppy", score_threshold=0.9999)) == {"m-6": ["text", "vector"]}
    assert found(await context(told, "a shoe of a puppy and a car", score_threshold=0.9)) == {"m-6": ["text"]}


async def test_a_hit_by_meaning_brings_its_neighbours(told: Told) -> None:
    answer = await context(told, "vehicle", message_range=MessageRange(before=2, after=1))
    assert {each.message.message_id: each.reason for each in answer.messages} == {"m-0": "hit", "m-1": "neighbour"}


async def test_other_threads_of_the_user_are_found_by_meaning_and_nobody_elses(told: Told) -> None:
    assert set(found(await context(told, "car", other_threads=True))) == {"elsewhere", "m-0"}
    assert set(found(await context(told, "car"))) == {"m-0"}


async def test_no_more_hits_than_asked_for(told: Told) -> None:
    assert len(found(await context(told, "car", score_threshold=None, limit=3))) == 3


async def test_a_model_that_is_away_takes_nothing_from_the_words(told: Told, embedder: ScriptedEmbedder) -> None:
    embedder.trouble = EmbedderUnavailableError("the model is away")
    answer = await context(told, "dog")
    assert found(answer) == {"m-6": ["text"]}
    assert answer.without_vector == "the model is away"
    assert (await context(told, "dog", text=False)).messages == []


async def test_the_query_of_a_turn_is_charged_once_and_to_whom_it_concerns(told: Told, usage: UsageKept) -> None:
    await told.tell(opened("turn-1"), added("asks", "Which car?", turn_id="turn-1", user_id="u-1"))
    options = ContextOptions(search=SearchOptions(vector=True))
    for _ in range(2):
        await told.reads.context(
            ContextRequest(tenant_id="acme", thread_id="t-1", turn_id="turn-1", user_id="u-1", options=options)
        )
    (spent,) = usage.events
    assert (spent.tenant_id, spent.thread_id, spent.turn_id, spent.user_id) == ("acme", "t-1", "turn-1", "u-1")


async def test_who_looks_at_the_context_of_a_turn_is_charged_for_himself(told: Told, usage: UsageKept) -> None:
    await told.tell(opened("turn-1"), added("asks", "Which car?", turn_id="turn-1", user_id="u-1"))
    options = ContextOptions(search=SearchOptions(vector=True))
    request = ContextRequest(tenant_id="acme", thread_id="t-1", turn_id="turn-1", options=options, preview=True)
    assert "m-0" in found(await told.reads.context(request))
    (spent,) = usage.events
    assert (spent.tenant_id, spent.thread_id, spent.turn_id) == ("acme", "t-1", None)


async def test_words_alone_cost_nothing(told: Told, usage: UsageKept) -> None:
    await context(told, "dog", vector=False)
    assert usage.events == []
