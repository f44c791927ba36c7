"""By how many texts at once embedding goes on when some of them fail."""

from collections.abc import Callable, Sequence

from hypothesis import given
from hypothesis import strategies as st

from services.memory.batch_size import CALM, FAILURES, FAILURES_ALONE, BatchSize, Fault

WHOLE = 128

FAULTS: list[Fault] = ["refused", "broken"]
"""With which a text may be given up."""


def embed(waiting: Sequence[int], fails: Callable[[Sequence[int]], bool], fault: Fault) -> tuple[list[int], int]:
    """Embeds numbers from the first on. Returns which were given up, and how many calls it took."""
    size, left, given_up, calls = BatchSize(WHOLE), list(waiting), [], 0
    while left:
        calls += 1
        tried = left[: size.texts]
        assert 1 <= len(tried) <= WHOLE
        if not fails(tried):
            size.went_through()
            left = left[len(tried) :]
        elif size.failed([str(each) for each in tried], fault) == "without":
            given_up += tried
            left = left[1:]
    return given_up, calls


@given(st.integers(1, 1000), st.sets(st.integers(0, 999), max_size=5), st.sampled_from(FAULTS))
def test_those_are_given_up_that_fail_alone_and_no_others(count: int, bad: set[int], fault: Fault) -> None:
    given_up, calls = embed(range(count), lambda tried: not bad.isdisjoint(tried), fault)
    assert given_up == sorted(each for each in bad if each < count)
    assert calls <= count // WHOLE + CALM + len(given_up) * 40


@given(st.integers(1, 1000), st.integers(1, WHOLE), st.sampled_from([*FAULTS, "busy"]))
def test_nothing_is_given_up_where_texts_are_too_many(count: int, most: int, fault: Fault) -> None:
    given_up, _ = embed(range(count), lambda tried: len(tried) > most, fault)
    assert given_up == []


def test_a_batch_may_fail_once_and_a_text_alone_twice() -> None:
    size = BatchSize(4)
    for texts in (["a", "b", "c", "d"], ["a", "b"]):
        for _ in range(FAILURES - 1):
            assert size.failed(texts, "broken") == "again"
        assert size.failed(texts, "broken") == "fewer"
    for _ in range(FAILURES_ALONE - 1):
        assert size.failed(["a"], "broken") == "again"
    assert size.failed(["b"], "broken") == "again"
    for _ in range(FAILURES_ALONE - 1):
        assert size.failed(["a"], "broken") == "again"
    assert size.failed(["a"], "broken") == "without"


def test_no_text_is_given_up_by_a_server_that_takes_no_more_for_now() -> None:
    size = BatchSize(1)
    assert {size.failed(["a"], "busy") for _ in range(3 * FAILURES_ALONE)} == {"again"}


def test_batches_are_whole_again_when_it_goes_through() -> None:
    size = BatchSize(WHOLE)
    for texts in (WHOLE, WHOLE // 2):
        size.failed(["any"] * texts, "refused")
    sizes = []
    for _ in range(2 * CALM):
        sizes.append(size.texts)
        size.went_through()
    assert sizes == [WHOLE // 4] * CALM + [WHOLE // 2] * CALM
    assert size.texts == WHOLE
