"""Several rankings of the same documents made into one, by rank alone. Pure.

Scores of BM25 and cosines have no common scale, ranks do: a document gets from each ranking that has it
`weight / (RANK_CONSTANT + rank)`, ranks from 1 on (reciprocal rank fusion: Cormack, Clarke and Buettcher, SIGIR 2009).
Done here and not in the engine, so that both engines give the same.

BM25 finds something whenever a single word of a long question occurs anywhere, and its first is then no better than
chance: such hits counted as much as good ones and made both together worse than meaning alone. So a hit by words counts
beside meaning from half of the question's words on. What has fewer is not lost: it comes behind everything else.
Measured by `make bench-recall`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from schemas.http import FoundBy
from services.memory.store import Hit, Point, text_of_point

RANK_CONSTANT = 60
"""The paper's. From 5 to 60 it made no difference to what was measured."""

WEIGHTS: Mapping[FoundBy, float] = {"text": 1.0, "vector": 2.0}

LEAST_MATCHED = 0.5


@dataclass(frozen=True, slots=True)
class Found:
    """A hit, and which rankings have it. The score says what is better within one answer."""

    point: Point
    score: float
    found_by: tuple[FoundBy, ...]

    @property
    def point_id(self) -> str:
        return text_of_point(self.point)


def fused(rankings: Mapping[FoundBy, Sequence[Hit]]) -> list[Found]:
    """Every document of the rankings once, best first. One ranking alone keeps its order and its scores."""
    if len(rankings) == 1:
        [(name, hits)] = rankings.items()
        return [Found(hit.point, hit.score, (name,)) for hit in hits]
    scores: dict[Point, float] = {}
    names: dict[Point, tuple[FoundBy, ...]] = {}
    for name, hits in rankings.items():
        for hit in hits:
            names[hit.point] = (*names.get(hit.point, ()), name)
        counting = [hit for hit in hits if hit.matched >= LEAST_MATCHED]
        for rank, hit in enumerate(counting, start=1):
            scores[hit.point] = scores.get(hit.point, 0.0) + WEIGHTS[name] / (RANK_CONSTANT + rank)
    rest = [hit.point for hits in rankings.values() for hit in hits if hit.point not in scores]
    for place, point in enumerate(rest, start=len(names) + 1):
        scores[point] = min(WEIGHTS.values()) / (RANK_CONSTANT + place)
    ordered = sorted(scores, key=lambda point: (-scores[point], point))
    return [Found(point, scores[point], names[point]) for point in ordered]
