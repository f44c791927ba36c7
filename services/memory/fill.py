"""Gives messages their vectors, in batches behind the write. Reads never wait for it: text finds a message at once."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from prometheus_client import Counter, Gauge

from schemas.http import ComponentHealth, MessageView
from schemas.usage import UsageRecorded
from services.memory.batch_size import BatchSize, Fault
from services.memory.embeddings import (
    EmbedderBusyError,
    EmbedderUnavailableError,
    Embeddings,
    TextsRefusedError,
    flaw,
    message_usage,
)
from services.memory.search import UNNAMED, FormerModel
from services.memory.store import Document, MemoryStore, MessageVector, VectorCounts, VectorSpace
from services.runtime.errors import UnavailableError
from services.runtime.failpoints import Failpoints
from services.runtime.tasks import end_task

log = structlog.get_logger(__name__)

IDLE_SECONDS = 5.0
"""Looks so often for messages that nobody has told it of: those of a rebuild that was switched to."""

COUNT_SECONDS = 5.0
"""What waits is counted so often at least."""

RETRY_SECONDS, MOST_RETRY_SECONDS = 0.5, 30.0

SHARE, SHARE_BESIDE_A_REBUILD = 0.5, 0.1
"""Of the time at most. Whoever rebuilds memory waits for it, and words find a message at once."""

WAITING = Gauge(
    "turnlog_embeddings_waiting", "Messages that wait for a vector; all there are until the model has answered once"
)
MESSAGES = Counter("turnlog_embeddings_total", "Messages by what became of their vector", ["outcome"])
CUT = Counter("turnlog_embeddings_cut_total", "Messages over the limit, whose beginning alone is embedded")


@dataclass(slots=True)
class _Answered:
    """What the model has said of a batch, and what of its cost is not on the log yet."""

    documents: Sequence[Document]
    messages: Sequence[MessageView]
    vectors: Sequence[Sequence[float]]
    usage: Sequence[UsageRecorded]


class EmbeddingFill:
    """Works off the messages that wait for a vector, the newest first, in a share of the time.

    What a batch has cost is on the log before its vectors are in the store. While one of the two cannot be written, the
    answer is kept and no other is asked for. A process that is killed in between embeds the messages again; which wait
    is told by the messages themselves.
    """

    def __init__(
        self,
        store: MemoryStore,
        embeddings: Embeddings,
        failpoints: Failpoints,
        former: FormerModel | None = None,
        is_rebuilding: Callable[[], bool] = lambda: False,
    ) -> None:
        self._store = store
        self._embeddings = embeddings
        self._size = BatchSize(embeddings.embedder.batch)
        self._failpoints = failpoints
        self._former = former
        self._is_rebuilding = is_rebuilding
        self._missed_former = False
        self._doubted = False
        self._written = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._answered: _Answered | None = None
        self._waiting = 0
        self._refused = 0
        self._trouble = ""

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="memory:embeddings")
        self._watching = asyncio.create_task(self._watch(), name="memory:embeddings-waiting")

    async def stop(self) -> None:
        await end_task(self._task)
        await end_task(self._watching)
        self._task = self._watching = None

    def wake(self) -> None:
        """There may be new messages."""
        self._written.set()

    def health(self) -> ComponentHealth:
        """Always ready, since nothing waits for a vector. The detail says what waits and why."""
        most = "" if self._embeddings.known_space().size else "at most "
        parts = [f"{most}{self._waiting} messages wait for a vector"] if self._waiting else []
        parts += [f"{self._refused} are found by text alone"] if self._refused else []
        return ComponentHealth(ready=True, detail="; ".join([*parts, self._trouble] if self._trouble else parts))

    async def _run(self) -> None:
        pause = RETRY_SECONDS
        while True:
            self._written.clear()
            began = time.monotonic()
            try:
                filled = await self.fill_batch()
            except Exception as error:  # noqa: BLE001 - whatever the trouble is, the messages wait for its end
                pause = await self._wait_out(error, pause)
                continue
            self._trouble, pause = "", RETRY_SECONDS
            if filled:
                await asyncio.sleep(pause_after(time.monotonic() - began, is_rebuilding=self._is_rebuilding()))
            else:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._written.wait(), IDLE_SECONDS)

    async def _wait_out(self, error: Exception, pause: float) -> float:
        """Waits for the next try. Returns the next pause."""
        trouble = str(error) if isinstance(error, UnavailableError) else repr(error)
        if trouble != self._trouble:
            log.warning("embeddings_wait", reason=trouble)
        self._trouble = trouble
        await asyncio.sleep(seconds_until_next_try(error, pause))
        return min(2 * pause, MOST_RETRY_SECONDS)

    async def _watch(self) -> None:
        """Counts what waits while the model is away, or takes its time to answer."""
        while True:
            with contextlib.suppress(Exception):  # the filling meets the same and tells it
                await self._count(self._embeddings.known_space())
            await asyncio.sleep(COUNT_SECONDS)

    async def fill_batch(self) -> bool:
        """Embeds one batch of what waits; False when nothing does. Raises UnavailableError: try again later."""
        space = await self._embeddings.space()
        found = self._answered is not None or await self._embed(space)
        if self._answered is not None:
            await self._take_in(space, self._answered)
        counts = await self._count(space)
        if self._former is not None and not self._waiting:
            self._former.end()
        if self._former is None and counts.elsewhere and not self._missed_former:
            self._missed_former = True
            log.warning("former_model_unnamed", messages=counts.elsewhere, model=space.model, reason=UNNAMED)
        return found

    async def _count(self, space: VectorSpace) -> VectorCounts:
        counts = await self._store.vector_counts(space)
        if space == self._embeddings.known_space():
            self._waiting, self._refused = counts.waiting, counts.refused
            WAITING.set(counts.waiting)
        return counts

    async def _embed(self, space: VectorSpace) -> bool:
        """Asks the model about a batch of what waits, once there is room for the answer; False when nothing waits.

        A model that has failed at PROBE is asked for nothing else, which it may charge for, until it embeds that.
        """
        documents = await self._store.without_vector(space, self._size.texts)
        if not documents:
            return False
        await self._store.put_vectors(space, [])
        if self._doubted:
            await self._probe()
        messages = [MessageView.model_validate_json(document.body) for document in documents]
        embedder = self._embeddings.embedder
        try:
            answer = await embedder.embed([message.text[: embedder.longest] for message in messages])
        except (EmbedderUnavailableError, TextsRefusedError) as error:
            await self._judge(space, documents, error)
            return True
        self._size.went_through()
        usage = message_usage(embedder, messages, answer, datetime.now(UTC))
        self._answered = _Answered(documents, messages, answer.vectors, usage)
        return True

    async def _judge(
        self, space: VectorSpace, documents: Sequence[Document], error: EmbedderUnavailableError | TextsRefusedError
    ) -> None:
        """Holds a failure against the texts where the model takes another one. Raises UnavailableError otherwise, and
        where the same are to be tried again."""
        await self._probe()
        tried = [document.point_id for document in documents]
        fault = fault_of(error)
        verdict = self._size.failed(tried, fault)
        if verdict == "again" or fault == "busy":
            raise error
        if verdict == "without":
            await self._refuse(space, documents[0], str(error))

    async def _probe(self) -> None:
        """Tells whether it is the texts or the model. Raises EmbedderUnavailableError: it is the model."""
        self._doubted = True
        await self._embeddings.probe()
        self._doubted = False

    async def _take_in(self, space: VectorSpace, answered: _Answered) -> None:
        """Goes on where it was, with what was told already. Messages that have changed meanwhile get no vector."""
        if answered.usage:
            await self._embeddings.record(answered.usage)
            answered.usage = ()
        self._failpoints.hit("embeddings.before_store")
        flaws = [flaw(vector, space) for vector in answered.vectors]
        judged = list(zip(answered.documents, answered.messages, answered.vectors, flaws, strict=True))
        fitting = [MessageVector(document, vector) for document, _, vector, wrong in judged if wrong is None]
        await self._store.put_vectors(space, fitting)
        self._failpoints.hit("embeddings.after_store")
        self._answered = None
        MESSAGES.labels("stored").inc(len(fitting))
        limit = self._embeddings.embedder.longest
        cut = sum(wrong is None and len(message.text) > limit for _, message, _, wrong in judged)
        if cut:
            CUT.inc(cut)
            log.info("messages_embedded_in_part", messages=cut, model=space.model, limit_characters=limit)
        if len(fitting) < len(judged):
            await self._probe()
        for document, _, _, wrong in judged:
            if wrong is not None:
                await self._refuse(space, document, f"the model gave {wrong}")

    async def _refuse(self, space: VectorSpace, document: Document, reason: str) -> None:
        message = MessageView.model_validate_json(document.body)
        log.warning(
            "message_not_embedded",
            tenant_id=message.tenant_id,
            thread_id=message.thread_id,
            message_id=message.message_id,
            model=space.model,
            reason=reason,
        )
        MESSAGES.labels("refused").inc()
        await self._store.put_vectors(space, [MessageVector(document, None)])


def pause_after(seconds: float, *, is_rebuilding: bool) -> float:
    """How long others have the time for themselves after a batch that has taken so long."""
    share = SHARE_BESIDE_A_REBUILD if is_rebuilding else SHARE
    return seconds * (1 - share) / share


def fault_of(error: EmbedderUnavailableError | TextsRefusedError) -> Fault:
    match error:
        case TextsRefusedError():
            return "refused"
        case EmbedderBusyError():
            return "busy"
        case _:
            return "broken"


def seconds_until_next_try(error: Exception, pause: float) -> float:
    """What the provider asks for; `pause` where it asks for nothing, or for less than anybody should be left alone."""
    asked = error.retry_after_seconds if isinstance(error, EmbedderUnavailableError) else None
    return pause if asked is None or asked < RETRY_SECONDS else asked
