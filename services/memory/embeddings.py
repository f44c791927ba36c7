"""The port to a model that makes vectors of texts, what it spends, and the vector of a query."""

import asyncio
import hashlib
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate, pairwise
from typing import Protocol

from schemas.http import MessageView
from schemas.ids import derived_id, new_id, time_of
from schemas.usage import UsageRecorded
from services.memory.store import VectorSpace
from services.runtime.errors import TurnlogError, UnavailableError

QUERY_SECONDS = 2.0
"""A read waits so long for the vector of its query; then it goes on with words alone."""

QUERIES_KEPT = 128

PROBE = "turnlog"
"""Embedded once at a start, which tells the size of the model's vectors. Nobody is charged for it."""

SHORTEST, LONGEST = 1e-3, 1e18
"""Lengths of a vector between which its direction is known: Qdrant squares its numbers in 32 bits."""


class EmbedderUnavailableError(UnavailableError):
    """The model does not answer now, or not to this key. `retry_after_seconds`: the provider's wish."""

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class TextsRefusedError(TurnlogError):
    """The model takes at least one of the texts never: the same call fails again."""

    code = "texts_refused"


@dataclass(frozen=True, slots=True)
class Embedded:
    """A vector for each text, in order; an empty one where the model gave none.

    `tokens`: what was spent for all of them; None where nothing is charged. `estimated`: the count is ours.
    """

    vectors: Sequence[Sequence[float]]
    tokens: int | None
    estimated: bool = False


class Embedder(Protocol):
    """One model.

    `batch`: most texts of a call. `longest`: most characters of a text; what is beyond says nothing to it.
    """

    provider: str
    model: str
    batch: int
    longest: int

    async def embed(self, texts: Sequence[str]) -> Embedded:
        """Raises EmbedderUnavailableError, or TextsRefusedError. Every text has a word. What is wrong with a single
        vector is for `flaw` to say."""
        ...

    async def close(self) -> None: ...


UsageLog = Callable[[Sequence[UsageRecorded]], Awaitable[None]]
"""Writes usage; returns when it is acknowledged. Raises UnavailableError."""


@dataclass(frozen=True, slots=True)
class Asker:
    """For whom a query is embedded."""

    tenant_id: str
    user_id: str | None = None
    thread_id: str | None = None
    turn_id: str | None = None


@dataclass(frozen=True, slots=True)
class QueryVector:
    space: VectorSpace
    vector: Sequence[float]


class Embeddings:
    """A model, and a log of what it spends."""

    def __init__(self, embedder: Embedder, usage: UsageLog) -> None:
        self.embedder = embedder
        self.record = usage
        self._space: VectorSpace | None = None
        self._queries: OrderedDict[tuple[str, str], QueryVector] = OrderedDict()

    async def space(self) -> VectorSpace:
        """Where the model's vectors lie: the model is asked once. Raises EmbedderUnavailableError."""
        if self._space is None:
            try:
                probed = await self.embedder.embed([PROBE])
            except TextsRefusedError as error:
                raise EmbedderUnavailableError(f"it embeds nothing: {error}") from error
            space = VectorSpace(self.embedder.model, len(probed.vectors[0]))
            if wrong := flaw(probed.vectors[0], space):
                raise EmbedderUnavailableError(f"{self.embedder.model} embeds nothing: it gave {wrong}")
            self._space = space
        return self._space

    def known_space(self) -> VectorSpace:
        """The space as far as it is known without asking the model: before that has answered, one without vectors."""
        return self._space or VectorSpace(self.embedder.model, 0)

    async def query(self, text: str, asker: Asker) -> QueryVector:
        """The vector of what somebody looks for. The last of them are kept, so that the next page costs nothing.

        Raises UnavailableError when the model does not answer in time, will not embed this, or usage cannot be written.
        """
        asked = (asker.tenant_id, text)
        if asked in self._queries:
            self._queries.move_to_end(asked)
            return self._queries[asked]
        try:
            async with asyncio.timeout(QUERY_SECONDS):
                space = await self.space()
                answer = await self.embedder.embed([text[: self.embedder.longest]])
                if answer.tokens is not None:
                    await self.record([_query_usage(self.embedder, text, answer, asker, datetime.now(UTC))])
        except TimeoutError as error:
            raise EmbedderUnavailableError(
                f"{self.embedder.model} did not answer within {QUERY_SECONDS:g} s"
            ) from error
        except TextsRefusedError as error:
            raise EmbedderUnavailableError(f"{self.embedder.model} does not embed the query: {error}") from error
        [vector] = answer.vectors
        if wrong := flaw(vector, space):
            raise EmbedderUnavailableError(f"{self.embedder.model} gave {wrong} for the query")
        self._queries[asked] = QueryVector(space, vector)
        if len(self._queries) > QUERIES_KEPT:
            self._queries.popitem(last=False)
        return self._queries[asked]


def flaw(vector: Sequence[float], space: VectorSpace) -> str | None:
    """Why a vector cannot be compared with others of its space by the cosine; None: it can."""
    if not vector:
        return "no vector"
    if len(vector) != space.size:
        return f"a vector of {len(vector)} numbers instead of {space.size}"
    length = math.hypot(*vector)
    if not math.isfinite(length):
        return "a vector with a number that is not finite"
    if not SHORTEST <= length <= LONGEST:
        return f"a vector of the length {length:g}, whose direction cannot be told"
    return None


def apportioned(total: int, weights: Sequence[int]) -> list[int]:
    """`total` in whole parts as the weights are to each other; their sum is the total. Every weight is above 0."""
    reached = [total * weight // sum(weights) for weight in accumulate(weights, initial=0)]
    return [after - before for before, after in pairwise(reached)]


def message_usage(
    embedder: Embedder, message: MessageView, tokens: int, *, estimated: bool, latency_ms: int
) -> UsageRecorded:
    """What the vector of a message has cost.

    The same text of a message in the same model is the same fact, however often it is embedded: its id follows from
    these, and its time is when the message was written, so that copies meet wherever usage is kept by time.
    """
    written_at = message.appended_at or message.created_at
    names = ("usage", "embedding", message.tenant_id, message.message_id, embedder.model, _digest(message.text))
    return UsageRecorded(
        usage_id=derived_id(*names, at=written_at),
        tenant_id=message.tenant_id,
        thread_id=message.thread_id,
        turn_id=message.turn_id,
        user_id=message.user_id,
        agent=message.agent,
        step=message.step,
        kind="embedding",
        provider=embedder.provider,
        model=embedder.model,
        input_tokens=tokens,
        estimated=estimated,
        latency_ms=latency_ms,
        occurred_at=written_at,
    )


def _query_usage(embedder: Embedder, text: str, answer: Embedded, asker: Asker, at: datetime) -> UsageRecorded:
    """What the vector of a query has cost. A turn that asks for the same again is the same fact; a reader is not."""
    usage_id = new_id(at)
    if asker.turn_id is not None:
        names = ("usage", "embedding", asker.tenant_id, asker.thread_id, asker.turn_id, embedder.model, _digest(text))
        usage_id = derived_id(*names, at=time_of(asker.turn_id))
    return UsageRecorded(
        usage_id=usage_id,
        tenant_id=asker.tenant_id,
        thread_id=asker.thread_id,
        turn_id=asker.turn_id,
        user_id=asker.user_id,
        kind="embedding",
        provider=embedder.provider,
        model=embedder.model,
        input_tokens=answer.tokens or 0,
        estimated=answer.estimated,
        occurred_at=at,
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
