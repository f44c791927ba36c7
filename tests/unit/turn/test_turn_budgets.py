"""Budgets: a turn does not open, or does not go on, when one is used up."""

from schemas.agents import AgentSpec
from schemas.budgets import Spender
from schemas.completions import TurnError
from tests.unit.turn.story import Story, another, asks, types

USED_UP = TurnError(code="budget", message="budget 'b' is used up", retryable=True)


def test_a_prompt_is_rejected_when_a_budget_is_used_up() -> None:
    story = Story(used_up=USED_UP)
    (rejected,) = story.prompt()
    assert (rejected.type, rejected.error) == ("turn.rejected", USED_UP)
    assert story.state is None
    assert story.asked_budgets == [(Spender("default", "u-1", "assistant", "t-1"), True)]


def test_a_raised_budget_lets_the_next_prompt_in() -> None:
    story = Story(used_up=USED_UP)
    story.prompt()
    story.used_up = None
    assert types(story.prompt()) == ["turn.opened", "message.added"]


def test_a_running_turn_ends_where_its_next_step_would_begin_and_its_calls_have_their_results() -> None:
    story = Story()
    story.prompt()
    story.answers("", asks(), asks("delete"))
    first, second = story.calls
    story.used_up = USED_UP
    assert types(story.tool_returns(first)) == ["message.added"]
    written = story.tool_returns(second)
    assert types(written) == ["message.added", "turn.closed", "turn.failed"]
    failed = written[-1]
    assert (failed.error, failed.steps, failed.usage.input_tokens) == (USED_UP, 1, 10)
    assert story.asked_budgets[-1] == (Spender("default", "u-1", "assistant", "t-1"), False)


def test_tools_are_not_called_for_a_turn_that_may_not_go_on() -> None:
    story = Story()
    story.prompt()
    story.used_up = USED_UP
    written = story.answers("", asks(), asks("fly"))
    assert types(written) == ["usage.recorded", *["message.added"] * 3, "turn.closed", "turn.failed"]
    assert (written[-1].error.code, written[-1].steps) == ("budget", 1)
    assert {part.call_id for part in written[1].parts} == {part.call_id for part in story.results}


def test_an_answer_that_ends_the_turn_is_given_though_a_budget_is_used_up() -> None:
    story = Story()
    story.prompt()
    story.used_up = USED_UP
    assert types(story.answers("just in time"))[-1] == "turn.completed"


def test_a_step_that_has_begun_is_tried_again_though_a_budget_is_used_up() -> None:
    story = Story()
    story.prompt()
    story.used_up = USED_UP
    story.model_fails(retry_after=1)
    story.waits(1)
    assert story.wants.attempt == 2
    story.crashes()
    assert story.wants.attempt == 3


def test_prompts_that_wait_are_rejected_when_their_turn_comes() -> None:
    story = Story()
    story.prompt()
    story.prompt()
    story.prompt()
    story.used_up = USED_UP
    written = story.answers("done")
    assert types(written)[-4:] == ["prompt.dropped", "turn.rejected"] * 2
    assert [each.error.code for each in story.ends[1:]] == ["budget", "budget"]
    assert story.state is None


def test_nobody_is_interrupted_by_a_prompt_that_no_budget_has_room_for() -> None:
    story = Story([another(on_busy="interrupt")])
    story.prompt()
    story.used_up = USED_UP
    assert types(story.prompt()) == ["turn.rejected"]
    assert story.wants.attempt == 1


def test_a_turn_of_a_person_spends_nothing() -> None:
    story = Story([AgentSpec(name="assistant", kind="human")], used_up=USED_UP)
    assert types(story.prompt()) == ["turn.opened", "message.added", "turn.waiting"]
    assert story.asked_budgets == []


def test_the_team_of_a_prompt_is_asked_for_when_its_turn_opens_and_goes_on() -> None:
    story = Story()
    story.prompt(team_id="red")
    story.answers("", asks())
    story.tool_returns(story.calls[0])
    assert {(spender.team_id, opening) for spender, opening in story.asked_budgets} == {("red", True), ("red", False)}
