"""What an audit expects of memory is what memory's projection makes of the same events, whatever their history."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from schemas.journal import JournalEvent
from services.cli.audit.expected import ExpectedDocuments, key_of
from services.memory.fingerprint import fingerprint
from services.memory.projection import JournalProjection
from services.memory.projector import message_point, thread_point, turn_point
from services.memory.qdrant_edge import EdgeMemoryStore
from services.runtime.records import ProjectedRecord
from tests.unit.memory.journal import added, answers, asks, closed, created, deleted, opened, removed, updated, waiting


def some_event(chance: random.Random, number: int) -> JournalEvent:
    given: dict[str, Any] = {"thread_id": f"t-{chance.randrange(4)}", "tenant_id": f"tenant-{chance.randrange(2)}"}
    message, turn, call = f"m-{chance.randrange(30)}", f"turn-{chance.randrange(8)}", f"c-{chance.randrange(9)}"
    match chance.randrange(10):
        case 0:
            return created(seconds=number, title=chance.choice([None, "Plans"]), **given)
        case 1:
            return updated(seconds=number, summary=f"about {number}", metadata={"number": number}, **given)
        case 2 if chance.random() < 0.5:
            return deleted(seconds=number, **given)
        case 3:
            return opened(turn, seconds=number, user_id=chance.choice([None, "u-1"]), **given)
        case 4:
            return waiting(turn, **given)
        case 5:
            return closed(turn, seconds=number, **given)
        case 6:
            return asks(message, f"{call} of {message} in {given}", seconds=number, **given)
        case 7:
            return answers(message, call, **given)
        case 8 if chance.random() < 0.3:
            return removed(from_position=chance.randrange(number + 1), to_position=number + 5, **given)
        case 8:
            return removed(message, f"m-{chance.randrange(30)}", **given)
        case _:
            return added(message, f"words {number}", seconds=number, user_id=chance.choice([None, "u-2"]), **given)


async def fingerprints_of(store: EdgeMemoryStore) -> dict[bytes, bytes]:
    found = await store.of_partition(0, after=None, limit=10_000)
    return {key_of(each.point_id): fingerprint(each) for each in found}


def expected_of(events: Sequence[JournalEvent]) -> ExpectedDocuments:
    expected = ExpectedDocuments()
    for offset, event in enumerate(events):
        expected.apply(offset, event)
    return expected


@pytest.mark.parametrize("history", range(5))
async def test_a_projection_and_its_rebuild_are_as_expected_whatever_the_history_and_its_batches(
    tmp_path: Path, seed: int, history: int
) -> None:
    chance = random.Random(seed + history)
    events = [some_event(chance, number) for number in range(200)]
    store = EdgeMemoryStore(tmp_path / "memory")
    await store.open()
    projection, offset, whole = JournalProjection(store), 0, False
    while not whole:
        end = min(len(events), offset + chance.randrange(1, 40))
        records = [ProjectedRecord(each, 0, None, events[each]) for each in range(offset, end)]
        await projection.apply(0, records, end)
        whole = end == len(events)
        offset = end if whole or chance.random() < 0.7 else chance.randrange(offset, end)  # a restart reads it again
    expected = expected_of(events)
    must = {key: found.fingerprint for key in expected.keys() if (found := expected.get(key)) is not None}  # noqa: SIM118
    assert await fingerprints_of(store) == must
    build = await store.begin_build()
    await JournalProjection(build).apply(0, [ProjectedRecord(each, 0, None, events[each]) for each in range(200)], 200)
    await store.switch()
    await store.clean()
    assert await fingerprints_of(store) == must
    await store.close()


def test_what_is_expected_says_which_event_wrote_it() -> None:
    expected = expected_of([opened("turn-1"), added("m-1"), added("m-2"), closed("turn-1"), removed("m-2")])
    of_message, of_turn = (expected.get(key_of(each)) for each in (point("m-1"), turn_point("default", "turn-1")))
    assert of_message is not None
    assert of_turn is not None
    assert (of_message.kind, of_message.offset) == ("message", 1)
    assert (of_turn.kind, of_turn.offset) == ("turn", 3)
    assert expected.get(key_of(point("m-2"))) is None
    body = expected.body(key_of(turn_point("default", "turn-1")))
    assert body is not None
    assert '"completed"' in body


def test_a_deleted_thread_takes_its_messages_along_and_leaves_its_turns() -> None:
    expected = expected_of([opened("turn-1"), added("m-1"), deleted(), added("m-2")])
    assert expected.get(key_of(point("m-1"))) is None
    assert expected.get(key_of(point("m-2"))) is not None
    assert expected.get(key_of(turn_point("default", "turn-1"))) is not None
    assert expected.get(key_of(thread_point("default", "t-1"))) is not None


def test_documents_that_were_dropped_are_expected_again_once_they_change() -> None:
    expected = expected_of([added("m-1"), added("m-2")])
    expected.drop([*expected.keys()])
    assert [*expected.keys()] == []
    expected.apply(2, added("m-2", "again"))
    assert {*expected.keys()} == {key_of(point("m-2")), key_of(thread_point("default", "t-1"))}


def test_every_state_of_a_watched_document_is_remembered() -> None:
    expected = expected_of([added("m-1", "one"), added("m-2")])
    first, second, third = (key_of(point(f"m-{number}")) for number in (1, 2, 3))
    expected.watch([first, second, third])
    expected.apply(2, removed("m-1"))
    expected.apply(3, added("m-3"))
    expected.apply(4, deleted())
    expected.apply(5, added("m-1", "three"))
    assert [len(expected.states(each)) for each in (first, second, third)] == [3, 2, 2]
    assert all(None in expected.states(each) for each in (first, second, third))


def point(message_id: str) -> str:
    return message_point("default", "t-1", message_id)
