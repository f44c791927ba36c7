"""Steps: the model answers, fails, is tried again, and is stopped."""

from datetime import timedelta

import pytest

from schemas.agents import AgentSpec, Limits, RetryPolicy, StopConditions
from schemas.base import TokenCounts
from schemas.prompts import TurnOptions
from services.agents.turn.closing import model_ref
from services.agents.turn.state import next_due, wanted_call
from tests.unit.turn.story import ASSISTANT, NOON, Story, another, asks, types

PATIENT = another(retries=RetryPolicy(max_attempts=3, backoff_seconds=2, max_backoff_seconds=3))


def model_of(story: Story) -> str | None:
    assert story.state is not None
    return model_ref(story.state, story.environment)


def test_usage_of_all_steps_is_summed_in_the_completion() -> None:
    story = Story()
    story.prompt()
    story.answers("", asks(), usage=TokenCounts(input_tokens=5, cached_input_tokens=2))
    story.tool_returns(story.calls[0])
    story.answers("done", usage=TokenCounts(input_tokens=7, output_tokens=4, reasoning_tokens=1))
    (completed,) = story.ends
    assert completed.usage == TokenCounts(input_tokens=12, cached_input_tokens=2, output_tokens=4, reasoning_tokens=1)
    assert completed.steps == 2
    assert [each.step for each in story.usage] == [1, 2]


def test_usage_says_which_team_it_is_for_and_which_step_completed_the_turn() -> None:
    story = Story()
    story.prompt(team_id="blue")
    story.prompt(team_id="red")
    story.answers("", asks())
    (called,) = story.written("tool.called")
    story.tool_returns(story.calls[0])
    story.answers("done")
    story.model_fails("provider_error")
    assert called.team_id == "blue"
    assert [(each.team_id, each.completes_turn) for each in story.usage] == [
        ("blue", False),
        ("blue", True),
        ("red", False),
    ]


def test_reasoning_goes_before_the_text_and_is_no_part_of_the_answer() -> None:
    story = Story()
    story.prompt()
    _, message, _, completed = story.answers("42", reasoning="six times seven")
    assert [part.type for part in message.parts] == ["reasoning", "text"]
    assert completed.text == "42"


def test_an_empty_answer_is_an_answer() -> None:
    story = Story()
    story.prompt()
    _, message, _, completed = story.answers("", finish_reason="length")
    assert (message.parts[0].text, completed.text, completed.finish_reason) == ("", "", "length")


def test_an_answer_for_another_step_attempt_or_turn_is_ignored() -> None:
    story = Story()
    story.prompt()
    old = story.wants
    story.answers("", asks())
    story.tool_returns(story.calls[0])
    before = story.state
    assert story.answers("late", call=old) == []
    assert story.state is before


def test_a_failure_is_on_record_and_the_next_try_waits() -> None:
    story = Story([PATIENT])
    story.prompt()
    (usage,) = story.model_fails("provider_error")
    assert (usage.outcome, usage.billable, usage.attempt, usage.estimated) == ("error", False, 1, True)
    assert wanted_call(story.state) is None
    due = next_due(story.state)
    assert due is not None
    assert timedelta(seconds=2) <= due - NOON <= timedelta(seconds=2.5)
    assert story.waits(1.9) == []
    assert wanted_call(story.state) is None
    assert story.waits(0.7) == []
    assert story.wants.attempt == 2


def test_backoff_doubles_up_to_its_bound() -> None:
    story = Story([another(retries=RetryPolicy(max_attempts=9, backoff_seconds=1, max_backoff_seconds=5))])
    story.prompt()
    waits = []
    for _ in range(5):
        story.model_fails()
        due = next_due(story.state)
        assert due is not None
        waits.append((due - story.at).total_seconds())
        story.waits(waits[-1])
    for wait, nominal in zip(waits, [1, 2, 4, 5, 5], strict=True):
        assert nominal <= wait <= nominal * 1.25


def test_turns_spread_their_retries() -> None:
    dues = set()
    for number in range(10):
        story = Story()
        story.prompt(prompt_id=f"p-{number}")
        story.model_fails()
        dues.add(next_due(story.state))
    assert len(dues) > 5


@pytest.mark.parametrize("seconds", [0.0, 0.25, 7.0, 90.0])
def test_what_the_provider_asks_for_goes_before_backoff(seconds: float) -> None:
    story = Story()
    story.prompt()
    story.model_fails("rate_limited", retry_after=seconds)
    assert next_due(story.state) == NOON + timedelta(seconds=seconds)


def test_an_answer_after_retries_completes_the_turn_and_each_attempt_is_metered() -> None:
    story = Story([PATIENT])
    story.prompt()
    for _ in range(2):
        story.model_fails()
        story.waits(3.75)
    story.answers("third time lucky")
    assert [(each.outcome, each.attempt, each.billable) for each in story.usage] == [
        ("error", 1, False),
        ("error", 2, False),
        ("ok", 3, True),
    ]
    assert [each.type for each in story.ends] == ["turn.completed"]


def test_a_turn_whose_tries_are_used_up_fails_with_the_last_error() -> None:
    story = Story([PATIENT])
    story.prompt()
    for _ in range(2):
        story.model_fails("timeout")
        story.waits(3.75)
    written = story.model_fails("rate_limited", message="slow down")
    assert types(written) == ["usage.recorded", "turn.closed", "turn.failed"]
    failed = written[-1]
    assert (failed.error.code, failed.error.message, failed.error.retryable) == ("rate_limited", "slow down", True)
    assert failed.steps == 0


def test_a_failure_that_no_retry_helps_fails_the_turn_at_once() -> None:
    story = Story([PATIENT])
    story.prompt()
    written = story.model_fails("auth", retryable=False, message="401")
    assert types(written) == ["usage.recorded", "turn.closed", "turn.failed"]
    assert (written[1].outcome, written[2].error.code, written[2].error.retryable) == ("failed", "auth", False)


@pytest.mark.parametrize("seconds", [30, 31])
def test_a_retry_that_would_not_come_before_the_deadline_is_not_waited_for(seconds: int) -> None:
    story = Story()
    story.prompt(options=TurnOptions(limits=Limits(max_seconds=30)))
    story.model_fails("rate_limited", retry_after=seconds)
    assert [each.error.code for each in story.ends] == ["rate_limited"]


def test_fallbacks_are_asked_in_turn_each_with_all_its_tries() -> None:
    spec = another(model="first", fallbacks=["second", "third"], retries=RetryPolicy(max_attempts=2))
    story = Story([spec])
    story.prompt()
    asked = []
    while story.state is not None:
        asked.append(model_of(story))
        story.model_fails()
        story.waits(1)
    assert asked == ["first", "first", "second", "second", "third", "third"]
    assert [each.attempt for each in story.usage] == [1, 2, 3, 4, 5, 6]
    assert [each.type for each in story.ends] == ["turn.failed"]


def test_a_fallback_is_asked_at_once_when_no_retry_helps() -> None:
    story = Story([another(model="first", fallbacks=["second"])])
    story.prompt()
    story.model_fails("model_not_found", retryable=False)
    assert (model_of(story), story.wants.attempt) == ("second", 2)


def test_the_next_step_begins_with_the_first_model_again() -> None:
    story = Story([another(model="first", fallbacks=["second"])])
    story.prompt()
    story.model_fails("auth", retryable=False)
    story.answers("", asks())
    story.tool_returns(story.calls[0])
    assert (model_of(story), story.wants.attempt) == ("first", 1)


def test_the_model_of_the_prompt_goes_before_the_agents() -> None:
    story = Story([another(model="first", fallbacks=["second"])])
    story.prompt(options=TurnOptions(model="mine"))
    assert model_of(story) == "mine"


def test_a_takeover_goes_on_with_the_fallback_and_what_is_left_of_its_tries() -> None:
    story = Story([another(model="first", fallbacks=["second"], retries=RetryPolicy(max_attempts=1))])
    story.prompt()
    story.model_fails()
    story.crashes()
    assert (model_of(story), story.wants.attempt) == ("second", 3)
    assert story.usage[-1].model == "second"
    story.model_fails()
    assert [each.type for each in story.ends] == ["turn.failed"]


def test_a_takeover_waits_as_long_as_the_last_worker_would_have() -> None:
    story = Story()
    story.prompt()
    story.model_fails(retry_after=20)
    due = next_due(story.state)
    assert story.crashes() == []
    assert next_due(story.state) == due
    story.waits(20)
    assert story.wants.attempt == 2


def test_a_turn_on_a_fallback_survives_that_its_agent_is_gone_or_has_fewer_of_them() -> None:
    story = Story([another(model="first", fallbacks=["second"])])
    story.prompt()
    story.model_fails("auth", retryable=False)
    story.apply(another(model="first"))
    assert model_of(story) == "first"
    assert [each.outcome for each in story.crashes()] == ["lost"]
    story.agents = {}
    assert model_of(story) is None
    assert [each.type for each in story.cancels()] == ["usage.recorded", "turn.closed", "turn.cancelled"]


def test_a_turn_ends_after_its_last_step_and_every_call_has_its_result() -> None:
    story = Story([another(stop=StopConditions(max_steps=2))])
    story.prompt()
    story.answers("", asks())
    story.tool_returns(story.calls[0])
    written = story.answers("", asks("look"), asks("fly"))
    assert types(written) == ["usage.recorded", *["message.added"] * 3, "turn.closed", "turn.failed"]
    assert (written[-1].error.code, written[-1].error.retryable, written[-1].steps) == ("max_steps", False, 2)
    assert {part.call_id for part in written[1].parts} == {part.call_id for part in story.results[1:]}
    assert not [each for each in story.written("tool.called") if each.step == 2]


def test_an_answer_without_tools_may_come_in_the_last_step() -> None:
    story = Story([another(stop=StopConditions(max_steps=1))])
    story.prompt()
    story.answers("just in time")
    assert [each.type for each in story.ends] == ["turn.completed"]


def test_the_steps_that_a_prompt_allows_go_before_the_agents() -> None:
    story = Story([another(stop=StopConditions(max_steps=1))])
    story.prompt(options=TurnOptions(limits=Limits(max_steps=2)))
    story.answers("", asks())
    assert len(story.calls) == 1


def test_a_turn_ends_at_its_deadline_while_the_model_thinks() -> None:
    story = Story([another(stop=StopConditions(max_seconds=30))])
    story.prompt()
    assert story.waits(29) == []
    written = story.waits(1)
    assert types(written) == ["usage.recorded", "turn.closed", "turn.failed"]
    assert (written[0].outcome, written[0].billable) == ("lost", False)
    assert (written[2].error.code, written[2].error.retryable) == ("deadline", True)
    assert "30 s" in written[2].error.message


def test_a_turn_that_waits_to_try_again_has_no_attempt_to_lose_at_its_deadline() -> None:
    story = Story([another(stop=StopConditions(max_seconds=30))])
    story.prompt()
    story.model_fails(retry_after=29)
    assert types(story.waits(31)) == ["turn.closed", "turn.failed"]


def test_a_timer_that_rings_early_changes_nothing() -> None:
    story = Story()
    story.prompt()
    assert types(story.waits(1)) == []
    state = story.state
    assert story.waits(1) == []
    assert story.state is state


JSON_AGENT = AgentSpec(name="assistant", response_schema={"type": "object"})


def test_an_answer_by_a_schema_comes_as_an_object() -> None:
    story = Story([JSON_AGENT])
    story.prompt()
    story.answers('{"city": "Paris", "sights": [1, null]}')
    assert story.ends[0].object == {"city": "Paris", "sights": [1, None]}


@pytest.mark.parametrize("text", ["Paris", "", "{", '{"a": NaN}', '{"a": 1e999}', "[" * 100_000, '"\\ud83d"'])
def test_an_answer_that_is_not_the_json_asked_for_fails_the_turn_and_is_billed(text: str) -> None:
    story = Story([JSON_AGENT])
    story.prompt()
    story.answers(text)
    (failed,) = story.ends
    assert (failed.type, failed.error.code, failed.error.retryable) == ("turn.failed", "response_schema", True)
    assert (failed.steps, failed.usage.input_tokens, story.usage[0].billable) == (1, 10, True)


def test_the_schema_of_the_prompt_goes_before_the_agents() -> None:
    story = Story([ASSISTANT])
    story.prompt(options=TurnOptions(response_schema={"type": "array"}))
    story.answers("[1]")
    assert story.ends[0].object == [1]


def test_tools_asked_for_after_the_turns_time_is_over_are_not_called() -> None:
    story = Story()
    story.prompt()
    story.at = story.turn.deadline_at
    written = story.answers("", asks())
    assert types(written) == ["usage.recorded", *["message.added"] * 2, "turn.closed", "turn.failed"]
    assert (written[-1].error.code, written[-1].steps) == ("deadline", 1)


def test_an_answer_that_comes_as_the_time_ends_still_counts() -> None:
    story = Story()
    story.prompt()
    story.at = story.turn.deadline_at
    assert types(story.answers("just in time"))[-1] == "turn.completed"


def test_a_turn_found_after_its_time_is_over_asks_no_model_again() -> None:
    story = Story()
    story.prompt()
    story.at = story.turn.deadline_at
    assert types(story.crashes()) == ["usage.recorded", "turn.closed", "turn.failed"]
    assert [each.attempt for each in story.usage] == [1]
