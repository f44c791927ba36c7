"""Scripts that put no spaces between words, cut so that words are found within a sentence. Pure.

Each pair of neighbouring characters stands as a word, as in Lucene's analysis of Chinese, Japanese and Korean, and a
Chinese character also by itself. Pairs of two words are pieces like others: they are rare, and do no harm.
"""

import re
from collections.abc import Iterator

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
OTHERS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\uac00-\ud7af"
"""Thai and Lao, Burmese, Khmer, Japanese syllables. Korean has spaces, but joins particles to its words."""

_HAN = re.compile(f"[{HAN}]")
_RUN = re.compile(f"[{HAN}{OTHERS}]+")


def cut(text: str) -> str:
    """The text with a space between pieces. One of other scripts is as it was."""
    if text.isascii():
        return text
    return _RUN.sub(lambda run: f" {' '.join(run[0][begin:end] for begin, end in _pieces(run[0]))} ", text)


def spans(word: str) -> Iterator[tuple[int, int]]:
    """Where the pieces of a word are: begin and end, in characters. They may overlap."""
    end = 0
    for run in _RUN.finditer(word):
        if end < run.start():
            yield end, run.start()
        for begin, end in _pieces(run[0]):
            yield run.start() + begin, run.start() + end
        end = run.end()
    if end < len(word):
        yield end, len(word)


def _pieces(run: str) -> Iterator[tuple[int, int]]:
    for place, character in enumerate(run):
        if len(run) == 1 or _HAN.match(character):
            yield place, place + 1
        if place + 1 < len(run):
            yield place, place + 2
