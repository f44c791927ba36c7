"""Text as BM25 sees it, the same for both engines: words, without endings and without those that say nothing."""

import re
from collections.abc import Sequence
from typing import Protocol

from qdrant_edge import Bm25, Bm25Config, SparseVector

MARKED_CHARACTERS = 20_000
"""Of a text, so far words are marked: what a person reads of a hit."""


class Words(Protocol):
    """A sparse vector, of whichever client."""

    @property
    def indices(self) -> Sequence[int]: ...


def matched(query: Words, document: Words) -> float:
    """How many of the words of a query a document has, from 0 to 1."""
    words = set(query.indices)
    return len(words.intersection(document.indices)) / len(words)


class TextVectors:
    """Makes the sparse vectors of texts and queries."""

    def __init__(self) -> None:
        self._bm25 = Bm25(Bm25Config())

    def of_document(self, text: str) -> SparseVector:
        return self._bm25.embed_document(text)

    def of_query(self, text: str) -> SparseVector:
        """Without indices where the text has no word worth looking for."""
        return self._bm25.embed_query(text)

    def marks(self, text: str, query: str) -> Sequence[tuple[int, int]]:
        """Where in a text the words of a query are, in whatever form: begin and end, in characters."""
        wanted = set(self.of_query(query).indices)
        known: dict[str, bool] = {}
        marks: list[tuple[int, int]] = []
        for found in re.finditer(r"\w+", text[:MARKED_CHARACTERS]):
            word = found[0].lower()
            if word not in known:
                known[word] = not wanted.isdisjoint(self.of_query(word).indices)
            if known[word]:
                marks.append(found.span())
        return marks
