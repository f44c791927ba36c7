"""Whoever waits for a change or an answer waits as long as he said, however busy the thread is."""

import asyncio
import contextlib
from collections.abc import Callable, Generator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from schemas.ids import record_id, turn_id_of
from schemas.prompts import MessagesAppend, NewMessage, PromptSubmitted, ThreadDelete, ThreadUpdate
from services.gateway.fanout import LISTENER_BUFFER, Fanout, Listener, LogEvent
from services.gateway.ports import Ports
from services.gateway.turns import submit_and_wait
from services.gateway.writes import ThreadChange, write
from services.runtime.errors import UnavailableError
from services.runtime.web import problem

NOISE = 3 * LISTENER_BUFFER
RECORD = record_id("prompts", 0, 7)


def event(offset: int, event_id: str, *, topic: str = "messages", turn_id: str | None = None) -> LogEvent:
    return LogEvent(topic, offset, 0, "message.added", "default", "t", {"turn_id": turn_id}, "{}", event_id)


class Log:
    """A busy thread: so many events of others are read in one go, before the log answers and after it has."""

    prompts_topic = "prompts"

    def __init__(self, *carried_out: LogEvent) -> None:
        self._fanout = Fanout()
        self._carried_out = carried_out
        self.early = False
        """Whether the change is carried out before the log has answered."""

    @contextlib.contextmanager
    def listening(
        self, tenant_id: str, thread_id: str, *, awaited: Callable[[LogEvent], bool] | None = None
    ) -> Generator[Listener]:
        listener = self._fanout.listen(tenant_id, thread_id, 0, awaited=awaited)
        yield listener
        self._fanout.leave(listener)

    def saw_end_of(self, tenant_id: str, turn_id: str) -> bool:
        return False

    async def submit(self, asked: Any) -> tuple[int, int]:
        self._publish_noise()
        if self.early:
            self._carry_out()
        else:
            asyncio.get_running_loop().call_later(0.02, self._carry_out)
        return 0, 7

    def _carry_out(self) -> None:
        self._publish_noise()
        for each in self._carried_out:
            self._fanout.publish(0, each)

    def _publish_noise(self) -> None:
        for offset in range(NOISE):
            self._fanout.publish(0, event(offset, f"other-{offset}"))


class Memory:
    """Answers one after the other; the last one again and again."""

    def __init__(self, *answers: Any) -> None:
        self._answers = answers
        self.asked: list[int] = []

    async def get(self, path: str, *, min_offset: int, **asked: Any) -> Any:
        answer = self._answers[min(len(self.asked), len(self._answers) - 1)]
        self.asked.append(min_offset)
        if isinstance(answer, Exception):
            raise answer
        return answer


def ports_of(log: Log, memory: Memory) -> Ports:
    return cast("Ports", SimpleNamespace(log=log, memory=memory))


APPEND = MessagesAppend(thread_id="t", messages=[NewMessage(role="user", content="x", message_id="m-1")])
ACTIVE, GONE = {"status": "active"}, problem(404, "not-found", "Not found")


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize(
    ("change", "event_id", "shown"),
    [
        (APPEND, "m-1", ACTIVE),
        (ThreadUpdate(thread_id="t", title="new"), RECORD, ACTIVE),
        (ThreadDelete(thread_id="t"), RECORD, GONE),
    ],
)
async def test_a_change_of_a_busy_thread_is_waited_for_until_memory_shows_it(
    change: ThreadChange, event_id: str, shown: Any, early: bool
) -> None:
    log, memory = Log(event(NOISE, event_id)), Memory(shown)
    log.early = early
    assert await write(ports_of(log, memory), change, 10) == 200
    assert memory.asked == [NOISE + 1]


async def test_a_change_that_is_not_carried_out_is_waited_for_as_long_as_was_asked() -> None:
    began = asyncio.get_running_loop().time()
    assert await write(ports_of(Log(), Memory(ACTIVE)), APPEND, 0.2) == 202
    assert asyncio.get_running_loop().time() - began >= 0.2


async def test_while_memory_is_away_nobody_waits() -> None:
    ports = ports_of(Log(event(NOISE, "m-1")), Memory(UnavailableError("memory is away")))
    assert await write(ports, APPEND, 10) == 202


async def test_an_answer_on_a_busy_thread_is_waited_for() -> None:
    prompt = PromptSubmitted(thread_id="t", agent="a", content="x", prompt_id="p")
    turn_id = turn_id_of("default", "t", "p")
    log = Log(
        event(0, "c-1", topic="completions", turn_id="another"), event(1, "c-2", topic="completions", turn_id=turn_id)
    )
    accepted, ended = await submit_and_wait(ports_of(log, Memory(GONE)), prompt, 10, repeatable=True)
    assert (accepted.turn_id, ended) == (turn_id, {"turn_id": turn_id})
