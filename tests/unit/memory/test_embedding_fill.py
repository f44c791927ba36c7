"""Messages get their vectors behind the write, whatever fails in between."""

import asyncio
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from schemas.ids import time_of
from services.memory import fill
from services.memory.embeddings import EmbedderUnavailableError, Embeddings
from services.memory.fill import CUT, WAITING, EmbeddingFill
from services.memory.projection import BuildProjection
from services.memory.qdrant_edge import EdgeMemoryStore
from services.memory.store import Find, VectorCounts, VectorSpace
from services.runtime.errors import UnavailableError
from services.runtime.failpoints import Failpoints
from services.runtime.records import ProjectedRecord
from tests.support.embedder import ScriptedEmbedder, UsageKept, meaning_of
from tests.support.waiting import eventually
from tests.unit.memory.journal import NOON, Told, added, asks, removed

SPACE = VectorSpace("meanings", 4)


@dataclass
class Filling:
    """A memory of its own, a model and what it has spent."""

    told: Told
    embedder: ScriptedEmbedder = field(default_factory=ScriptedEmbedder)
    usage: UsageKept = field(default_factory=UsageKept)
    fill: EmbeddingFill = field(init=False)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Whatever the fill kept in its head is gone."""
        embeddings = Embeddings(self.embedder, self.usage.record)
        self.fill = EmbeddingFill(self.told.store, embeddings, Failpoints())

    async def fill_all(self) -> None:
        while await self.fill.fill_batch():
            pass

    async def near(self, text: str) -> list[str]:
        space = VectorSpace(self.embedder.model, 4)
        hits = await self.told.store.search_vector(
            Find("message", self.told.tenant), space, meaning_of(text), 10, least=0.5
        )
        bodies = await self.told.store.bodies([hit.point_id for hit in hits])
        return sorted(body.split('"message_id":"')[1].split('"')[0] for body in bodies.values())


@pytest.fixture
async def filling(tmp_path: Path) -> AsyncIterator[Filling]:
    store = EdgeMemoryStore(tmp_path / "memory")
    await store.open()
    yield Filling(Told(store, "acme"))
    await store.close()


async def test_every_message_that_says_something_gets_its_vector(filling: Filling) -> None:
    await filling.told.tell(
        added("m-1", "My automobile is red"),
        added("m-2", "The hound barks"),
        asks("m-3", "c-1"),
        added("m-4"),
        *(added(f"n-{number}", "Nothing") for number in range(20)),
    )
    await filling.fill_all()
    assert await filling.near("a car") == ["m-1"]
    assert await filling.near("puppy") == ["m-2"]
    assert await filling.told.store.vector_counts(SPACE) == VectorCounts(stored=22)
    assert filling.fill.health().detail == ""


async def test_what_was_spent_is_recorded_once_a_message_and_adds_up(filling: Filling) -> None:
    await filling.told.tell(
        added("m-1", "car " * 10, turn_id="turn-1", user_id="u-1"),
        added("m-2", "dog", role="assistant", agent="helper"),
    )
    await filling.fill_all()
    spent = {each.input_tokens: each for each in filling.usage.events}
    assert sum(spent) == 6
    first = spent[max(spent)]
    assert (first.kind, first.provider, first.model, first.billable) == ("embedding", "scripted", "meanings", True)
    assert (first.tenant_id, first.thread_id, first.turn_id, first.user_id) == ("acme", "t-1", "turn-1", "u-1")
    assert first.occurred_at == NOON
    assert spent[min(spent)].agent == "helper"


async def test_what_an_imported_message_costs_is_of_the_time_of_the_import(filling: Filling) -> None:
    await filling.told.tell(added("m-1", "car", seconds=-(10**8), appended_at=NOON))
    await filling.fill_all()
    [spent] = filling.usage.events
    assert (spent.occurred_at, time_of(spent.usage_id)) == (NOON, NOON)


async def test_a_text_that_is_embedded_again_is_the_same_fact_and_a_changed_one_is_not(filling: Filling) -> None:
    for text in ("car", "car", "dog"):
        await filling.told.tell(removed("m-1"), added("m-1", text))
        await filling.fill_all()
    first, again, changed = (each.usage_id for each in filling.usage.events)
    assert first == again != changed


async def test_nothing_is_recorded_where_nothing_is_charged(filling: Filling) -> None:
    filling.embedder.tokens = None
    await filling.told.tell(added("m-1", "car"))
    await filling.fill_all()
    assert filling.usage.events == []
    assert await filling.near("car") == ["m-1"]


async def test_no_vector_is_stored_before_its_usage_is_on_the_log(filling: Filling) -> None:
    await filling.told.tell(added("m-1", "car"))
    filling.usage.trouble = UnavailableError("Kafka is away")
    with pytest.raises(UnavailableError):
        await filling.fill.fill_batch()
    assert await filling.near("car") == []
    filling.usage.trouble = None
    filling.restart()
    await filling.fill_all()
    assert await filling.near("car") == ["m-1"]
    assert len(filling.usage.events) == 1


async def test_the_batch_goes_on_without_a_text_that_is_refused(filling: Filling) -> None:
    await filling.told.tell(*(added(f"m-{n}", "unreadable" if n in {2, 5} else "car") for n in range(8)))
    await filling.fill_all()
    assert await filling.near("car") == ["m-0", "m-1", "m-3", "m-4", "m-6", "m-7"]
    assert await filling.told.store.vector_counts(SPACE) == VectorCounts(stored=6, refused=2)
    assert filling.fill.health().detail == "2 are found by text alone"


async def test_the_batch_goes_on_without_a_vector_of_another_size(filling: Filling) -> None:
    await filling.told.tell(added("m-1", "car"), added("m-2", "odd car"), added("m-3", "car"))
    await filling.fill_all()
    assert await filling.near("car") == ["m-1", "m-3"]
    assert await filling.told.store.vector_counts(SPACE) == VectorCounts(stored=2, refused=1)


@pytest.mark.parametrize("vector", [[], [math.nan] * 4, [1.0, math.inf, 0.0, 0.0], [1e300] * 4, [0.0] * 4])
async def test_the_batch_goes_on_without_a_vector_that_cannot_be_compared(
    filling: Filling, vector: list[float]
) -> None:
    filling.embedder.instead["truck"] = vector
    await filling.told.tell(added("m-1", "car"), added("m-2", "truck car"), added("m-3", "car", thread_id="t-2"))
    with capture_logs() as logs:
        await filling.fill_all()
    assert await filling.near("car") == ["m-1", "m-3"]
    assert await filling.told.store.vector_counts(SPACE) == VectorCounts(stored=2, refused=1)
    [said] = [each for each in logs if each["event"] == "message_not_embedded"]
    assert said["message_id"] == "m-2"
    assert "vector" in said["reason"]


def test_the_readme_names_what_is_counted() -> None:
    readme = (Path(__file__).parents[3] / "services" / "memory" / "README.md").read_text()
    assert f"`{next(iter(CUT.describe())).name}_total`" in readme
    assert f"wait for a vector, counted every {fill.COUNT_SECONDS:g} s" in readme


async def test_of_a_long_text_the_beginning_is_embedded_which_is_said(filling: Filling) -> None:
    before = CUT._value.get()
    long = (added(f"m-{number}", "car " * (1000 if number % 2 else 1)) for number in range(6))
    await filling.told.tell(*long, added("n-1", "unreadable " * 1000))
    with capture_logs() as logs:
        await filling.fill_all()
    assert max(map(len, filling.embedder.asked)) == filling.embedder.longest
    assert len(await filling.near("car")) == 6
    assert CUT._value.get() - before == 3
    [said] = [each for each in logs if each["event"] == "messages_embedded_in_part"]
    assert said == said | {"log_level": "info", "messages": 3, "limit_characters": 100, "model": "meanings"}
    assert "car" not in str(said)


async def test_another_model_embeds_everything_anew_the_newest_first(filling: Filling) -> None:
    await filling.told.tell(*(added(f"m-{number}", f"car {number}") for number in range(10)))
    await filling.fill_all()
    filling.embedder = ScriptedEmbedder(model="other meanings")
    filling.restart()
    await filling.fill.fill_batch()
    assert filling.embedder.asked[1:] == [f"car {number}" for number in range(9, 1, -1)]
    await filling.fill_all()
    assert len(await filling.near("car")) == 10


async def test_a_model_that_is_away_is_asked_again_and_memory_says_what_waits(filling: Filling) -> None:
    filling.embedder.trouble = EmbedderUnavailableError("no model here", retry_after_seconds=0.01)
    await filling.told.tell(added("m-1", "car"))
    await filling.fill.start()

    async def said() -> bool:
        return "no model here" in filling.fill.health().detail

    async def found() -> bool:
        return await filling.near("car") == ["m-1"]

    await eventually(said, "readiness to say that the model is away")
    assert filling.fill.health().ready
    filling.embedder.trouble = None
    await eventually(found, "the vector of the message")
    await filling.told.tell(added("m-2", "another car"))
    filling.fill.wake()
    await eventually(lambda: _two(filling), "the vector of a message that came later")
    await filling.fill.stop()


async def _two(filling: Filling) -> bool:
    return await filling.near("car") == ["m-1", "m-2"]


async def test_what_waits_is_counted_while_the_model_is_away(filling: Filling) -> None:
    await filling.told.tell(added("m-1", "car"))
    await filling.fill_all()
    assert WAITING._value.get() == 0
    filling.embedder.trouble = EmbedderUnavailableError("no model here", retry_after_seconds=3600)
    await filling.told.tell(added("m-2", "car"), added("m-3", "car"))
    await filling.fill.start()
    await eventually(lambda: _waiting(2), "the gauge to say that two wait")
    assert filling.fill.health().detail == "2 messages wait for a vector; no model here"
    await filling.fill.stop()


async def test_what_waits_is_counted_again_and_again_while_the_model_asks_for_an_hour(
    filling: Filling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fill, "COUNT_SECONDS", 0.01)
    filling.embedder.trouble = EmbedderUnavailableError("no model here", retry_after_seconds=3600)
    await filling.fill.start()
    for number in (1, 2):
        await filling.told.tell(added(f"m-{number}", "car"))
        await eventually(lambda number=number: _waiting(number), f"the gauge to say that {number} wait")
    assert filling.fill.health().detail == "at most 2 messages wait for a vector; no model here"
    await filling.fill.stop()


async def _waiting(count: int) -> bool:
    return WAITING._value.get() == count


async def test_what_ends_a_batch_does_not_end_the_filling(filling: Filling) -> None:
    filling.usage.trouble = RuntimeError("a slip")
    await filling.told.tell(added("m-1", "car"))
    await filling.fill.start()

    async def said() -> bool:
        return "a slip" in filling.fill.health().detail

    await eventually(said, "readiness to say what went wrong")
    filling.usage.trouble = None
    async with asyncio.timeout(30):
        while await filling.near("car") != ["m-1"]:
            await asyncio.sleep(0.05)
    await filling.fill.stop()


async def test_a_rebuild_takes_the_vectors_along_and_embeds_nothing_twice(filling: Filling) -> None:
    events = [added("m-1", "car", tenant_id="acme"), added("m-2", "dog", tenant_id="acme")]
    await filling.told.tell(*events)
    await filling.fill_all()
    asked = len(filling.embedder.asked)
    store = filling.told.store
    build = BuildProjection(await store.begin_build(), store, SPACE)
    records = [ProjectedRecord(offset, 0, event.thread_id, event) for offset, event in enumerate(events)]
    await build.apply(0, records, 2)
    await store.switch()
    await filling.fill_all()
    assert await filling.near("automobile") == ["m-1"]
    assert len(filling.embedder.asked) == asked


async def test_a_rebuild_takes_no_vector_of_a_text_that_the_log_does_not_have(filling: Filling) -> None:
    await filling.told.tell(added("m-1", "car", tenant_id="acme"))
    await filling.fill_all()
    store = filling.told.store
    build = BuildProjection(await store.begin_build(), store, SPACE)
    event = added("m-1", "dog", tenant_id="acme")
    await build.apply(0, [ProjectedRecord(0, 0, event.thread_id, event)], 1)
    await store.switch()
    assert (await store.vector_counts(SPACE)).stored == 0
    await filling.fill_all()
    assert await filling.near("automobile") == []
