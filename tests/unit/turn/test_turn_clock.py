"""What the clock does to a turn when it is set forward: nothing that the turn can feel."""

from datetime import timedelta

from services.agents.turn.inputs import ClockJumped
from tests.unit.turn.story import Story, asks

HOUR = timedelta(hours=1)


def jumps(story: Story, by: timedelta = HOUR) -> None:
    """As the owner has it: the time is another one, and before anything else the turn is told."""
    story.at += by
    assert story.happens(ClockJumped(by)) == []


def test_a_turn_has_as_much_time_left_after_a_jump_as_before() -> None:
    story = Story()
    story.prompt(options={"limits": {"max_seconds": 60}})
    story.waits(50)
    jumps(story)

    assert story.waits(9) == []
    assert [each.type for each in story.waits(1)][-1] == "turn.failed"


def test_a_retry_comes_after_its_pause_and_not_after_the_jump() -> None:
    story = Story()
    story.prompt()
    story.model_fails(retry_after=30)
    jumps(story)

    story.waits(29)
    assert story.turn.phase.retry_at is not None
    story.waits(1)
    assert story.wants.attempt == 2


def test_a_tool_has_its_time_whatever_the_clock_does() -> None:
    story = Story()
    story.prompt()
    story.answers("", asks("look"))
    (call,) = story.calls
    left = call.deadline_at - story.at
    jumps(story)

    (moved,) = story.calls
    assert moved.deadline_at - story.at == left
    assert [each.type for each in story.tool_returns(moved)] == ["message.added"]


def test_the_next_owner_finds_the_time_that_was_left() -> None:
    story = Story()
    story.prompt(options={"limits": {"max_seconds": 60}})
    jumps(story)
    story.crashes()

    assert story.turn.deadline_at == story.at + timedelta(seconds=60)


def test_a_jump_to_the_end_of_time_ends_nothing() -> None:
    story = Story()
    story.prompt()
    story.happens(ClockJumped(timedelta(days=365 * 9_000)))

    assert story.answers("done")
