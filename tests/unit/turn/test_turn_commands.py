"""Cancelling, people who answer, and changes of a thread that are no turns."""

from datetime import UTC, datetime

import pytest

from schemas.agents import AgentSpec, RetryPolicy
from schemas.journal import ForkedFrom
from schemas.prompts import (
    MessagesAppend,
    MessagesDelete,
    NewMessage,
    ThreadCreate,
    ThreadDelete,
    ThreadUpdate,
)
from tests.unit.turn.story import ASSISTANT, Story, another, asks, types

PERSON = AgentSpec(name="person", kind="human")


# Cancel.


def test_cancelling_while_the_model_thinks_gives_the_call_up_and_records_it_as_lost() -> None:
    story = Story()
    story.prompt()
    answer = story.answered("too late")
    written = story.cancels(story.turn.turn_id, reason="changed my mind")
    assert types(written) == ["usage.recorded", "turn.closed", "turn.cancelled"]
    usage, closed, cancelled = written
    assert (usage.outcome, usage.billable, usage.estimated) == ("lost", False, True)
    assert (closed.outcome, closed.steps, cancelled.steps, cancelled.reason) == ("cancelled", 0, 0, "changed my mind")
    assert story.state is None
    assert story.happens(answer) == []


def test_what_the_model_had_written_of_a_cancelled_answer_is_kept_as_cancelled() -> None:
    story = Story()
    story.prompt()
    story.model_writes("The answer is \ud800")
    written = story.cancels()
    assert types(written) == ["usage.recorded", "message.added", "turn.closed", "turn.cancelled"]
    message, closed = written[1:3]
    assert (message.role, message.status, message.step) == ("assistant", "cancelled", 1)
    assert message.parts[0].text == "The answer is \ufffd"
    assert closed.steps == 0


def test_what_the_model_had_written_when_its_last_call_failed_or_time_was_over_is_kept_as_failed() -> None:
    for end in ("fails", "is late"):
        story = Story(agents=(another(retries=RetryPolicy(max_attempts=1)),))
        story.prompt()
        story.model_writes("The answer")
        written = story.model_fails() if end == "fails" else story.waits(601)
        assert types(written) == ["usage.recorded", "message.added", "turn.closed", "turn.failed"]
        assert (written[1].status, written[1].parts[0].text) == ("failed", "The answer")


def test_what_a_failed_attempt_had_written_is_not_kept_where_another_one_follows() -> None:
    story = Story()
    story.prompt()
    story.model_writes("The answer")
    assert types(story.model_fails()) == ["usage.recorded"]


def test_cancelling_while_a_retry_waits_has_no_attempt_to_lose() -> None:
    story = Story()
    story.prompt()
    story.model_fails(retry_after=9)
    assert types(story.cancels()) == ["turn.closed", "turn.cancelled"]


def test_cancelling_while_tools_run_answers_their_calls() -> None:
    story = Story()
    story.prompt()
    story.answers("", asks("look"), asks("delete"))
    story.tool_returns(story.calls[0], "in time")
    written = story.cancels(reason="enough")
    assert types(written) == ["message.added", "turn.closed", "turn.cancelled"]
    assert [(part.result, part.is_error) for part in story.results] == [("in time", False), ("enough", True)]
    assert (written[2].steps, written[2].usage.input_tokens) == (1, 10)


def test_cancelling_while_a_call_waits_for_approval_answers_it_too() -> None:
    story = Story([another(approval="all")])
    story.prompt()
    story.answers("", asks("delete"))
    assert types(story.cancels()) == ["message.added", "turn.closed", "turn.cancelled"]
    assert story.results[0].result == "cancelled"
    assert not story.written("tool.called")


def test_cancelling_while_a_person_has_the_word_ends_the_turn() -> None:
    story = Story([PERSON])
    story.prompt(agent="person")
    turn_id = story.turn.turn_id
    assert types(story.cancels(turn_id)) == ["turn.closed", "turn.cancelled"]
    assert story.human_replies("hello?", turn_id) == []


def test_cancelling_a_queued_prompt_leaves_the_open_turn_alone() -> None:
    story = Story()
    story.prompt(prompt_id="a")
    story.prompt(prompt_id="b")
    story.prompt(prompt_id="c")
    assert story.state is not None
    dropped, cancelled = story.cancels(story.state.queue[0].turn_id)
    assert (dropped.type, dropped.prompt_id, dropped.turn_id) == ("prompt.dropped", "b", cancelled.turn_id)
    assert (cancelled.type, cancelled.prompt_id, cancelled.steps) == ("turn.cancelled", "b", 0)
    assert (story.turn.prompt_id, story.queue) == ("a", ["c"])
    assert not [each for each in story.written("turn.opened", "turn.closed") if each.turn_id == cancelled.turn_id]


def test_cancelling_the_open_turn_opens_the_next_one() -> None:
    story = Story()
    story.prompt(prompt_id="a")
    story.prompt(prompt_id="b")
    written = story.cancels(story.turn.turn_id)
    assert types(written)[-3:] == ["turn.cancelled", "turn.opened", "message.added"]
    assert story.turn.prompt_id == "b"


def test_cancelling_without_a_turn_ends_all_of_the_thread() -> None:
    story = Story()
    for name in "abc":
        story.prompt(prompt_id=name)
    story.cancels()
    assert sorted(each.prompt_id for each in story.ends) == ["a", "b", "c"]
    assert {each.type for each in story.ends} == {"turn.cancelled"}
    assert story.state is None


def test_cancelling_twice_is_cancelling_once() -> None:
    story = Story()
    story.prompt()
    turn_id = story.turn.turn_id
    story.cancels(turn_id)
    assert story.cancels(turn_id) == []


def test_cancelling_a_turn_of_long_ago_does_not_touch_the_present_one() -> None:
    story = Story()
    story.prompt()
    old = story.turn.turn_id
    story.answers("done")
    story.prompt()
    state = story.state
    assert story.cancels(old) == []
    assert story.state is state


# People.


def test_a_turn_of_a_human_agent_waits_for_a_person_and_wants_no_model() -> None:
    story = Story([PERSON])
    written = story.prompt(agent="person")
    assert types(written) == ["turn.opened", "message.added", "turn.waiting"]
    assert (written[2].reason, written[2].call_ids) == ("human", [])
    assert story.crashes() == []


def test_the_reply_of_a_person_completes_the_turn_and_costs_nothing() -> None:
    story = Story([PERSON])
    story.prompt(agent="person")
    written = story.human_replies("On my way.")
    assert types(written) == ["message.added", "turn.closed", "turn.completed"]
    message, _, completed = written
    assert (message.role, message.user_id, message.model) == ("assistant", "u-2", None)
    assert (completed.text, completed.usage.input_tokens) == ("On my way.", 0)
    assert not story.usage


def test_a_reply_to_another_turn_is_ignored() -> None:
    story = Story([PERSON])
    story.prompt(agent="person")
    old = story.turn.turn_id
    story.human_replies()
    assert story.human_replies("again", old) == []
    story.prompt(agent="person")
    assert story.human_replies("again", old) == []


def test_a_person_cannot_answer_for_a_model() -> None:
    story = Story()
    story.prompt()
    assert story.human_replies("me instead") == []


def test_a_person_who_does_not_answer_lets_the_turn_fail_at_its_deadline() -> None:
    story = Story([PERSON])
    story.prompt(agent="person")
    assert types(story.waits(600)) == ["turn.closed", "turn.failed"]
    assert not story.usage


def test_a_person_may_have_the_word_after_a_model() -> None:
    story = Story([ASSISTANT, PERSON])
    story.prompt(prompt_id="a")
    story.prompt(prompt_id="b", agent="person")
    assert types(story.answers("done"))[-3:] == ["turn.opened", "message.added", "turn.waiting"]
    story.human_replies()
    assert [each.prompt_id for each in story.ends] == ["a", "b"]


# Changes of the thread.


def test_a_thread_is_created_changed_and_deleted_in_the_journal() -> None:
    story = Story()
    (created,) = story.command(ThreadCreate(thread_id="t-1", user_id="u-1", title="Plans", metadata={"a": 1}))
    assert (created.type, created.title, created.metadata, created.created_at) == (
        "thread.created",
        "Plans",
        {"a": 1},
        story.at,
    )
    (updated,) = story.command(ThreadUpdate(thread_id="t-1", status="archived"))
    assert (updated.type, updated.status, updated.title) == ("thread.updated", "archived", None)
    (updated,) = story.command(ThreadUpdate(thread_id="t-1", cleared=["title", "metadata"]))
    assert (updated.cleared, updated.title) == (["title", "metadata"], None)
    (deleted,) = story.command(ThreadDelete(thread_id="t-1"))
    assert deleted.type == "thread.deleted"
    assert story.state is None


def test_deleting_a_thread_ends_its_turns_first() -> None:
    story = Story()
    story.prompt(prompt_id="a")
    story.answers("", asks())
    story.prompt(prompt_id="b")
    written = story.command(ThreadDelete(thread_id="t-1"))
    assert types(written)[-1] == "thread.deleted"
    assert sorted(each.prompt_id for each in story.ends) == ["a", "b"]
    assert {each.reason for each in story.ends} == {"the thread was deleted"}
    assert story.state is None
    assert not story.records


def test_a_prompt_after_the_thread_was_deleted_opens_it_anew() -> None:
    story = Story()
    story.command(ThreadDelete(thread_id="t-1"))
    assert types(story.prompt()) == ["turn.opened", "message.added"]


def test_messages_are_appended_in_order_with_ids_of_their_own() -> None:
    story = Story()
    written = story.command(
        MessagesAppend(
            thread_id="t-1",
            messages=[
                NewMessage(role="user", content="imported", user_id="u-1"),
                NewMessage(role="assistant", content="so was I", message_id="mine"),
            ],
        )
    )
    assert [(each.role, each.parts[0].text, each.turn_id) for each in written] == [
        ("user", "imported", None),
        ("assistant", "so was I", None),
    ]
    assert written[1].message_id == "mine"
    assert len({each.message_id for each in written}) == 2


def test_the_same_record_appends_the_same_messages_when_it_is_decided_again() -> None:
    command = MessagesAppend(thread_id="t-1", messages=[NewMessage(role="user", content="hello")] * 2)
    ids = []
    for seconds in (0, 99):
        story = Story()
        story.waits(seconds)
        ids.append([each.message_id for each in story.command(command)])
    assert ids[0] == ids[1]


def test_an_appended_message_keeps_what_was_said_of_it() -> None:
    said = {"status": "failed", "agent": "helper", "provider": "p", "model": "m", "finish_reason": "length"}
    message = NewMessage.model_validate({"role": "assistant", "content": "He", "usage": {"input_tokens": 3}, **said})
    (added,) = Story().command(MessagesAppend(thread_id="t-1", messages=[message]))
    assert {name: getattr(added, name) for name in said} == said
    assert (added.usage.input_tokens, added.turn_id, added.step) == (3, None, 0)


def test_an_appended_message_keeps_the_time_that_was_said_and_says_when_it_was_written() -> None:
    story, then = Story(), datetime(2020, 1, 1, tzinfo=UTC)
    messages = [NewMessage(role="user", content="old", created_at=then), NewMessage(role="user", content="new")]
    old, new = story.command(MessagesAppend(thread_id="t-1", messages=messages))
    assert (old.created_at, old.appended_at) == (then, story.at)
    assert (new.created_at, new.appended_at) == (story.at, None)


def test_a_thread_is_created_with_where_it_is_from() -> None:
    source = ForkedFrom(thread_id="t-0", message_id="m-7")
    (created,) = Story().command(ThreadCreate(thread_id="t-1", forked_from=source))
    assert created.forked_from == source


def test_messages_are_deleted_by_id() -> None:
    (deleted,) = Story().command(MessagesDelete(thread_id="t-1", from_position=3))
    assert (deleted.message_ids, deleted.from_position, deleted.to_position) == ([], 3, None)
    (deleted,) = Story().command(MessagesDelete(thread_id="t-1", message_ids=["a", "b"]))
    assert (deleted.type, deleted.message_ids) == ("message.deleted", ["a", "b"])


@pytest.mark.parametrize(
    "command",
    [
        ThreadCreate(thread_id="t-1"),
        ThreadUpdate(thread_id="t-1", title="new"),
        MessagesAppend(thread_id="t-1", messages=[NewMessage(role="user", content="by the way")]),
        MessagesDelete(thread_id="t-1", message_ids=["a"]),
    ],
    ids=lambda command: command.type,
)
def test_a_change_of_the_thread_leaves_its_open_turn_alone(command: object) -> None:
    story = Story()
    story.prompt()
    state = story.state
    assert len(story.command(command)) == 1
    assert story.state is state
