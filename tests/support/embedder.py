"""A model whose vectors follow from a few words, and which does as a test says."""

from collections.abc import Callable, Sequence

from schemas.usage import UsageRecorded
from services.memory.embeddings import Embedded, EmbedderUnavailableError, TextsRefusedError
from services.runtime.errors import TurnlogError

MEANINGS = (("car", "automobile", "vehicle"), ("dog", "puppy", "hound"), ("rain", "drizzle", "shower"))
"""Words of one meaning."""


def meaning_of(text: str) -> list[float]:
    """How much of each meaning is in a text, and a little of none."""
    words = text.lower().replace("?", " ").replace(".", " ").split()
    return [float(sum(word in meaning for word in words)) for meaning in MEANINGS] + [0.1]


class ScriptedEmbedder:
    """Refuses texts with the word `unreadable`, and gives those with `odd` a vector of another size.

    `instead`: what texts with a word get instead of their vector. `breaks_down`: at which texts it does not answer.

    Args:
        tokens: what a text costs; None: nothing is charged.
    """

    provider = "scripted"
    batch = 8
    longest = 100

    def __init__(self, *, model: str = "meanings", tokens: int | None = 3) -> None:
        self.model = model
        self.tokens = tokens
        self.trouble: TurnlogError | None = None
        self.asked: list[str] = []
        self.instead: dict[str, list[float]] = {}
        self.breaks_down: Callable[[Sequence[str]], bool] = lambda texts: False

    async def embed(self, texts: Sequence[str]) -> Embedded:
        if self.trouble is not None:
            raise self.trouble
        if self.breaks_down(texts):
            raise EmbedderUnavailableError("the model broke down")
        if any("unreadable" in text for text in texts):
            raise TextsRefusedError("one of the texts cannot be read")
        self.asked += texts
        vectors = [self._vector(text) for text in texts]
        return Embedded(vectors, None if self.tokens is None else self.tokens * len(texts))

    def _vector(self, text: str) -> list[float]:
        given = [vector for word, vector in self.instead.items() if word in text]
        return given[0] if given else meaning_of(text)[: 2 if "odd" in text else None]

    async def close(self) -> None: ...


class UsageKept:
    """A log of usage that is a list, and can be away."""

    def __init__(self) -> None:
        self.events: list[UsageRecorded] = []
        self.trouble: Exception | None = None

    async def record(self, events: Sequence[UsageRecorded]) -> None:
        if self.trouble is not None:
            raise self.trouble
        self.events += events
