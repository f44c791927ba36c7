"""How a prompt becomes a turn, waits for one, or is turned away."""

import pytest

from schemas.agents import Limits
from schemas.prompts import TurnOptions
from schemas.turns import Thinking
from tests.unit.turn.story import ASSISTANT, Story, another, texts, types


def test_a_prompt_opens_a_turn_and_wants_a_model_call() -> None:
    story = Story()
    written = story.prompt("hello", prompt_id="order-17", metadata={"from": "mail"})
    assert types(written) == ["turn.opened", "message.added"]
    opened, message = written
    assert (opened.prompt_id, opened.user_id, opened.agent) == ("order-17", "u-1", "assistant")
    assert opened.agent_version == ASSISTANT.version
    assert (message.role, message.step, message.metadata) == ("user", 0, {"from": "mail"})
    assert texts([message]) == ["hello"]
    assert (story.wants.turn_id, story.wants.step, story.wants.attempt) == (opened.turn_id, 1, 1)


def test_a_plain_answer_closes_the_turn_with_its_completion_and_usage() -> None:
    story = Story()
    story.prompt("hello", prompt_id="order-17")
    turn = story.turn
    written = story.answers("Hi!")
    assert types(written) == ["usage.recorded", "message.added", "turn.closed", "turn.completed"]
    usage, message, closed, completed = written
    assert (usage.outcome, usage.billable, usage.input_tokens, usage.output_tokens) == ("ok", True, 10, 3)
    assert not usage.estimated
    assert (usage.turn_id, usage.prompt_id, usage.user_id) == (turn.turn_id, "order-17", "u-1")
    assert (usage.provider, usage.model, usage.step, usage.attempt) == ("acme", "m-1", 1, 1)
    assert (message.role, message.step, message.model, message.finish_reason) == ("assistant", 1, "m-1", "stop")
    assert (closed.outcome, closed.steps) == ("completed", 1)
    assert (completed.text, completed.prompt_id, completed.steps) == ("Hi!", "order-17", 1)
    assert (completed.usage.input_tokens, completed.usage.output_tokens) == (10, 3)
    assert completed.opened_at == turn.opened_at


def test_a_thread_whose_turn_is_over_leaves_nothing_behind() -> None:
    story = Story()
    story.prompt()
    story.prompt()
    assert story.records
    story.answers("one")
    story.answers("two")
    assert story.state is None
    assert not story.records


def test_a_second_prompt_waits_until_the_first_is_answered() -> None:
    story = Story()
    story.prompt("one", prompt_id="a")
    assert story.prompt("two", prompt_id="b") == []
    assert story.queue == ["b"]
    written = story.answers("1")
    assert types(written)[-4:] == ["turn.closed", "turn.completed", "turn.opened", "message.added"]
    assert texts(written[-1:]) == ["two"]
    assert (story.turn.prompt_id, story.queue) == ("b", [])


def test_prompts_are_answered_in_the_order_of_the_log_even_after_a_crash() -> None:
    story = Story()
    for name in "abcdefghijkl":
        story.prompt(name, prompt_id=name)
    answered = []
    while story.state is not None:
        story.crashes()
        answered.append(story.turn.prompt_id)
        story.answers("yes")
    assert answered == list("abcdefghijkl")


def test_a_queued_prompt_costs_no_state_record_of_the_open_turn() -> None:
    story = Story()
    story.prompt(prompt_id="a")
    open_turn = story.records[story.key]
    story.prompt(prompt_id="b")
    assert story.records[story.key] is open_turn
    assert len(story.records) == 2


def test_the_same_prompt_id_twice_is_one_turn_whether_open_or_queued() -> None:
    story = Story()
    first = story.prompted(prompt_id="a")
    second = story.prompted(prompt_id="b")
    story.happens(first)
    story.happens(second)
    assert story.happens(first) == []
    assert story.happens(second) == []
    assert (story.turn.prompt_id, story.queue) == ("a", ["b"])


@pytest.mark.parametrize("on_busy", ["reject", "interrupt"])
def test_the_same_prompt_id_twice_neither_rejects_nor_interrupts_itself(on_busy: str) -> None:
    story = Story([another(on_busy=on_busy)])
    prompt = story.prompted(prompt_id="a")
    story.happens(prompt)
    assert story.happens(prompt) == []
    assert story.turn.prompt_id == "a"


def test_the_same_prompt_id_on_another_thread_or_tenant_is_another_turn() -> None:
    turns = set()
    for thread_id, tenant_id in (("t-1", "default"), ("t-2", "default"), ("t-1", "acme")):
        story = Story(thread_id=thread_id, tenant_id=tenant_id)
        story.prompt(prompt_id="a")
        turns.add(story.turn.turn_id)
    assert len(turns) == 3


def test_an_unknown_agent_rejects_the_prompt_and_says_what_to_do() -> None:
    story = Story()
    (rejected,) = story.prompt(agent="nobody", prompt_id="a")
    assert (rejected.type, rejected.prompt_id) == ("turn.rejected", "a")
    assert (rejected.error.code, rejected.error.retryable) == ("unknown_agent", False)
    assert "turnlog agents apply" in rejected.error.message
    assert story.state is None


def test_a_prompt_whose_agent_has_gone_while_it_waited_is_rejected_and_the_next_one_opens() -> None:
    story = Story([ASSISTANT, another(name="other")])
    story.prompt(prompt_id="a")
    story.prompt(prompt_id="b", agent="other")
    story.prompt(prompt_id="c")
    story.agents = {"assistant": ASSISTANT}
    story.answers("done")
    assert [(each.type, each.prompt_id) for each in story.ends] == [("turn.completed", "a"), ("turn.rejected", "b")]
    assert [each.prompt_id for each in story.written("prompt.dropped")] == ["b"]
    assert story.turn.prompt_id == "c"


def test_an_agent_whose_tools_nobody_announced_rejects_the_prompt_for_now() -> None:
    story = Story(tools=[])
    (rejected,) = story.prompt()
    assert (rejected.error.code, rejected.error.retryable) == ("unknown_tool", True)
    assert "look, delete" in rejected.error.message


def test_a_prompt_that_wants_no_tools_needs_none_of_its_agents() -> None:
    story = Story(tools=[])
    assert types(story.prompt(options=TurnOptions(tools=[]))) == ["turn.opened", "message.added"]


def test_a_prompt_may_want_other_tools_than_its_agent() -> None:
    story = Story()
    (rejected,) = story.prompt(options=TurnOptions(tools=["fly"]))
    assert "fly" in rejected.error.message


def test_a_busy_agent_that_rejects_says_busy_and_goes_on_with_its_turn() -> None:
    story = Story([another(on_busy="reject")])
    story.prompt(prompt_id="a")
    state = story.state
    (rejected,) = story.prompt(prompt_id="b")
    assert (rejected.prompt_id, rejected.error.code, rejected.error.retryable) == ("b", "busy", True)
    assert story.state is state


def test_a_prompt_that_interrupts_cancels_the_open_turn_and_goes_before_the_queue() -> None:
    story = Story([ASSISTANT, another(name="hasty", on_busy="interrupt")])
    story.prompt(prompt_id="a")
    story.prompt(prompt_id="b")
    written = story.prompt(prompt_id="c", agent="hasty")
    assert types(written) == ["usage.recorded", "turn.closed", "turn.cancelled", "turn.opened", "message.added"]
    assert (written[0].outcome, written[2].prompt_id, written[3].prompt_id) == ("lost", "a", "c")
    assert (story.turn.prompt_id, story.queue) == ("c", ["b"])


def test_the_answer_to_an_interrupted_turn_comes_too_late() -> None:
    story = Story([another(on_busy="interrupt")])
    story.prompt(prompt_id="a")
    answer = story.answered("late")
    story.prompt(prompt_id="b")
    assert story.happens(answer) == []


def test_limits_of_the_prompt_go_before_those_of_the_agent() -> None:
    story = Story()
    story.prompt(options=TurnOptions(limits=Limits(max_seconds=7, max_steps=3)))
    assert (story.turn.deadline_at - story.turn.opened_at).total_seconds() == 7


def test_a_turn_keeps_the_version_of_its_agent_while_a_new_one_is_applied() -> None:
    story = Story()
    story.prompt()
    version = story.turn.agent_version
    story.apply(another(instructions="Be brief."))
    story.answers("done")
    assert story.ends[0].agent_version == version


def test_a_turn_that_was_taken_over_asks_again_and_the_lost_attempt_is_not_billed() -> None:
    story = Story()
    story.prompt()
    lost_answer = story.answered("of the dead worker")
    (usage,) = story.crashes()
    assert (usage.outcome, usage.billable, usage.attempt, usage.estimated) == ("lost", False, 1, True)
    assert story.wants.attempt == 2
    assert story.happens(lost_answer) == []
    story.answers("at last")
    assert [(each.outcome, each.attempt) for each in story.usage] == [("lost", 1), ("ok", 2)]
    assert story.ends[0].usage.input_tokens == 10


def test_every_takeover_is_an_attempt_of_its_own() -> None:
    story = Story()
    story.prompt()
    for _ in range(3):
        story.crashes()
    assert [each.attempt for each in story.usage] == [1, 2, 3]
    assert len({each.usage_id for each in story.usage}) == 3
    assert isinstance(story.turn.phase, Thinking)
    assert story.turn.phase.tries == 1
