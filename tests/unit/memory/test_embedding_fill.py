"""Messages get their vectors behind the write, whatever fails in between."""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from schemas.usage import UsageRecorded
from services.memory import fill
from services.memory.embeddings import (
    Embedded,
    EmbedderBusyError,
    EmbedderUnavailableError,
    Embeddings,
    TextsRefusedError,
    UsageLog,
)
from services.memory.fill import CUT, WAITING, EmbeddingFill, pause_after, seconds_until_next_try
from services.memory.projection import BuildProjection
from services.memory.qdrant_edge import EdgeMemoryStore
from services.memory.store import Find, VectorCounts, VectorSpace
from services.runtime import disk
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

    def restart(self, record: UsageLog | None = None) -> None:
        """Whatever the fill kept in its head is gone."""
        embeddings = Embeddings(self.embedder, record or self.usage.record)
        self.fill = EmbeddingFill(self.told.store, embeddings, Failpoints())

    async def fill_all(self) -> None:
        while await self.fill.fill_batch():
            pass

    async def try_all(self) -> None:
        """Tries again when it should."""
        for _ in range(50):
            with contextlib.suppress(UnavailableError):
                await self.fill_all()
                return
        raise AssertionError("50 tries were not enough")

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
    assert NOON < first.occurred_at <= datetime.now(UTC)
    assert spent[min(spent)].agent == "helper"


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


async def test_a_batch_is_paid_once_however_long_its_cost_cannot_be_written(filling: Filling) -> None:
    await filling.told.tell(*(added(f"m-{number}", "car") for number in range(20)))
    await filling.fill.fill_batch()
    filling.usage.trouble = UnavailableError("Kafka is away")
    for _ in range(5):
        with pytest.raises(UnavailableError, match="Kafka"):
            await filling.fill.fill_batch()
    filling.usage.trouble = None
    await filling.fill_all()
    assert filling.embedder.asked.count("car") == len(filling.usage.events) == 20
    assert len(await filling.near("car")) == 10


async def test_nothing_is_paid_while_the_disk_is_full(filling: Filling, monkeypatch: pytest.MonkeyPatch) -> None:
    await filling.told.tell(*(added(f"m-{number}", "car") for number in range(3)))
    with monkeypatch.context() as full:
        full.setattr(disk, "RESERVE_MEGABYTES", 10**9)
        for _ in range(5):
            with pytest.raises(UnavailableError, match="make room"):
                await filling.fill.fill_batch()
    assert "car" not in filling.embedder.asked
    await filling.fill_all()
    assert await filling.told.store.vector_counts(SPACE) == VectorCounts(stored=3)


async def test_a_batch_is_paid_and_told_once_when_the_disk_is_full_meanwhile(
    filling: Filling, monkeypatch: pytest.MonkeyPatch
) -> None:
    await filling.told.tell(*(added(f"m-{number}", "car") for number in range(3)))
    room = disk.RESERVE_MEGABYTES

    async def then_full(events: Sequence[UsageRecorded]) -> None:
        await filling.usage.record(events)
        monkeypatch.setattr(disk, "RESERVE_MEGABYTES", 10**9)

    filling.restart(then_full)
    for _ in range(5):
        with pytest.raises(UnavailableError, match="make room"):
            await filling.fill.fill_batch()
    monkeypatch.setattr(disk, "RESERVE_MEGABYTES", room)
    await filling.told.tell(removed("m-1"))
    await filling.fill_all()
    assert filling.embedder.asked.count("car") == len(filling.usage.events) == 3
    assert await filling.near("car") == ["m-0", "m-2"]


async def test_the_batch_goes_on_without_a_text_that_is_refused(filling: Filling) -> None:
    await filling.told.tell(*(added(f"m-{n}", "unreadable" if n in {2, 5} else "car") for n in range(8)))
    await filling.fill_all()
    assert await filling.near("car") == ["m-0", "m-1", "m-3", "m-4", "m-6", "m-7"]
    assert await filling.told.store.vector_counts(SPACE) == VectorCounts(stored=6, refused=2)
    assert filling.fill.health().detail == "2 are found by text alone"


async def test_one_text_that_breaks_the_model_down_stops_no_other(filling: Filling) -> None:
    filling.embedder.breaks_down = lambda texts: any("poison" in text for text in texts)
    await filling.told.tell(*(added(f"m-{number:02}", "poison" if number == 9 else "car") for number in range(20)))
    with capture_logs() as logs:
        await filling.try_all()
    assert await filling.told.store.vector_counts(SPACE) == VectorCounts(stored=19, refused=1)
    [said] = [each for each in logs if each["event"] == "message_not_embedded"]
    assert (said["message_id"], said["reason"]) == ("m-09", "the model broke down")


async def test_a_model_that_takes_no_more_for_now_is_waited_for_and_no_text_given_up(
    filling: Filling, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed, left = filling.embedder.embed, 2

    async def limited(texts: Sequence[str]) -> Embedded:
        if sum(map(len, texts)) > 20 * left:
            raise EmbedderBusyError("tokens a minute", retry_after_seconds=7)
        return await embed(texts)

    monkeypatch.setattr(filling.embedder, "embed", limited)
    await filling.told.tell(*(added(f"m-{number}", f"a long text about my car {number}") for number in range(4)))
    await filling.try_all()
    assert await filling.told.store.vector_counts(SPACE) == VectorCounts(stored=4)
    left = 1
    await filling.told.tell(added("n-1", "a long text about my dog"))
    for _ in range(10):
        with pytest.raises(EmbedderBusyError):
            await filling.fill.fill_batch()
    left = 2
    await filling.fill_all()
    assert await filling.told.store.vector_counts(SPACE) == VectorCounts(stored=5)


async def test_texts_that_are_too_many_at_once_are_embedded_by_fewer(filling: Filling) -> None:
    filling.embedder.breaks_down = lambda texts: len(texts) > 2
    await filling.told.tell(*(added(f"m-{number}", "car") for number in range(20)))
    await filling.try_all()
    assert await filling.told.store.vector_counts(SPACE) == VectorCounts(stored=20)


@pytest.mark.parametrize("count", [1, 8])
async def test_a_model_that_is_away_for_long_has_nothing_refused_and_no_batch_halved(
    filling: Filling, count: int
) -> None:
    await filling.told.tell(added("m-0", "car"))
    await filling.fill_all()
    filling.embedder.breaks_down = lambda texts: True
    await filling.told.tell(*(added(f"n-{number}", "car") for number in range(count)))
    for _ in range(10):
        with pytest.raises(EmbedderUnavailableError):
            await filling.fill.fill_batch()
    filling.embedder.breaks_down = lambda texts: False
    await filling.fill.fill_batch()
    assert await filling.told.store.vector_counts(SPACE) == VectorCounts(stored=count + 1)


async def test_no_message_is_refused_while_the_model_refuses_every_text(filling: Filling) -> None:
    await filling.told.tell(added("m-1", "car"))
    await filling.fill_all()
    filling.embedder.trouble = TextsRefusedError("API key not valid")
    await filling.told.tell(*(added(f"n-{number}", "car") for number in range(5)))
    with pytest.raises(EmbedderUnavailableError, match="meanings embeds nothing: API key not valid"):
        await filling.fill_all()
    assert await filling.told.store.vector_counts(SPACE) == VectorCounts(waiting=5, stored=1)
    filling.embedder.trouble = None
    await filling.fill_all()
    assert await filling.told.store.vector_counts(SPACE) == VectorCounts(stored=6)


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


async def test_no_message_is_refused_while_the_model_gives_no_text_a_vector(filling: Filling) -> None:
    await filling.told.tell(added("m-1", "car"))
    await filling.fill_all()
    filling.embedder.instead[""] = [0.0] * 4
    await filling.told.tell(*(added(f"n-{number}", "car") for number in range(3)))
    with pytest.raises(EmbedderUnavailableError, match="meanings embeds nothing"):
        await filling.fill_all()
    filling.embedder.instead.clear()
    await filling.fill_all()
    assert await filling.told.store.vector_counts(SPACE) == VectorCounts(stored=4)


async def test_no_message_is_refused_while_the_model_gives_every_text_a_vector_of_another_size(
    filling: Filling,
) -> None:
    await filling.told.tell(added("m-1", "car"))
    await filling.fill_all()
    filling.embedder.instead[""] = [1.0] * 5
    await filling.told.tell(*(added(f"n-{number}", "car") for number in range(3)))
    with pytest.raises(EmbedderUnavailableError, match="meanings gives a vector of 5 numbers instead of 4"):
        await filling.fill_all()
    filling.restart()
    await filling.fill_all()
    assert await filling.told.store.vector_counts(VectorSpace("meanings", 5)) == VectorCounts(stored=4)


async def test_a_model_that_gives_no_text_a_vector_is_asked_for_none_until_it_gives_one(filling: Filling) -> None:
    await filling.told.tell(added("m-1", "car"))
    await filling.fill_all()
    filling.embedder.instead[""] = [0.0] * 4
    await filling.told.tell(*(added(f"n-{number}", "dog") for number in range(3)))
    for _ in range(5):
        with pytest.raises(EmbedderUnavailableError, match="meanings embeds nothing"):
            await filling.fill.fill_batch()
    assert filling.embedder.asked.count("dog") == 3
    filling.embedder.instead.clear()
    await filling.fill_all()
    assert filling.embedder.asked.count("dog") == 6
    assert await filling.told.store.vector_counts(SPACE) == VectorCounts(stored=4)


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
    said = [each for each in logs if each["event"] == "messages_embedded_in_part"]
    assert sum(each.pop("messages") for each in said) == 3
    same = {"event": "messages_embedded_in_part", "log_level": "info", "limit_characters": 100, "model": "meanings"}
    assert all(each == same for each in said)


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


@pytest.mark.parametrize(("asked", "waits"), [(None, 4), (0, 4), (0.1, 4), (0.5, 0.5), (2, 2), (60, 60)])
def test_a_model_that_asks_for_no_time_at_all_is_left_alone_all_the_same(asked: float | None, waits: float) -> None:
    assert seconds_until_next_try(EmbedderUnavailableError("too many", asked), pause=4) == waits
    assert seconds_until_next_try(RuntimeError("a slip"), pause=4) == 4


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


def test_vectors_take_half_of_the_time_and_a_tenth_of_it_beside_a_rebuild() -> None:
    assert pause_after(0.3, is_rebuilding=False) == 0.3
    assert pause_after(0.3, is_rebuilding=True) == pytest.approx(2.7)
