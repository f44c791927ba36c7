"""The port to a model that makes vectors of texts, what it spends, and the vector of a query."""

import asyncio
import hashlib
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
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
"""A text that every model takes. Embedded at a start, which tells the size of the vectors, and where it is in doubt
whether a text is at fault or the model. Nobody is charged for it."""

SHORTEST, LONGEST = 1e-3, 1e18
"""Lengths of a vector between which its direction is known: Qdrant squares its numbers in 32 bits."""


class EmbedderUnavailableError(UnavailableError):
    """The model does not answer now, or not to this key. `retry_after_seconds`: the provider's wish."""

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class TextsRefusedError(TurnlogError):
    """At least one of the texts is at fault, so the same call fails again. Some servers say so of every text where what
    they do not take is the key."""

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
            self._space = await self.probe()
        return self._space

    async def probe(self) -> VectorSpace:
        """Returns when the model has embedded PROBE. Raises EmbedderUnavailableError where it embeds nothing now."""
        try:
            [vector] = (await self.embedder.embed([PROBE])).vectors
        except TextsRefusedError as error:
            raise EmbedderUnavailableError(f"{self.embedder.model} embeds nothing: {error}") from error
        space = VectorSpace(self.embedder.model, len(vector))
        if wrong := flaw(vector, space):
            raise EmbedderUnavailableError(f"{self.embedder.model} embeds nothing: it gave {wrong}")
        return space

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
                    await self.record([query_usage(self.embedder, text, answer, asker, datetime.now(UTC))])
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
    embedder: Embedder, messages: Sequence[MessageView], answer: Embedded, now: datetime
) -> Sequence[UsageRecorded]:
    """What the vectors of a batch have cost, each message its share: their sum is what was counted for the batch.

    A share depends on the texts beside it, so the fact is the batch: embedded again within its hour and counted the
    same, it has the same ids and values. A message that is in another batch is paid again, which is another fact.
    """
    if answer.tokens is None:
        return []
    shares = apportioned(answer.tokens, [min(len(message.text), embedder.longest) for message in messages])
    spent = [
        UsageRecorded(
            usage_id=message.message_id,
            tenant_id=message.tenant_id,
            thread_id=message.thread_id,
            turn_id=message.turn_id,
            user_id=message.user_id,
            agent=message.agent,
            step=message.step,
            kind="embedding",
            provider=embedder.provider,
            model=embedder.model,
            input_tokens=share,
            estimated=answer.estimated,
            occurred_at=_spent_at(message.created_at, now),
        )
        for message, share in zip(messages, shares, strict=True)
    ]
    return _identified(spent, [message.text for message in messages])


def query_usage(embedder: Embedder, text: str, answer: Embedded, asker: Asker, now: datetime) -> UsageRecorded:
    """What the vector of a query has cost. A turn that asks again within the hour is the same fact, a reader is not."""
    spent = UsageRecorded(
        usage_id=new_id(now),
        tenant_id=asker.tenant_id,
        thread_id=asker.thread_id,
        turn_id=asker.turn_id,
        user_id=asker.user_id,
        kind="embedding",
        provider=embedder.provider,
        model=embedder.model,
        input_tokens=answer.tokens or 0,
        estimated=answer.estimated,
        occurred_at=now,
    )
    if asker.turn_id is None:
        return spent
    of_turn = {"usage_id": asker.turn_id, "occurred_at": _spent_at(time_of(asker.turn_id), now)}
    [identified] = _identified([spent.model_copy(update=of_turn)], [text])
    return identified


def _spent_at(of: datetime, now: datetime) -> datetime:
    """A time of the hour in which it was spent, the same if the same is spent again in that hour: that of what it was
    spent for, else the hour's beginning."""
    hour = now.replace(minute=0, second=0, microsecond=0)
    return of if hour <= of < hour + timedelta(hours=1) else hour


def _identified(spent: Sequence[UsageRecorded], texts: Sequence[str]) -> Sequence[UsageRecorded]:
    """What one call has cost, under ids that follow from all that is told of it, so none comes again with other values.

    Args:
        spent: each with what it was spent for as its id.
        texts: that were embedded.
    """
    call = _digest("\x1f".join([*(each.model_dump_json() for each in spent), *texts]))
    return [
        each.model_copy(update={"usage_id": derived_id("usage", "embedding", call, number, at=each.occurred_at)})
        for number, each in enumerate(spent)
    ]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
