"""Words of texts and queries as BM25 sees them, and where they are in a text."""

from typing import Any

import pytest
from qdrant_edge import Bm25, Bm25Config

from services.memory import qdrant_text
from services.memory.qdrant_text import TextVectors


def test_what_a_word_is_is_asked_once_for_all_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Counting:
        def __init__(self, config: Bm25Config) -> None:
            self._bm25 = Bm25(config)

        def embed_query(self, text: str) -> Any:
            asked.append(text)
            return self._bm25.embed_query(text)

    monkeypatch.setattr(qdrant_text, "Bm25", Counting)
    marker = TextVectors().marker("a lighthouse")
    assert [marker(text) for text in ("one lighthouse", "no lighthouses", "one lighthouse")] == [
        [(4, 14)],
        [(3, 14)],
        [(4, 14)],
    ]
    assert sorted(asked) == ["a lighthouse", "lighthouse", "lighthouses", "no", "one"]
