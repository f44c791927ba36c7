"""Messages that match a query: by words, by meaning, or by both."""

from collections.abc import Collection
from dataclasses import dataclass

from schemas.http import FoundBy
from services.memory.embeddings import Asker, Embeddings, QueryVector
from services.memory.fusion import Found, fused
from services.memory.store import Find, Hit, MemoryStore
from services.runtime.errors import UnavailableError

DEPTH = 50
"""So many of each ranking are fused at least: what is twentieth in both may be the best of all."""

NO_MODEL = "no model makes vectors here: set TURNLOG_EMBEDDING_MODEL"


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Best first. `without_vector`: why meaning was not asked, where it was wanted."""

    found: list[Found]
    without_vector: str | None = None


class Search:
    """Searches one store.

    Args:
        embeddings: what makes vectors of queries; None: there is no meaning to search by.
    """

    def __init__(self, store: MemoryStore, embeddings: Embeddings | None = None) -> None:
        self._store = store
        self._embeddings = embeddings

    async def messages(
        self, find: Find, query: str, by: Collection[FoundBy], limit: int, asker: Asker, *, least: float | None = None
    ) -> SearchResult:
        """The best `limit` by each of `by`, fused. A model that does not answer takes nothing from the words.

        `least` is of the cosine where meaning is asked, else of the score of BM25.
        """
        depth = max(limit, DEPTH) if len(by) > 1 else limit
        rankings: dict[FoundBy, list[Hit]] = {}
        without_vector = None
        if "text" in by:
            hits = await self._store.search(find, query, depth)
            rankings["text"] = [hit for hit in hits if least is None or "vector" in by or hit.score >= least]
        if "vector" in by and query.strip():
            try:
                near = await self._vector(query, asker)
            except UnavailableError as error:
                without_vector = str(error)
            else:
                hits = await self._store.search_vector(find, near.space, near.vector, depth, least=least)
                rankings["vector"] = list(hits)
        return SearchResult(fused(rankings)[:limit], without_vector)

    async def _vector(self, query: str, asker: Asker) -> QueryVector:
        if self._embeddings is None:
            raise UnavailableError(NO_MODEL)
        return await self._embeddings.query(query, asker)
