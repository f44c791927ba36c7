"""Gives messages their vectors, in batches behind the write. Reads never wait for it: text finds a message at once."""

import asyncio
import contextlib
import time
from collections.abc import Sequence

import structlog
from prometheus_client import Counter, Gauge

from schemas.http import ComponentHealth, MessageView
from services.memory.batch_size import BatchSize
from services.memory.embeddings import (
    EmbedderUnavailableError,
    Embeddings,
    TextsRefusedError,
    apportioned,
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

WAITING = Gauge(
    "turnlog_embeddings_waiting", "Messages that wait for a vector; all there are until the model has answered once"
)
MESSAGES = Counter("turnlog_embeddings_total", "Messages by what became of their vector", ["outcome"])
CUT = Counter("turnlog_embeddings_cut_total", "Messages over the limit, whose beginning alone is embedded")


class EmbeddingFill:
    """Works off the messages that wait for a vector, the newest first, in at most half of the time.

    What a batch has cost is on the log before its vectors are in the store: a process that is killed in between embeds
    it again, and its usage is the same fact. Which messages wait is told by the messages themselves.
    """

    def __init__(
        self,
        store: MemoryStore,
        embeddings: Embeddings,
        failpoints: Failpoints,
        former: FormerModel | None = None,
    ) -> None:
        self._store = store
        self._embeddings = embeddings
        self._size = BatchSize(embeddings.embedder.batch)
        self._failpoints = failpoints
        self._former = former
        self._missed_former = False
        self._written = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
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
                await asyncio.sleep(time.monotonic() - began)
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
        documents = await self._store.without_vector(space, self._size.texts)
        if documents:
            cut = await self._fill(space, documents)
            if cut:
                CUT.inc(cut)
                limit = self._embeddings.embedder.longest
                log.info("messages_embedded_in_part", messages=cut, model=space.model, limit_characters=limit)
        counts = await self._count(space)
        if self._former is not None and not self._waiting:
            self._former.end()
        if self._former is None and counts.elsewhere and not self._missed_former:
            self._missed_former = True
            log.warning("former_model_unnamed", messages=counts.elsewhere, model=space.model, reason=UNNAMED)
        return bool(documents)

    async def _count(self, space: VectorSpace) -> VectorCounts:
        counts = await self._store.vector_counts(space)
        if space == self._embeddings.known_space():
            self._waiting, self._refused = counts.waiting, counts.refused
            WAITING.set(counts.waiting)
        return counts

    async def _fill(self, space: VectorSpace, documents: Sequence[Document]) -> int:
        """Returns how many messages were longer than the model takes."""
        messages = [MessageView.model_validate_json(document.body) for document in documents]
        began = time.monotonic()
        embedder = self._embeddings.embedder
        texts = [message.text[: embedder.longest] for message in messages]
        try:
            answer = await embedder.embed(texts)
        except (EmbedderUnavailableError, TextsRefusedError) as error:
            await self._judge(space, documents, error)
            return 0
        self._size.went_through()
        if answer.tokens is not None:
            latency_ms = int(1000 * (time.monotonic() - began))
            tokens = apportioned(answer.tokens, [len(text) for text in texts])
            await self._embeddings.record(
                [
                    message_usage(embedder, message, count, estimated=answer.estimated, latency_ms=latency_ms)
                    for message, count in zip(messages, tokens, strict=True)
                ]
            )
        self._failpoints.hit("embeddings.before_store")
        flaws = [flaw(vector, space) for vector in answer.vectors]
        judged = list(zip(documents, messages, answer.vectors, flaws, strict=True))
        fitting = [MessageVector(document, vector) for document, _, vector, wrong in judged if wrong is None]
        await self._store.put_vectors(space, fitting)
        self._failpoints.hit("embeddings.after_store")
        MESSAGES.labels("stored").inc(len(fitting))
        for document, _, _, wrong in judged:
            if wrong is not None:
                await self._refuse(space, document, f"the model gave {wrong}")
        return sum(wrong is None and len(message.text) > embedder.longest for _, message, _, wrong in judged)

    async def _judge(
        self, space: VectorSpace, documents: Sequence[Document], error: EmbedderUnavailableError | TextsRefusedError
    ) -> None:
        """Holds a failure against the texts where the model takes another one. Raises UnavailableError otherwise, and
        where the same are to be tried again."""
        await self._embeddings.probe()
        tried = [document.point_id for document in documents]
        verdict = self._size.failed(tried, refused=isinstance(error, TextsRefusedError))
        if verdict == "again":
            raise error
        if verdict == "without":
            await self._refuse(space, documents[0], str(error))

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


def seconds_until_next_try(error: Exception, pause: float) -> float:
    """What the provider asks for; `pause` where it asks for nothing, or for less than anybody should be left alone."""
    asked = error.retry_after_seconds if isinstance(error, EmbedderUnavailableError) else None
    return pause if asked is None or asked < RETRY_SECONDS else asked
