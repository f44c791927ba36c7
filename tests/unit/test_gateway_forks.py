"""How the copies of a fork are cut into commands, and that a fork of what goes meanwhile is no success."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from schemas.http import MessageView, Page, ThreadView
from schemas.ids import EPOCH
from schemas.journal import ForkedFrom
from schemas.prompts import NewMessage, ThreadCreate
from services.gateway.forks import BATCH_BYTES, BATCH_MESSAGES, batches, fork
from services.gateway.ports import Ports
from services.runtime.web import ProblemError, problem


class Memory:
    """Two pages of one message each; the thread is deleted when so many reads of it were answered."""

    def __init__(self, reads_until_deleted: int) -> None:
        self._reads_left = reads_until_deleted

    async def get(self, path: str, **asked: Any) -> Any:
        if not path.startswith("threads/old") or not self._reads_left:
            raise problem(404, "not-found", "Not found")
        self._reads_left -= 1
        if not path.endswith("/messages"):
            thread = ThreadView(thread_id="old", created_at=EPOCH, updated_at=EPOCH)
            return thread.model_dump(mode="json")
        position = 1 if asked["cursor"] else 0
        message = MessageView(
            message_id=f"m-{position}",
            thread_id="old",
            position=position,
            role="user",
            parts=[],
            text="",
            created_at=EPOCH,
        )
        return Page(items=[message], next_cursor=None if position else "next").model_dump(mode="json")


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.gateway.reads.KNOWN_SECONDS", 0)


async def forked(reads_until_deleted: int) -> list[int]:
    """How many messages each command copies."""
    log = SimpleNamespace(journal_position=lambda thread_id: (0, 0))
    ports = cast("Ports", SimpleNamespace(log=log, memory=Memory(reads_until_deleted)))
    source = ForkedFrom(thread_id="old")
    create = ThreadCreate(thread_id="new", forked_from=source)
    return [count async for _, count in fork(ports, "default", source, create)]


async def test_a_fork_of_a_thread_that_stays_is_whole() -> None:
    assert await forked(9) == [0, 1, 1]


@pytest.mark.parametrize(("reads", "status"), [(0, 404), (1, 409), (2, 409), (3, 409)])
async def test_a_fork_of_a_thread_that_is_deleted_meanwhile_is_a_problem(reads: int, status: int) -> None:
    with pytest.raises(ProblemError) as raised:
        await forked(reads)
    assert raised.value.problem.status == status


def messages(count: int, size: int = 1) -> list[NewMessage]:
    return [NewMessage(message_id=f"m-{number}", role="user", content="x" * size) for number in range(count)]


def test_a_command_carries_no_more_messages_than_one_transaction_should_write() -> None:
    copies = messages(BATCH_MESSAGES * 2 + 1)
    cut = list(batches(copies))
    assert [len(each) for each in cut] == [BATCH_MESSAGES, BATCH_MESSAGES, 1]
    assert [each for batch in cut for each in batch] == copies


def test_large_messages_go_by_their_size_and_the_largest_by_itself() -> None:
    third = BATCH_BYTES // 3
    assert [len(each) for each in batches(messages(5, third))] == [2, 2, 1]
    assert [len(each) for each in batches(messages(2, BATCH_BYTES * 2))] == [1, 1]


def test_nothing_to_copy_is_no_command() -> None:
    assert list(batches([])) == []
