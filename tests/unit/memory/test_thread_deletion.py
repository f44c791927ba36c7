"""Very many messages are deleted in steps, which a thread that goes shows; a deletion that was cut short goes on."""

from collections.abc import Iterator

import pytest

from schemas.http import ThreadView
from services.memory.reads import NotFoundError
from services.memory.store import Changes
from services.runtime.errors import UnavailableError
from tests.unit.memory.journal import Told, added, asks, deleted, removed

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(autouse=True)
def _few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.memory.projection.REMOVED_AT_ONCE", 10)


class Watched:
    """The store of a test, with what each write deleted, and the thread as it was seen behind it."""

    def __init__(self, told: Told, monkeypatch: pytest.MonkeyPatch, *, writes: int = 99) -> None:
        self.seen: list[ThreadView] = []
        self.sizes: list[int] = []
        write = told.store.write
        left: Iterator[int] = iter(range(writes))

        async def watched(partition: int, changes: Changes, next_offset: int) -> None:
            if next(left, None) is None:
                raise UnavailableError("the process dies")
            await write(partition, changes, next_offset)
            self.sizes.append(len(changes.deletes))
            if await told.reads.is_being_deleted(told.tenant, "t-1"):
                self.seen.append(await told.reads.thread(told.tenant, "t-1"))

        monkeypatch.setattr(told.store, "write", watched)

    @property
    def progress(self) -> list[tuple[int, int]]:
        return [(each.deletion.removed, each.deletion.total) for each in self.seen if each.deletion]


async def long_thread(told: Told) -> None:
    await told.tell(*(asks(f"m-{number}", f"{told.tenant} {number}") for number in range(35)))
    await told.tell(added("other", thread_id="t-2"))


async def is_gone(told: Told) -> bool:
    for call, name in ((told.reads.thread, "t-1"), (told.reads.tool_call, f"{told.tenant} 7")):
        with pytest.raises(NotFoundError):
            await call(told.tenant, name)
    return not (await told.reads.messages(told.tenant, "t-1")).items


async def test_a_thread_shows_how_far_its_deletion_is(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    await long_thread(told)
    watched = Watched(told, monkeypatch)
    await told.tell(deleted())
    assert watched.progress[:4] == [(0, 35), (10, 35), (20, 35), (30, 35)]
    assert set(watched.progress[4:]) == {(30, 35)}
    assert {each.status for each in watched.seen} == {"deleting"}
    assert await is_gone(told)
    assert len((await told.reads.messages(told.tenant, "t-2")).items) == 1


async def test_a_deletion_that_was_cut_short_goes_on_where_it_was(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    await long_thread(told)
    with monkeypatch.context() as patched:
        Watched(told, patched, writes=2)
        with pytest.raises(UnavailableError):
            await told.tell(deleted())
    assert len((await told.reads.messages(told.tenant, "t-1")).items) == 25
    told.offset -= 1
    watched = Watched(told, monkeypatch)
    await told.tell(deleted(), added("m-1", "a new life"))
    assert watched.progress[:3] == [(10, 35), (20, 35), (30, 35)]
    assert [each.text for each in (await told.reads.messages(told.tenant, "t-1")).items] == ["a new life"]
    assert (await told.reads.thread(told.tenant, "t-1")).status == "active"


async def test_many_messages_are_deleted_by_their_positions_in_steps(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    await long_thread(told)
    await told.tell(asks("last", f"{told.tenant} last"))
    watched = Watched(told, monkeypatch)
    await told.tell(removed(to_position=34))
    assert max(watched.sizes) == 10
    assert watched.progress == []
    assert [each.message_id for each in (await told.reads.messages(told.tenant, "t-1")).items] == ["last"]
    assert (await told.reads.tool_call(told.tenant, f"{told.tenant} last")).thread_id == "t-1"
    with pytest.raises(NotFoundError):
        await told.reads.tool_call(told.tenant, f"{told.tenant} 7")


async def test_what_was_said_before_a_long_deletion_that_was_cut_short_is_not_said_behind_it(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that is appended again is where it was, also where it is gone when that is read again."""
    await long_thread(told)
    events = added("m-1", "again"), removed(to_position=34)
    with monkeypatch.context() as patched:
        Watched(told, patched, writes=3)
        with pytest.raises(UnavailableError):
            await told.tell(*events)
    told.offset -= 2
    await told.tell(*events)
    assert (await told.reads.messages(told.tenant, "t-1")).items == []


async def test_a_short_thread_goes_at_once(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    await told.tell(*(asks(f"m-{number}", f"{told.tenant} {number}") for number in range(9)))
    watched = Watched(told, monkeypatch)
    await told.tell(deleted())
    assert watched.seen == []
    assert await is_gone(told)
