"""The prompts that wait for their thread: a value that never changes, and costs the same whatever its length."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import overload

from schemas.turns import QueuedPrompt


def size_of(prompt: QueuedPrompt) -> int:
    """Bytes of the prompt as JSON: what it takes on `turns`, and about what it takes in memory."""
    return len(prompt.model_dump_json(exclude_defaults=True).encode())


class PromptQueue(Sequence[QueuedPrompt]):
    """A window on a list that queues share: a longer queue appends to the list, a shorter one is a smaller window.

    Nobody sees what lies outside of the own window, so a queue never changes. Appending, taking the first, looking for
    a turn, and the size take constant time; anything else copies. A prompt is measured once, when it comes.
    """

    __slots__ = ("_begin", "_bytes", "_end", "_places", "_shared")

    def __init__(self, prompts: Iterable[QueuedPrompt] = ()) -> None:
        waiting = list(prompts)
        self._fill(waiting, map(size_of, waiting))

    @property
    def bytes(self) -> int:
        """Size of the prompts that wait, as `size_of` has it."""
        return self._bytes[self._end] - self._bytes[self._begin]

    def appended(self, prompt: QueuedPrompt) -> "PromptQueue":
        """The queue with another prompt at its end."""
        size = size_of(prompt)
        if self._end != len(self._shared) or prompt.turn_id in self._places:
            return self._copy((*self, prompt), (*self._sizes(), size))
        self._places[prompt.turn_id] = len(self._shared)
        self._shared.append(prompt)
        self._bytes.append(self._bytes[-1] + size)
        return self._window(self._begin, self._end + 1)

    def preceded_by(self, prompt: QueuedPrompt) -> "PromptQueue":
        """The queue with another prompt before its first."""
        return self._copy((prompt, *self), (size_of(prompt), *self._sizes()))

    def without_first(self) -> "PromptQueue":
        """The queue behind its first prompt. Lets go of what was taken once that is half of the list."""
        if self._begin + 1 > len(self._shared) // 2:
            return self._copy(self[1:], self._sizes()[1:])
        return self._window(self._begin + 1, self._end)

    def without(self, turn_id: str) -> "PromptQueue":
        """The queue without the prompt that would open the turn."""
        kept = [(prompt, size) for prompt, size in zip(self, self._sizes(), strict=True) if prompt.turn_id != turn_id]
        return self._copy((prompt for prompt, _ in kept), (size for _, size in kept))

    def of_turn(self, turn_id: str) -> QueuedPrompt | None:
        """The prompt that will open the turn, if it waits here."""
        place = self._places.get(turn_id)
        return self._shared[place] if place is not None and self._begin <= place < self._end else None

    def holds(self, turn_id: str) -> bool:
        return self.of_turn(turn_id) is not None

    def gone_and_come(self, later: "PromptQueue") -> tuple[list[QueuedPrompt], list[QueuedPrompt]]:
        """What a later queue has no more, and what it has beyond this one."""
        if later._shared is self._shared and later._begin >= self._begin and later._end >= self._end:
            gone = self._shared[self._begin : min(later._begin, self._end)]
            return gone, self._shared[max(self._end, later._begin) : later._end]
        return (
            [prompt for prompt in self if not later.holds(prompt.turn_id)],
            [prompt for prompt in later if not self.holds(prompt.turn_id)],
        )

    def _fill(self, prompts: Iterable[QueuedPrompt], sizes: Iterable[int]) -> None:
        self._shared = list(prompts)
        self._places = {prompt.turn_id: place for place, prompt in enumerate(self._shared)}
        self._bytes = [0, *accumulate(sizes)]
        self._begin, self._end = 0, len(self._shared)

    def _sizes(self) -> list[int]:
        places = range(self._begin, self._end)
        return [self._bytes[place + 1] - self._bytes[place] for place in places]

    @staticmethod
    def _copy(prompts: Iterable[QueuedPrompt], sizes: Iterable[int]) -> "PromptQueue":
        copy = PromptQueue.__new__(PromptQueue)
        copy._fill(prompts, sizes)
        return copy

    def _window(self, begin: int, end: int) -> "PromptQueue":
        window = PromptQueue.__new__(PromptQueue)
        window._shared, window._places, window._bytes = self._shared, self._places, self._bytes
        window._begin, window._end = begin, end
        return window

    def __len__(self) -> int:
        return self._end - self._begin

    def __iter__(self) -> Iterator[QueuedPrompt]:
        return (self._shared[place] for place in range(self._begin, self._end))

    @overload
    def __getitem__(self, index: int) -> QueuedPrompt: ...
    @overload
    def __getitem__(self, index: slice) -> list[QueuedPrompt]: ...
    def __getitem__(self, index: int | slice) -> QueuedPrompt | list[QueuedPrompt]:
        if isinstance(index, int) and 0 <= index < len(self):
            return self._shared[self._begin + index]
        return self._shared[self._begin : self._end][index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PromptQueue) and [*self] == [*other]

    def __hash__(self) -> int:
        return hash(tuple(prompt.turn_id for prompt in self))

    def __repr__(self) -> str:
        return f"PromptQueue({[*self]!r})"
