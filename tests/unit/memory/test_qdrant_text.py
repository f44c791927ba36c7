"""Words of texts and queries as BM25 sees them, and where they are in a text."""

import unicodedata
from typing import Any, Literal

import pytest
from qdrant_edge import Bm25, Bm25Config

from schemas.base import DEFAULT_TENANT
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


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("asked_in", ["NFC", "NFD"])
@pytest.mark.parametrize(
    ("before", "word", "after"),
    [
        ("", "हिन्दी", " भाषा सीखना"),
        ("", "தமிழ்", " மொழி"),
        ("قال ", "مُحَمَّد", " لنا"),
        ("", "İstanbul", " güzel"),
        ("Frau ", "Müller", "-Café"),
        ("", "Σίσυφος", "."),
        ("", "서울", " 만나요"),
        ("là ", "Việt", "-Nam"),
    ],
)
def test_words_of_any_script_are_found_and_marked_however_their_letters_are_composed(
    before: str, word: str, after: str, form: Literal["NFC", "NFD"], asked_in: Literal["NFC", "NFD"]
) -> None:
    before, word, after = (unicodedata.normalize(form, each) for each in (before, word, after))
    query, text = unicodedata.normalize(asked_in, word), before + word + after
    vectors = TextVectors()
    wanted = set(vectors.of_query(DEFAULT_TENANT, query).indices)
    assert wanted
    assert wanted <= set(vectors.of_document(DEFAULT_TENANT, text).indices)
    [(begin, end)] = vectors.marker(query)(text)
    assert text[begin:end] == word
