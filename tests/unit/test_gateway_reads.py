"""Reads show what this gateway has shown, and what has only just come into being is not denied."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from schemas.http import SearchQuery
from services.gateway import reads
from services.gateway.ports import Ports
from services.gateway.reads import KNOWN_TRIES, once_known
from services.gateway.routes.threads import search
from services.runtime.errors import UnavailableError
from services.runtime.web import ProblemError, problem

UNKNOWN = problem(404, "not-found", "Not found")


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "KNOWN_SECONDS", 0)


class Memory:
    """Answers one after the other; the last one again and again."""

    def __init__(self, *answers: str | Exception) -> None:
        self._answers: Sequence[str | Exception] = answers
        self.asked = 0

    async def read(self) -> str:
        answer = self._answers[min(self.asked, len(self._answers) - 1)]
        self.asked += 1
        if isinstance(answer, Exception):
            raise answer
        return answer


async def test_what_comes_into_being_meanwhile_is_known() -> None:
    memory = Memory(UNKNOWN, UNKNOWN, "thread")
    assert (await once_known(memory.read), memory.asked) == ("thread", 3)


async def test_what_does_not_is_unknown_in_the_end() -> None:
    memory = Memory(UNKNOWN)
    with pytest.raises(ProblemError) as raised:
        await once_known(memory.read)
    assert (raised.value.problem.status, memory.asked) == (404, KNOWN_TRIES + 1)


@pytest.mark.parametrize("error", [problem(503, "behind", "Behind"), UnavailableError("memory is away")])
async def test_whatever_else_is_wrong_is_said_at_once(error: Exception) -> None:
    memory = Memory(error)
    with pytest.raises(type(error)):
        await once_known(memory.read)
    assert memory.asked == 1


@pytest.mark.parametrize(("thread_id", "position"), [("t-1", (3, 17)), (None, (None, None))])
async def test_a_search_in_one_thread_reflects_what_was_shown_of_it(
    thread_id: str | None, position: tuple[int | None, int | None]
) -> None:
    asked: dict[str, Any] = {}

    async def get(path: str, **parameters: Any) -> Any:
        asked.update(parameters)

    log = SimpleNamespace(journal_position={"t-1": (3, 17)}.__getitem__)
    ports = cast("Ports", SimpleNamespace(log=log, memory=SimpleNamespace(get=get)))
    await search(SearchQuery(q="lighthouse", thread_id=thread_id), ports, "acme")
    assert (asked["partition"], asked["min_offset"]) == position
    assert (asked["tenant_id"], asked["q"]) == ("acme", "lighthouse")
