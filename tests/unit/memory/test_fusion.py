"""Two rankings become one by rank alone."""

from hypothesis import given
from hypothesis import strategies as st

from schemas.http import FoundBy
from services.memory.fusion import fused
from services.memory.store import Hit


def hits(*names: str) -> list[Hit]:
    """A ranking of documents, whose scores fall."""
    return [Hit(name, 1 / (1 + rank)) for rank, name in enumerate(names)]


def order(text: list[str], vector: list[str]) -> list[str]:
    return [each.point_id for each in fused({"text": hits(*text), "vector": hits(*vector)})]


NAMES = st.lists(st.sampled_from("abcdefgh"), unique=True)


def test_what_both_find_is_before_what_one_finds() -> None:
    assert order(["a", "b", "c"], ["d", "b", "e"]) == ["b", "d", "e", "a", "c"]


def test_a_hit_with_few_of_the_words_comes_behind_everything_else_and_lifts_nothing() -> None:
    text = [hit._replace(matched=matched) for hit, matched in zip(hits("a", "b", "c"), (0.3, 0.5, 0.2), strict=True)]
    found = fused({"text": text, "vector": hits("d", "c")})
    assert [each.point_id for each in found] == ["d", "c", "b", "a"]
    assert [each.found_by for each in found] == [("vector",), ("text", "vector"), ("text",), ("text",)]


def test_a_hit_with_few_of_the_words_counts_where_words_are_all_there_is() -> None:
    text = [hit._replace(matched=0.1) for hit in hits("a", "b")]
    assert [(each.point_id, each.score) for each in fused({"text": text})] == [("a", 1.0), ("b", 0.5)]


def test_one_ranking_keeps_its_scores() -> None:
    found = fused({"text": hits("a", "b")})
    assert [(each.point_id, each.score, each.found_by) for each in found] == [
        ("a", 1.0, ("text",)),
        ("b", 0.5, ("text",)),
    ]


def test_no_ranking_is_no_document() -> None:
    assert fused({}) == []


@given(NAMES, NAMES)
def test_every_document_comes_once_with_who_found_it_and_scores_that_fall(text: list[str], vector: list[str]) -> None:
    found = fused({"text": hits(*text), "vector": hits(*vector)})
    names: dict[str, tuple[FoundBy, ...]] = {each.point_id: each.found_by for each in found}
    assert len(names) == len(found)
    assert {name for name, by in names.items() if "text" in by} == set(text)
    assert {name for name, by in names.items() if "vector" in by} == set(vector)
    scores = [each.score for each in found]
    assert scores == sorted(scores, reverse=True)


@given(NAMES, NAMES)
def test_what_is_better_in_both_is_better(text: list[str], vector: list[str]) -> None:
    places = {name: place for place, name in enumerate(order(text, vector))}
    for one in set(text) & set(vector):
        for other in set(text) & set(vector):
            if text.index(one) < text.index(other) and vector.index(one) < vector.index(other):
                assert places[one] < places[other]


@given(NAMES)
def test_two_equal_rankings_stay_as_they_are(names: list[str]) -> None:
    assert order(names, names) == names


@given(NAMES, NAMES)
def test_the_order_does_not_depend_on_which_ranking_came_first(text: list[str], vector: list[str]) -> None:
    one = fused({"text": hits(*text), "vector": hits(*vector)})
    other = fused({"vector": hits(*vector), "text": hits(*text)})
    assert [each.point_id for each in one] == [each.point_id for each in other]
