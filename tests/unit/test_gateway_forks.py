"""How the copies of a fork are cut into commands, and that a fork of what goes meanwhile is no success."""

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from schemas.base import JsonObject
from schemas.envelope import encode_event
from schemas.http import MessageView, Page, ThreadView
from schemas.ids import EPOCH
from schemas.incoming import decode_prompts_event
from schemas.journal import ForkedFrom
from schemas.parts import TextPart
from schemas.prompts import MessagesAppend, NewMessage, ThreadCreate
from schemas.topics import MAX_EVENT_BYTES, MAX_RECORD_BYTES
from services.gateway.forks import BATCH_BYTES, BATCH_MESSAGES, batches, fork
from services.gateway.ports import Ports
from services.gateway.writes import ThreadChange
from services.runtime.web import ProblemError, problem


class Memory:
    """Two pages of one message each, the last of which is known at the second look; the thread is deleted when so many
    reads of it were answered."""

    def __init__(self, reads_until_deleted: int, *, last: str = "", metadata: JsonObject | None = None) -> None:
        self._reads_left = reads_until_deleted
        self._last = last
        self._metadata = metadata or {}
        self._looks_for_last = 0

    async def get(self, path: str, **asked: Any) -> Any:
        if not path.startswith("threads/old") or not self._reads_left:
            raise problem(404, "not-found", "Not found")
        self._reads_left -= 1
        if path.endswith("/messages/m-1"):
            self._looks_for_last += 1
            if self._looks_for_last == 1:
                raise problem(404, "not-found", "Not found")
            return self._message(1).model_dump(mode="json")
        if not path.endswith("/messages"):
            thread = ThreadView(thread_id="old", created_at=EPOCH, updated_at=EPOCH)
            return thread.model_dump(mode="json")
        position = 1 if asked["cursor"] else 0
        page = Page(items=[self._message(position)], next_cursor=None if position else "next")
        return page.model_dump(mode="json")

    def _message(self, position: int) -> MessageView:
        return MessageView(
            message_id=f"m-{position}",
            thread_id="old",
            position=position,
            role="user",
            parts=[TextPart(text=self._last)] if position else [],
            text="",
            metadata=self._metadata,
            created_at=EPOCH,
        )


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.gateway.reads.KNOWN_SECONDS", 0)


async def forked(
    memory: Memory, commands: list[ThreadChange] | None = None, *, message_id: str | None = None
) -> list[int]:
    """How many messages each command copies."""
    log = SimpleNamespace(journal_position=lambda thread_id: (0, 0))
    ports = cast("Ports", SimpleNamespace(log=log, memory=memory))
    source = ForkedFrom(thread_id="old", message_id=message_id)
    create = ThreadCreate(thread_id="new", forked_from=source)
    counts: list[int] = []
    async for command, count in fork(ports, "default", source, create):
        counts.append(count)
        if commands is not None:
            commands.append(command)
    return counts


async def test_a_fork_of_a_thread_that_stays_is_whole() -> None:
    assert await forked(Memory(9)) == [0, 1, 1]


async def test_a_message_that_was_appended_a_moment_ago_is_given_time_to_be_known() -> None:
    assert await forked(Memory(9), message_id="m-1") == [0, 1, 1]


@pytest.mark.parametrize(("reads", "status"), [(0, 404), *((reads, 409) for reads in range(1, 7))])
async def test_a_fork_of_a_thread_that_is_deleted_meanwhile_is_a_problem(reads: int, status: int) -> None:
    with pytest.raises(ProblemError) as raised:
        await forked(Memory(reads))
    assert raised.value.problem.status == status


@pytest.mark.parametrize("size", [MAX_EVENT_BYTES - 100, 3 * MAX_EVENT_BYTES])
async def test_a_message_that_is_larger_than_a_prompt_may_be_is_copied(size: int) -> None:
    commands: list[ThreadChange] = []
    assert await forked(Memory(9, last="x" * size), commands) == [0, 1, 1]
    for command in commands:
        assert decode_prompts_event(encode_event(command), {"ce_type": command.type}, EPOCH) == command


@pytest.mark.parametrize(
    "memory",
    [Memory(99, last="x" * MAX_RECORD_BYTES), Memory(99, metadata={"deep": json.loads("[" * 190 + "]" * 190)})],
    ids=["too-large", "too-deep"],
)
async def test_a_message_that_no_command_can_carry_is_named_before_anything_is_written(memory: Memory) -> None:
    commands: list[ThreadChange] = []
    with pytest.raises(ProblemError) as raised:
        await forked(memory, commands)
    document = raised.value.problem
    assert (document.status, document.type) == (409, "urn:turnlog:problem:message-not-copied")
    assert "of thread 'old'" in (document.detail or "")
    assert commands == []


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


def test_what_counts_is_the_bytes_that_are_written() -> None:
    copies = [NewMessage(message_id=f"m-{number}", role="user", content="日" * 30_000) for number in range(100)]
    for batch in batches(copies):
        assert len(encode_event(MessagesAppend(thread_id="t", messages=batch))) < MAX_EVENT_BYTES


def test_nothing_to_copy_is_no_command() -> None:
    assert list(batches([])) == []
