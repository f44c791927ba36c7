"""The measurement of recall is itself right, and what it measured stays so."""

from collections import Counter

import pytest

from tests.recall.measure import KINDS, Quality, load, ranks


def test_every_question_is_asked_once_and_its_message_is_there() -> None:
    messages, questions = load()
    ids = {each.message_id for each in messages}
    assert len(ids) == len(messages)
    assert {each.answered_by for each in questions} <= ids
    assert Counter(each.text for each in questions).most_common(1)[0][1] == 1
    kinds = Counter(each.kind for each in questions)
    assert kinds["in_other_words"] >= 100
    assert all(kinds[kind] > 50 for kind in KINDS)


def test_quality_is_that_of_the_first_ten() -> None:
    assert Quality.of([1, 1]) == Quality(1, 1)
    assert Quality.of([None, 11]) == Quality(0, 0)
    assert Quality.of([3, 10, None, None]) == Quality(0.5, pytest.approx((0.5 + 1 / 3.4594) / 4, abs=1e-4))


async def test_both_together_find_no_less_than_the_better_of_the_two() -> None:
    qualities = {mode: Quality.of(places) for mode, places in (await ranks()).items()}
    text, vector, hybrid = (qualities[mode] for mode in ("text", "vector", "hybrid"))
    assert hybrid.recall >= max(text.recall, vector.recall)
    assert hybrid.ndcg >= max(text.ndcg, vector.ndcg)
