"""Words of texts and queries as BM25 sees them, and where they are in a text."""

import unicodedata
from typing import Any, Literal

import pytest
from qdrant_edge import Bm25, Bm25Config

from schemas.base import DEFAULT_TENANT
from services.memory import qdrant_text
from services.memory.qdrant_text import TextVectors
from services.memory.store import Document, Find


def saying(text: str) -> Document:
    return Document("m-1", "message", DEFAULT_TENANT, {}, "{}", text)


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
    wanted = set(vectors.of_query(Find("message", DEFAULT_TENANT), query).indices)
    assert wanted
    assert wanted <= set(vectors.of_document(saying(text)).indices)
    [(begin, end)] = vectors.marker(query)(text)
    assert text[begin:end] == word


@pytest.mark.parametrize(
    ("text", "query", "marked"),
    [
        ("我喜欢猫和狗。", "猫", ["猫"]),
        ("我喜欢猫和狗。", "喜欢", ["喜欢"]),
        ("我喜欢猫和狗。", "狗喜欢猫", ["喜欢猫", "狗"]),
        ("GPT4模型很快 really", "模型 gpt4", ["GPT4模型"]),
        ("新しいカメラを買った", "カメラ", ["カメラ"]),
        ("𠮷野家で食べた", "𠮷野家", ["𠮷野家"]),
        ("고양이를 좋아합니다", "고양이", ["고양이"]),
        ("窓のガラスを拭く", "ガラス", ["ガラス"]),
        ("ผมชอบแมวมาก", "แมว", ["แมว"]),
        ("我喜欢猫和狗。", "鸟", []),
        ("新しいカメラを買った", "ラジオ", []),
    ],
)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_words_are_found_where_a_script_puts_no_spaces_between_them(
    text: str, query: str, marked: list[str], form: Literal["NFC", "NFD"]
) -> None:
    text, marked = unicodedata.normalize(form, text), [unicodedata.normalize(form, each) for each in marked]
    vectors = TextVectors()
    wanted = set(vectors.of_query(Find("message", DEFAULT_TENANT), query).indices)
    assert wanted.isdisjoint(vectors.of_document(saying(text)).indices) == (not marked)
    assert [text[begin:end] for begin, end in vectors.marker(query)(text)] == marked
