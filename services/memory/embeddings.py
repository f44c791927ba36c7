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
from services.memory.single_flight import SingleFlight
from services.memory.store import VectorSpace
from services.runtime.errors import TurnlogError, UnavailableError

QUERY_SECONDS = 2.0
"""A read waits so long for the vector of its query; then it goes on with words alone."""

QUERIES_KEPT = 128

QUERIES_AT_ONCE = 128
"""As many are under way to the model at most, for it may take its time and nobody wait any more."""

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


class EmbedderBusyError(EmbedderUnavailableError):
    """The model takes no more for now, which is no text's fault: they may be too many at once, or too often."""


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


@dataclass(frozen=True, slots=True)
class _Owed:
    """What a query has cost and is not on the log yet, and the vector that it was paid for, if that is of use."""

    usage: UsageRecorded
    asked: tuple[str, str]
    vector: QueryVector | None


class Embeddings:
    """A model, and a log of what it spends."""

    def __init__(self, embedder: Embedder, usage: UsageLog) -> None:
        self.embedder = embedder
        self.record = usage
        self._space: VectorSpace | None = None
        self._probing = SingleFlight[str, VectorSpace]("memory:probe")
        self._asking = SingleFlight[tuple[str, str], QueryVector]("memory:query")
        self._queries: OrderedDict[tuple[str, str], QueryVector] = OrderedDict()
        self._owed: list[_Owed] = []
        self._settling = asyncio.Lock()

    async def close(self) -> None:
        """Ends what nobody waits for any more, and closes the model."""
        await self._asking.close()
        await self._probing.close()
        await self.embedder.close()

    async def space(self) -> VectorSpace:
        """Where the model's vectors lie: the model is asked once. Raises EmbedderUnavailableError."""
        if self._space is None:
            self._space = await self._probing.call(PROBE, self.probe)
        return self._space

    async def probe(self) -> VectorSpace:
        """Returns when the model has embedded PROBE.

        Raises EmbedderUnavailableError where it embeds nothing now, or not into the space of before.
        """
        try:
            [vector] = (await self.embedder.embed([PROBE])).vectors
        except TextsRefusedError as error:
            raise EmbedderUnavailableError(f"{self.embedder.model} embeds nothing: {error}") from error
        space = VectorSpace(self.embedder.model, len(vector))
        if wrong := flaw(vector, space):
            raise EmbedderUnavailableError(f"{self.embedder.model} embeds nothing: it gave {wrong}")
        if self._space is not None and (wrong := flaw(vector, self._space)):
            raise EmbedderUnavailableError(
                f"{self.embedder.model} gives {wrong} now: start memory again, which embeds everything anew"
            )
        return space

    def known_space(self) -> VectorSpace:
        """The space as far as it is known without asking the model: before that has answered, one without vectors."""
        return self._space or VectorSpace(self.embedder.model, 0)

    async def query(self, text: str, asker: Asker) -> QueryVector:
        """The vector of what somebody looks for. The last of them are kept, so that the next page costs nothing.

        The model is asked once by all who look for the same at once. It goes on when they have stopped waiting, so that
        what it costs is told and its answer kept for the next who asks.

        Raises UnavailableError when the model does not answer in time, will not embed this, or usage cannot be written.
        """
        asked = (asker.tenant_id, text)
        if asked in self._queries:
            self._queries.move_to_end(asked)
            return self._queries[asked]
        if len(self._asking) >= QUERIES_AT_ONCE and asked not in self._asking:
            raise EmbedderUnavailableError(f"{QUERIES_AT_ONCE} queries wait for {self.embedder.model} already")
        try:
            return await self._asking.call(asked, lambda: self._ask(asked, asker), seconds=QUERY_SECONDS)
        except TimeoutError as error:
            raise EmbedderUnavailableError(
                f"{self.embedder.model} did not answer within {QUERY_SECONDS:g} s"
            ) from error

    async def _ask(self, asked: tuple[str, str], asker: Asker) -> QueryVector:
        """Buys nothing while what was bought before cannot be told."""
        await self._settle()
        if asked in self._queries:
            return self._queries[asked]
        _, text = asked
        space = await self.space()
        try:
            answer = await self.embedder.embed([text[: self.embedder.longest]])
        except TextsRefusedError as error:
            raise EmbedderUnavailableError(f"{self.embedder.model} does not embed the query: {error}") from error
        [vector] = answer.vectors
        found, wrong = QueryVector(space, vector), flaw(vector, space)
        if answer.tokens is not None:
            usage = query_usage(self.embedder, text, answer, asker, datetime.now(UTC))
            self._owed.append(_Owed(usage, asked, None if wrong else found))
            await self._settle()
        if wrong:
            raise EmbedderUnavailableError(f"{self.embedder.model} gave {wrong} for the query")
        self._keep(asked, found)
        return found

    async def _settle(self) -> None:
        """Tells what is owed, of all queries that are under way at once. Raises UnavailableError."""
        async with self._settling:
            owed = [*self._owed]
            if owed:
                await self.record([each.usage for each in owed])
                del self._owed[: len(owed)]
        for each in owed:
            if each.vector is not None:
                self._keep(each.asked, each.vector)

    def _keep(self, asked: tuple[str, str], found: QueryVector) -> None:
        self._queries[asked] = found
        if len(self._queries) > QUERIES_KEPT:
            self._queries.popitem(last=False)


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
            occurred_at=_spent_at(message.appended_at or message.created_at, now),
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
