"""Whoever acts on what has only just come into being is not told that there is no such thing."""

from collections.abc import Sequence

import pytest

from services.gateway import reads
from services.gateway.reads import KNOWN_TRIES, once_known
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
