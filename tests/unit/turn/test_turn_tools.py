"""Tool calls: made together, awaited together, approved, late, lost."""

from datetime import timedelta

import pytest

from schemas.agents import Limits
from schemas.prompts import TurnOptions
from schemas.tool_calls import ToolProgress
from schemas.tools import ToolSpec
from services.agents.turn.state import wanted_call
from services.agents.turn.steps import QUEUE_SECONDS
from tests.unit.turn.story import NOON, Story, another, asks, types

CAREFUL = another(approval=["delete"])


def asked(*tools: object, story: Story | None = None, **prompt: object) -> Story:
    """A thread whose model has just asked for tools."""
    story = story or Story()
    story.prompt(**prompt)
    story.answers("", *tools)
    return story


def test_a_tool_call_is_handed_out_with_all_that_a_worker_needs() -> None:
    story = asked(asks("look", '{"city": "Paris"}'))
    (called,) = story.written("tool.called")
    (call,) = story.calls
    assert (called.call_id, called.name, called.arguments) == (call.call_id, "look", {"city": "Paris"})
    assert (called.turn_id, called.step, called.agent, called.user_id) == (story.turn.turn_id, 1, "assistant", "u-1")
    assert called.deadline_at == NOON + timedelta(seconds=60 + QUEUE_SECONDS)
    assert wanted_call(story.state) is None


def test_the_step_that_asks_for_tools_is_committed_before_they_answer() -> None:
    story = Story()
    story.prompt()
    written = story.answers("Let me see.", asks("look", '{"a":  1}'))
    assert types(written) == ["usage.recorded", "message.added", "tool.called"]
    assert [part.type for part in written[1].parts] == ["text", "tool_call"]
    assert written[1].parts[1].arguments == '{"a":  1}', "just as the model wrote it"


def test_parallel_calls_are_awaited_together() -> None:
    story = asked(asks("look"), asks("look"), asks("delete"))
    first, second, third = story.calls
    assert len(story.written("tool.called")) == 3
    story.tool_returns(third, 3)
    story.tool_returns(first, 1)
    assert wanted_call(story.state) is None
    story.tool_returns(second, {"two": [2]})
    assert (story.wants.step, story.wants.attempt) == (2, 1)
    assert [(part.call_id, part.result) for part in story.results] == [
        (third.call_id, 3),
        (first.call_id, 1),
        (second.call_id, {"two": [2]}),
    ]


def test_two_calls_of_one_tool_with_the_same_words_are_two_calls() -> None:
    story = asked(asks(), asks())
    assert len({call.call_id for call in story.calls}) == 2


def test_calls_of_two_steps_differ_though_they_say_the_same() -> None:
    story = asked(asks())
    first = story.calls[0].call_id
    story.tool_returns(first)
    story.answers("", asks())
    assert story.calls[0].call_id != first


def test_a_tool_with_a_queue_is_called_there() -> None:
    story = Story([another(tools=["look"])], [ToolSpec(name="look", queue="slow")])
    asked(asks(), story=story)
    assert [each.topic for each in story.emits if each.event.type == "tool.called"] == ["tool-calls.slow"]


@pytest.mark.parametrize("name", ["fly", "", "get weather!", "x" * 5000, "\ud83d"])
def test_a_tool_that_is_not_there_is_answered_at_once_so_that_the_model_can_mend_it(name: str) -> None:
    story = asked(asks(name))
    (result,) = story.results
    assert result.is_error
    assert "the tools are: look, delete" in result.result
    assert story.wants.step == 2
    assert not story.written("tool.called")


def test_a_tool_that_exists_but_was_not_offered_is_not_called() -> None:
    story = asked(asks("delete"), options=TurnOptions(tools=["look"]))
    assert "no tool 'delete'" in story.results[0].result


def test_an_agent_without_tools_says_so() -> None:
    story = asked(asks("look"), options=TurnOptions(tools=[]))
    assert story.results[0].result.endswith("the tools are: none")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("{", "not JSON"),
        ("look at this", "not JSON"),
        ('{"a": NaN}', "not JSON"),
        ('{"a": 1e999}', "too large"),
        ('{"a": "\\ud83d"}', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"a": ' + "[" * 101 + "]" * 101 + "}", "nested deeper than 100 levels"),
        ("[1]", "JSON object"),
        ("null", "JSON object"),
        ('"text"', "JSON object"),
    ],
)
def test_arguments_that_no_tool_can_take_are_answered_at_once(arguments: str, complaint: str) -> None:
    story = asked(asks("look", arguments))
    (result,) = story.results
    assert result.is_error
    assert complaint in result.result
    assert story.wants.step == 2


@pytest.mark.parametrize("arguments", ["", "{}", '{"a": ' + "[" * 99 + "]" * 99 + "}", '{"a": "\\ud83d\\ude00"}'])
def test_arguments_that_the_log_can_carry_reach_the_tool(arguments: str) -> None:
    assert len(asked(asks("look", arguments)).calls) == 1


def test_a_bad_call_does_not_hold_up_the_good_one_beside_it() -> None:
    story = asked(asks("fly"), asks("look"))
    assert [call.name for call in story.calls] == ["look"]
    assert len(story.results) == 1
    story.tool_returns(story.calls[0])
    assert story.wants.step == 2


def test_a_failed_tool_tells_the_model_why_and_the_turn_goes_on() -> None:
    story = asked(asks())
    (message,) = story.tool_fails(story.calls[0], "no such city", code="not_found")
    assert (message.role, message.status) == ("tool", "failed")
    assert (story.results[0].is_error, story.results[0].result) == (True, "not_found: no such city")
    assert story.wants.step == 2


def test_a_result_counts_once() -> None:
    story = asked(asks(), asks())
    first, second = story.calls
    story.tool_returns(first, "one")
    assert story.tool_returns(first, "again") == []
    assert story.tool_fails(first, "after all") == []
    assert [call.call_id for call in story.calls] == [second.call_id]


def test_a_result_of_a_call_that_nobody_made_is_ignored() -> None:
    story = asked(asks())
    state = story.state
    assert story.tool_returns("some-other-call") == []
    assert story.state is state


def test_a_result_that_comes_after_the_turn_is_ignored() -> None:
    story = asked(asks())
    call = story.calls[0]
    story.cancels()
    assert story.tool_returns(call) == []
    story.prompt()
    assert story.tool_returns(call) == []


def test_progress_of_a_tool_changes_nothing() -> None:
    story = asked(asks())
    state = story.state
    assert story.happens(ToolProgress(thread_id="t-1", call_id=story.calls[0].call_id, fraction=0.5)) == []
    assert story.state is state


def test_a_result_nested_beyond_what_readers_take_becomes_an_error() -> None:
    deep: object = 1
    for _ in range(101):
        deep = [deep]
    story = asked(asks())
    story.tool_returns(story.calls[0], deep)
    assert (story.results[0].is_error, "nested" in story.results[0].result) == (True, True)
    assert story.wants.step == 2


def test_a_tool_that_does_not_answer_in_time_is_no_longer_waited_for() -> None:
    story = Story(tools=[ToolSpec(name="look", timeout_seconds=5), ToolSpec(name="delete")])
    asked(asks("look"), asks("delete"), story=story)
    slow, other = story.calls
    assert story.waits(5 + QUEUE_SECONDS - 1) == []
    assert types(story.waits(1)) == ["message.added"]
    assert story.results[0].call_id == slow.call_id
    assert (story.results[0].is_error, "timeout" in story.results[0].result) == (True, True)
    assert story.tool_returns(slow, "late") == []
    assert [call.call_id for call in story.calls] == [other.call_id]


def test_the_last_tool_to_time_out_lets_the_model_go_on() -> None:
    story = asked(asks("look"), asks("delete"))
    assert types(story.waits(60 + QUEUE_SECONDS)) == ["message.added", "message.added"]
    assert story.wants.step == 2


def test_no_call_is_awaited_beyond_the_turns_own_deadline() -> None:
    story = asked(asks(), options=TurnOptions(limits=Limits(max_seconds=20)))
    assert story.calls[0].deadline_at == story.turn.deadline_at
    written = story.waits(20)
    assert types(written) == ["message.added", "turn.closed", "turn.failed"]
    assert (written[2].error.code, written[2].steps) == ("deadline", 1)
    assert story.results[0].is_error


def test_a_takeover_goes_on_waiting_for_the_tools_that_were_called() -> None:
    story = asked(asks(), asks())
    first, second = story.calls
    story.tool_returns(first)
    assert story.crashes() == []
    assert [call.call_id for call in story.calls] == [second.call_id]
    assert len(story.written("tool.called")) == 2
    story.tool_returns(second)
    assert story.wants.step == 2


# Approval.


def test_a_call_that_needs_approval_waits_for_a_person() -> None:
    story = Story([CAREFUL])
    story.prompt()
    written = story.answers("", asks("look"), asks("delete"))
    assert types(written) == ["usage.recorded", "message.added", "tool.called", "turn.waiting"]
    assert written[2].name == "look"
    assert (written[3].reason, written[3].call_ids, written[3].step) == ("approval", [story.calls[1].call_id], 1)


def test_an_approved_call_is_made_with_all_its_time_before_it() -> None:
    story = asked(asks("delete"), story=Story([CAREFUL]))
    story.waits(200)
    (called,) = story.approves(story.calls[0])
    assert (called.type, called.call_id) == ("tool.called", story.calls[0].call_id)
    assert called.deadline_at == story.at + timedelta(seconds=60 + QUEUE_SECONDS)
    story.tool_returns(story.calls[0])
    assert story.wants.step == 2


def test_an_approval_counts_once() -> None:
    story = asked(asks("delete"), story=Story([CAREFUL]))
    call = story.calls[0]
    story.approves(call)
    assert story.approves(call) == []
    assert story.denies(call) == []
    story.tool_returns(call)
    assert story.approves(call) == []


def test_a_denied_call_is_not_made_and_the_model_is_told_by_whom_and_why() -> None:
    story = asked(asks("delete"), story=Story([CAREFUL]))
    story.denies(story.calls[0], reason="too risky", user_id="u-9")
    assert (story.results[0].result, story.results[0].is_error) == ("denied by u-9: too risky", True)
    assert not story.written("tool.called")
    assert story.wants.step == 2


def test_a_denial_does_not_end_the_wait_for_other_calls() -> None:
    story = asked(asks("delete"), asks("look"), story=Story([CAREFUL]))
    story.denies(story.calls[0])
    assert [call.name for call in story.calls] == ["look"]


def test_no_result_stands_in_for_an_approval() -> None:
    story = asked(asks("delete"), story=Story([CAREFUL]))
    assert story.tool_returns(story.calls[0], "forged") == []
    assert story.calls[0].state == "approval"


@pytest.mark.parametrize("approval", ["all", ["look", "delete"]])
def test_an_agent_may_hold_every_call_for_approval(approval: object) -> None:
    story = asked(asks("look"), asks("delete"), story=Story([another(approval=approval)]))
    assert [call.state for call in story.calls] == ["approval", "approval"]
    assert len(story.written("turn.waiting")[0].call_ids) == 2


def test_a_tool_may_demand_approval_whatever_the_agent_says() -> None:
    story = Story(tools=[ToolSpec(name="look", approval=True), ToolSpec(name="delete")])
    asked(asks("look"), asks("delete"), story=story)
    assert [call.state for call in story.calls] == ["approval", "running"]


def test_a_call_that_nobody_approves_ends_with_the_turn_and_not_before() -> None:
    story = asked(asks("delete"), story=Story([CAREFUL]))
    assert story.waits(599) == []
    assert types(story.waits(1)) == ["message.added", "turn.closed", "turn.failed"]


def test_an_approved_tool_that_is_gone_meanwhile_is_an_error_to_the_model() -> None:
    story = asked(asks("delete"), story=Story([CAREFUL]))
    story.tools = {}
    story.approves(story.calls[0])
    assert (story.results[0].is_error, "gone" in story.results[0].result) == (True, True)
    assert story.wants.step == 2


def test_a_takeover_goes_on_waiting_for_the_person() -> None:
    story = asked(asks("delete"), story=Story([CAREFUL]))
    assert story.crashes() == []
    assert types(story.approves(story.calls[0])) == ["tool.called"]


def test_an_approval_while_the_model_thinks_is_ignored() -> None:
    story = Story()
    story.prompt()
    assert story.approves("some-call") == []


def test_a_call_approved_after_the_turns_time_is_over_is_not_made() -> None:
    story = asked(asks("delete"), story=Story([CAREFUL]))
    story.at = story.turn.deadline_at
    assert types(story.approves(story.calls[0])) == ["message.added", "turn.closed", "turn.failed"]
    assert not story.written("tool.called")
