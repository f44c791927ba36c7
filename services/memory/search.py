"""Messages that match a query: by words, by meaning, or by both."""

import asyncio
import time
from collections.abc import Collection
from dataclasses import dataclass

import structlog

from schemas.http import FoundBy
from services.memory.embeddings import QUERY_SECONDS, Asker, Embeddings, QueryVector
from services.memory.fusion import Found, fused
from services.memory.ranking import best
from services.memory.store import Find, Hit, MemoryStore
from services.runtime.errors import UnavailableError

log = structlog.get_logger(__name__)

DEPTH = 50
"""So many of each ranking are fused at least: what is twentieth in both may be the best of all."""

LOOK_SECONDS = 5.0
"""Whether the former model is still needed is asked of the store so often at most."""

NO_MODEL = "no model makes vectors here: set TURNLOG_EMBEDDING_MODEL"

UNNAMED = (
    "another model has embedded them: set TURNLOG_EMBEDDING_FORMER_MODEL to it, and TURNLOG_EMBEDDING_FORMER_BASE_URL "
    "where it is elsewhere, for meaning to find them meanwhile"
)


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Best first. `without_vector`: why meaning was not asked, where it was wanted."""

    found: list[Found]
    without_vector: str | None = None


class FormerModel:
    """The model before the present one. Meaning is searched by it as long as a message has a vector of it alone.

    A message that is written meanwhile gets none of it, so words alone find that one until the switch.
    """

    def __init__(self, store: MemoryStore, embeddings: Embeddings) -> None:
        self.embeddings = embeddings
        self._store = store
        self._looked_at: float | None = None
        self._needed = True

    def end(self) -> None:
        """No message waits for its vector of the present model. One that is written later is no way back."""
        if self._needed:
            self._needed = False
            log.info("former_model_ended", model=self.embeddings.embedder.model)

    async def needed(self) -> bool:
        """Raises UnavailableError."""
        if self._needed and (self._looked_at is None or time.monotonic() - self._looked_at >= LOOK_SECONDS):
            alone = await self._vectors_alone()
            if self._looked_at is None and alone:
                log.info("former_model_searched", model=self.embeddings.embedder.model, messages=alone)
            self._looked_at = time.monotonic()
            if not alone:
                self.end()
        return self._needed

    async def _vectors_alone(self) -> int:
        """Messages that have a vector of this model and wait for one of the present model."""
        try:
            async with asyncio.timeout(QUERY_SECONDS):
                space = await self.embeddings.space()
        except TimeoutError as error:
            model = self.embeddings.embedder.model
            raise UnavailableError(f"{model} did not answer within {QUERY_SECONDS:g} s") from error
        return (await self._store.vector_counts(space)).stored


class Search:
    """Searches one store.

    Args:
        embeddings: what makes vectors of queries; None: there is no meaning to search by.
        former: what has made them before, where it may still be needed.
    """

    def __init__(
        self, store: MemoryStore, embeddings: Embeddings | None = None, former: FormerModel | None = None
    ) -> None:
        self._store = store
        self._embeddings = embeddings
        self._former = former

    async def messages(
        self,
        find: Find,
        query: str,
        by: Collection[FoundBy],
        limit: int,
        asker: Asker,
        *,
        least: float | None = None,
        depth: int = DEPTH,
    ) -> SearchResult:
        """The best `limit` by each of `by`, fused. A model that does not answer takes nothing from the words.

        Args:
            least: of the cosine where meaning is asked, else of the score of BM25.
            depth: of each ranking so many are fused at least; the order depends on it.
        """
        depth = max(limit, depth) if len(by) > 1 else limit
        rankings: dict[FoundBy, list[Hit]] = {}
        without_vector = None
        if "text" in by:
            hits = await best(lambda asked: self._store.search(find, query, asked), depth)
            rankings["text"] = [hit for hit in hits if least is None or "vector" in by or hit.score >= least]
        if "vector" in by and query.strip():
            try:
                near = await self._vector(query, asker)
            except UnavailableError as error:
                without_vector = str(error)
            else:
                rankings["vector"] = await best(
                    lambda asked: self._store.search_vector(find, near.space, near.vector, asked, least=least), depth
                )
        return SearchResult(fused(rankings)[:limit], without_vector)

    async def _vector(self, query: str, asker: Asker) -> QueryVector:
        if self._embeddings is None:
            raise UnavailableError(NO_MODEL)
        if self._former is not None and await self._former.needed():
            return await self._former.embeddings.query(query, asker)
        return await self._embeddings.query(query, asker)
