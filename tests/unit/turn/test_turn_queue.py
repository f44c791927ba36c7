"""The queue of a thread is a value: it is what a tuple would be, whatever was made of it since."""

from hypothesis import given
from hypothesis import strategies as st

from schemas.turns import QueuedPrompt
from services.agents.turn.decide import MAX_QUEUED, MAX_QUEUED_BYTES
from services.agents.turn.queue import PromptQueue, size_of
from tests.unit.turn.story import ASSISTANT, Story, another, types

LONG = 20_000


def prompt(number: int) -> QueuedPrompt:
    return QueuedPrompt(sequence=number, turn_id=f"t-{number}", prompt_id="p", agent="a", content="é" * number)


@given(
    st.lists(
        st.tuples(st.integers(0, 99), st.sampled_from(["append", "append", "pop", "remove", "front"])), max_size=80
    )
)
def test_it_is_what_a_tuple_would_be(steps: list[tuple[int, str]]) -> None:
    """Each step goes on from any earlier version."""
    versions: list[tuple[PromptQueue, tuple[QueuedPrompt, ...]]] = [(PromptQueue(), ())]
    for number, (which, step) in enumerate(steps):
        queue, model = versions[which % len(versions)]
        match step:
            case "append":
                versions.append((queue.appended(prompt(number)), (*model, prompt(number))))
            case "pop" if model:
                versions.append((queue.without_first(), model[1:]))
            case "front":
                versions.append((queue.preceded_by(prompt(number)), (prompt(number), *model)))
            case "remove" if model:
                gone = model[which % len(model)]
                versions.append((queue.without(gone.turn_id), tuple(each for each in model if each != gone)))
            case _:
                pass

    for queue, model in versions:
        assert tuple(queue) == model
        assert len(queue) == len(model)
        assert queue.bytes == sum(map(size_of, model))
        assert queue[:2] == [*model[:2]]
        assert all(queue[index] == model[index] for index in range(-len(model), len(model)))
        assert [queue.holds(f"t-{number}") for number in range(80)] == [
            f"t-{number}" in [each.turn_id for each in model] for number in range(80)
        ]
    for one, old in versions[-5:]:
        for other, new in versions[-5:]:
            gone, come = one.gone_and_come(other)
            assert gone == [each for each in old if each not in new]
            assert come == [each for each in new if each not in old]
            assert (one == other) == (old == new)


def test_a_long_queue_changes_by_one_prompt_at_a_time() -> None:
    queue = PromptQueue()
    for number in range(LONG):
        longer = queue.appended(prompt(number).model_copy(update={"content": "hello"}))
        assert queue.gone_and_come(longer) == ([], [longer[len(queue)]])
        assert not longer.holds("another")
        queue = longer
    while queue:
        shorter = queue.without_first()
        gone, come = queue.gone_and_come(shorter)
        assert (len(gone), come) == (1, [])
        queue = shorter


def test_a_prompt_that_finds_the_queue_full_is_rejected_and_the_turns_before_it_go_on() -> None:
    story = Story()
    for _ in range(MAX_QUEUED + 1):
        story.prompt()

    (rejected,) = story.prompt("one too many")

    assert (rejected.type, rejected.error.code, rejected.error.retryable) == ("turn.rejected", "busy", True)
    assert len(story.queue) == MAX_QUEUED


HEAVY = "x" * 2**20


def test_a_prompt_that_would_make_the_queue_too_heavy_is_rejected_and_a_lighter_one_still_waits() -> None:
    story = Story()
    story.prompt()
    for _ in range(MAX_QUEUED_BYTES // 2**20 - 1):
        assert story.prompt(HEAVY) == []

    (rejected,) = story.prompt(HEAVY)
    assert (rejected.type, rejected.error.code, rejected.error.retryable) == ("turn.rejected", "busy", True)
    story.crashes()
    assert types(story.prompt(HEAVY)) == ["turn.rejected"], "a new owner has weighed what waits"
    assert story.prompt("light") == []
    story.answers()
    assert story.prompt(HEAVY) == []


def test_a_prompt_that_interrupts_does_not_wait_and_so_is_not_too_heavy() -> None:
    story = Story([ASSISTANT, another(name="hasty", on_busy="interrupt")])
    story.prompt()
    for _ in range(MAX_QUEUED_BYTES // 2**20 - 1):
        story.prompt(HEAVY)

    assert types(story.prompt(HEAVY, agent="hasty"))[-2:] == ["turn.opened", "message.added"]


def test_cancelling_all_turns_of_a_thread_ends_each_queued_one() -> None:
    story = Story()
    for _ in range(MAX_QUEUED + 1):
        story.prompt()

    ended = story.cancels()

    assert sum(each.type == "turn.cancelled" for each in ended) == MAX_QUEUED + 1
    assert not story.records
