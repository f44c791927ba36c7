"""Several rankings of the same documents made into one, by rank alone. Pure.

Scores of BM25 and cosines have no common scale, ranks do: a document gets from each ranking that has it
`weight / (RANK_CONSTANT + rank)`, ranks from 1 on (reciprocal rank fusion: Cormack, Clarke and Buettcher, SIGIR 2009).
Done here and not in the engine, so that both engines give the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from schemas.http import FoundBy
from services.memory.store import Document, Hit

RANK_CONSTANT = 60
"""The paper's. The larger it is, the more it counts to be in both rankings, against being first in one."""

WEIGHTS: Mapping[FoundBy, float] = {"text": 1.0, "vector": 1.0}


@dataclass(frozen=True, slots=True)
class Found:
    """A document, and which rankings have it. The score says what is better within one answer."""

    document: Document
    score: float
    found_by: tuple[FoundBy, ...]


def fused(rankings: Mapping[FoundBy, Sequence[Hit]]) -> list[Found]:
    """Every document of the rankings once, best first. One ranking alone keeps its order and its scores."""
    if len(rankings) == 1:
        [(name, hits)] = rankings.items()
        return [Found(hit.document, hit.score, (name,)) for hit in hits]
    documents: dict[str, Document] = {}
    scores: dict[str, float] = {}
    names: dict[str, tuple[FoundBy, ...]] = {}
    for name, hits in rankings.items():
        for rank, hit in enumerate(hits, start=1):
            point = hit.document.point_id
            documents.setdefault(point, hit.document)
            scores[point] = scores.get(point, 0.0) + WEIGHTS[name] / (RANK_CONSTANT + rank)
            names[point] = (*names.get(point, ()), name)
    ordered = sorted(scores, key=lambda point: (-scores[point], point))
    return [Found(documents[point], scores[point], names[point]) for point in ordered]
