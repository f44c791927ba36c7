"""The checker of the chaos run is shown everything that it must find; a good run has nothing to find."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest

from tests.chaos.checker import Evidence, violations
from tests.chaos.history import IllegalHistory, turns_of

Event = dict[str, Any]
Change = Callable[[Evidence], None]

THREAD = {"tenant_id": "acme", "thread_id": "t-1"}
TOKENS = {"input_tokens": 10, "output_tokens": 2}


def text(words: str) -> list[Event]:
    return [{"type": "text", "text": words}]


def message(turn: str, role: str, step: int, parts: list[Event], **fields: Any) -> Event:
    shown = "-".join([turn, role, str(step), *(part.get("call_id", "") for part in parts if role == "tool")])
    return {
        **THREAD,
        "type": "message.added",
        "message_id": shown,
        "turn_id": turn,
        "role": role,
        "step": step,
        "parts": parts,
    } | fields


def call(call_id: str, key: str) -> Event:
    return {"type": "tool_call", "call_id": call_id, "name": "note", "arguments": f'{{"key": "{key}"}}'}


def result(turn: str, step: int, call_id: str, said: str, *, is_error: bool = False) -> Event:
    part = {"type": "tool_result", "call_id": call_id, "name": "note", "result": said, "is_error": is_error}
    return message(turn, "tool", step, [part])


def usage(turn: str, step: int, **fields: Any) -> Event:
    return {
        **THREAD,
        **TOKENS,
        "usage_id": f"u-{turn}-{step}",
        "turn_id": turn,
        "step": step,
        "kind": "completion",
        "outcome": "ok",
        "billable": True,
    } | fields


def ended(turn: str, prompt: str, outcome: str, steps: int, words: str = "") -> Event:
    counts = {name: count * steps for name, count in TOKENS.items()}
    return {
        **THREAD,
        "type": f"turn.{outcome}",
        "turn_id": turn,
        "prompt_id": prompt,
        "text": words,
        "steps": steps,
        "usage": counts,
    }


def prompt(prompt_id: str | None, content: str, offset: int, **fields: Any) -> Event:
    named = {"prompt_id": prompt_id} if prompt_id else {}
    return {**THREAD, **named, "agent": "assistant", "content": content, "position": (0, offset)} | fields


def good_run() -> Evidence:
    """A turn of two steps with two calls, one that failed at its second step, one cancelled before it opened, a
    rejected prompt, one without an id; a duplicate, a spoiled record, a call that ran twice."""
    answer = "You said: #1 Result: noted a; no luck"
    messages: list[Event] = [
        {**THREAD, "type": "turn.opened", "turn_id": "T1", "prompt_id": "p1"},
        message("T1", "user", 0, text("#1[[tool]]")),
        message("T1", "assistant", 1, [call("c1", "a"), call("c2", "b")], usage=TOKENS),
        {**THREAD, "type": "turn.waiting", "turn_id": "T1", "step": 1, "call_ids": ["c1"]},
        result("T1", 1, "c1", "noted a"),
        result("T1", 1, "c2", "no luck", is_error=True),
        message("T1", "assistant", 2, text(answer), usage=TOKENS),
        {**THREAD, "type": "turn.closed", "turn_id": "T1", "outcome": "completed", "steps": 2},
        {**THREAD, "type": "turn.opened", "turn_id": "T2", "prompt_id": "p2"},
        message("T2", "user", 0, text("#2")),
        message("T2", "assistant", 1, [call("c3", "c")], usage=TOKENS),
        result("T2", 1, "c3", "noted c"),
        {**THREAD, "type": "turn.closed", "turn_id": "T2", "outcome": "failed", "steps": 1},
        {**THREAD, "type": "turn.opened", "turn_id": "T5", "prompt_id": "record-5"},
        message("T5", "user", 0, text("#5")),
        message("T5", "assistant", 1, text("You said: #5"), usage=TOKENS),
        {**THREAD, "type": "turn.closed", "turn_id": "T5", "outcome": "completed", "steps": 1},
        {**THREAD, "type": "prompt.dropped", "turn_id": "T3", "prompt_id": "p3"},
    ]
    spent = [
        usage("T1", 1),
        usage("T1", 2, usage_id="lost", outcome="lost", billable=False, input_tokens=0, output_tokens=0),
        usage("T1", 2),
        usage("T2", 1),
        usage("T5", 1),
        usage("T1", 1, usage_id="tool-c1", kind="tool", tool="note", input_tokens=0, output_tokens=0),
        usage("T1", 1, usage_id="tool-c1", kind="tool", tool="note", input_tokens=0, output_tokens=0),
    ]
    return Evidence(
        prompts=[
            prompt("p1", "#1[[tool]]", 0),
            prompt("p2", "#2", 1),
            prompt("p1", "#1[[tool]]", 2),
            prompt("p3", "#3", 3),
            {**THREAD, "type": "turn.cancel", "turn_id": "T3", "position": (0, 4)},
            prompt("p4", "#4", 5, agent="nobody"),
            prompt(None, "#5", 6),
            {**THREAD, "content": "no agent", "position": (0, 7)},
        ],
        messages=messages,
        completions=[
            ended("T1", "p1", "completed", 2, answer),
            ended("T3", "p3", "cancelled", 0),
            ended("T2", "p2", "failed", 1),
            {**THREAD, "type": "turn.rejected", "turn_id": "T4", "prompt_id": "p4"},
            ended("T5", "record-5", "completed", 1, "You said: #5"),
        ],
        usage=spent,
        tool_calls=[{"call_id": each} for each in ("c1", "c2", "c3")],
        dead_letters=[{"partition": 0, "offset": offset} for offset in (5, 7)],
        remembered={("acme", "t-1"): remembered(messages)},
        metered=[
            metered("T1", "completion", None, "ok", 2),
            metered("T1", "completion", None, "lost", 1, billable=0, tokens=0),
            metered("T1", "tool", "note", "ok", 1, tokens=0),
            metered("T2", "completion", None, "ok", 1),
            metered("T5", "completion", None, "ok", 1),
        ],
        executions=[
            {"key": key, "call_id": call_id} for key, call_id in (("a", "c1"), ("a", "c1"), ("b", "c2"), ("c", "c3"))
        ],
        acknowledged=[("acme", "t-1", "p1"), ("acme", "t-1", "p2")],
        answers=[ended("T1", "p1", "completed", 2, answer)],
        allowed={
            ("acme", "t-1", "p3"): {"turn.completed", "turn.cancelled"},
            ("acme", "t-1", "p1"): {"turn.completed"},
        },
    )


def remembered(messages: list[Event]) -> list[Event]:
    added = [event for event in messages if event["type"] == "message.added"]
    return [{**event, "position": position} for position, event in enumerate(added)]


def metered(
    turn: str, kind: str, tool: str | None, outcome: str, events: int, *, billable: int | None = None, tokens: int = 1
) -> Event:
    return {
        "tenant_id": "acme",
        "group": {"thread": "t-1", "turn": turn, "kind": kind, "tool": tool, "outcome": outcome},
        "events": events,
        "billable_events": events if billable is None else billable,
        "cached_input_tokens": 0,
        "reasoning_tokens": 0,
    } | {name: count * events * tokens for name, count in TOKENS.items()}


def test_a_good_run_has_no_violations() -> None:
    assert violations(good_run()) == []


def doubled(name: str, index: int) -> Change:
    return lambda run: setattr(run, name, [*getattr(run, name), getattr(run, name)[index]])


def lost(name: str, index: int) -> Change:
    return lambda run: setattr(run, name, [each for i, each in enumerate(getattr(run, name)) if i != index])


def changed(name: str, index: int, **fields: Any) -> Change:
    def change(run: Evidence) -> None:
        getattr(run, name)[index].update(fields)

    return change


def swapped(name: str, one: int, other: int) -> Change:
    def change(run: Evidence) -> None:
        events = getattr(run, name)
        events[one], events[other] = events[other], events[one]

    return change


def inserted(name: str, index: int, event: Event) -> Change:
    return lambda run: getattr(run, name).insert(index, event)


def forgotten(run: Evidence) -> None:
    run.remembered = {thread: messages[:-1] for thread, messages in run.remembered.items()}


def remembered_in_another_order(run: Evidence) -> None:
    run.remembered = {thread: [*messages[:2], *reversed(messages[2:])] for thread, messages in run.remembered.items()}


def left_open(run: Evidence) -> None:
    run.turns = {"acme/t-1": {"type": "turn.state"}}


BAD: dict[str, tuple[Change, str]] = {
    "a prompt that was acknowledged and is gone": (lost("prompts", 1), "lost_prompts"),
    "two completions of one prompt": (doubled("completions", 0), "terminal_events"),
    "a completion that is missing": (lost("completions", 2), "terminal_events"),
    "a completion of a prompt without an id that is missing": (lost("completions", 4), "terminal_events"),
    "a completion that nobody asked for": (changed("completions", 1, prompt_id="p9"), "terminal_events"),
    "a duplicate that became a turn of its own": (
        inserted("completions", 0, ended("T9", "p1", "completed", 0)),
        "terminal_events",
    ),
    "an end that the prompt does not allow": (changed("completions", 0, type="turn.failed"), "outcomes"),
    "a result applied twice": (
        inserted("messages", 6, result("T1", 1, "c2", "no luck", is_error=True)),
        "illegal_histories",
    ),
    "a result that is missing": (lost("messages", 5), "illegal_histories"),
    "a step before the results of the last": (swapped("messages", 5, 6), "illegal_histories"),
    "a step written twice": (doubled("messages", 6), "illegal_histories"),
    "a turn within a turn": (swapped("messages", 7, 8), "illegal_histories"),
    "a turn that opens twice": (
        lambda run: run.messages.extend(deepcopy(run.messages[:8])),  # pyright: ignore
        "illegal_histories",
    ),
    "a turn that does not close": (lost("messages", 16), "illegal_histories"),
    "a turn without its question": (lost("messages", 1), "illegal_histories"),
    "a wrong number of steps": (changed("messages", 7, steps=3), "illegal_histories"),
    "a completed turn without an answer": (changed("messages", 12, outcome="completed"), "illegal_histories"),
    "turns in another order than their prompts": (swapped("prompts", 0, 1), "turn_order"),
    "the question of another prompt": (changed("messages", 9, parts=text("#9")), "turn_order"),
    "an end that says something else than the journal": (changed("completions", 0, text="no"), "endings"),
    "an end with other tokens than the steps": (changed("completions", 0, usage={"input_tokens": 1}), "endings"),
    "an end of a turn that never opened": (changed("completions", 1, type="turn.failed"), "endings"),
    "a prompt cancelled while it waited, which the journal does not say": (lost("messages", 17), "dropped_prompts"),
    "a dropped prompt without an end": (lost("completions", 1), "dropped_prompts"),
    "a dropped prompt whose turn completes": (changed("completions", 1, type="turn.completed"), "dropped_prompts"),
    "a prompt dropped twice": (doubled("messages", 17), "dropped_prompts"),
    "a prompt dropped for another": (changed("messages", 17, prompt_id="p4"), "dropped_prompts"),
    "an answer over HTTP that is not on the log": (changed("answers", 0, text="else"), "answers_seen"),
    "a model that saw another history": (
        changed("messages", 6, parts=text("You said: #1 Result: noted a; noted a; no luck")),
        "models_words",
    ),
    "a step that is billed twice": (
        inserted("usage", 0, usage("T1", 1, usage_id="another")),
        "steps_billed",
    ),
    "a usage event written twice": (doubled("usage", 1), "steps_billed"),
    "a step that is not billed": (lost("usage", 0), "steps_billed"),
    "a lost attempt that is billed": (changed("usage", 1, billable=True), "steps_billed"),
    "a bill for other tokens": (changed("usage", 0, input_tokens=11), "steps_billed"),
    "usage that ClickHouse has twice": (changed("metered", 3, events=2), "usage_projected"),
    "usage that ClickHouse has not": (lost("metered", 4), "usage_projected"),
    "other tokens in ClickHouse": (changed("metered", 0, output_tokens=5), "usage_projected"),
    "usage that only ClickHouse has": (
        inserted("metered", 0, metered("T8", "completion", None, "ok", 1)),
        "usage_projected",
    ),
    "a call handed out twice": (doubled("tool_calls", 0), "tool_messages"),
    "a call that nobody asked for": (inserted("tool_calls", 0, {"call_id": "c9"}), "tool_messages"),
    "a call that ran under two ids": (inserted("executions", 0, {"key": "a", "call_id": "c7"}), "executions"),
    "a result without an execution": (lost("executions", 3), "executions"),
    "a message that memory has not": (forgotten, "memory_projected"),
    "another order in memory": (remembered_in_another_order, "memory_projected"),
    "work that is left open": (left_open, "open_work"),
    "a dead letter too many": (doubled("dead_letters", 0), "dead_letters"),
    "a dead letter that is missing": (lost("dead_letters", 1), "dead_letters"),
}


@pytest.mark.parametrize(("change", "check"), BAD.values(), ids=BAD.keys())
def test_the_checker_finds(change: Change, check: str) -> None:
    run = replace(good_run())
    change(run)
    found = violations(run)
    assert any(each.startswith(f"{check}:") for each in found), found


def test_an_illegal_history_names_its_thread_and_shows_all_of_it() -> None:
    run = good_run()
    run.messages = [each for each in run.messages if each.get("message_id") != "T1-tool-1-c2"]
    (found,) = [each for each in violations(run) if each.startswith("illegal_histories")]
    assert "('acme', 't-1')" in found
    assert "expected the result of a call" in found
    assert len(found.splitlines()) == 1 + len(run.messages)
    assert "step 1 assistant call c1 note call c2 note" in found


def test_a_journal_that_ends_within_a_turn_says_what_was_expected() -> None:
    with pytest.raises(IllegalHistory, match=r"ends where results of \['c2'\] was expected, in turn T1"):
        turns_of(good_run().messages[:5])


def test_a_dropped_prompt_that_opens_a_turn_after_all_is_found() -> None:
    journal = good_run().messages
    with pytest.raises(IllegalHistory, match="opens twice, or after it was dropped"):
        turns_of([*journal, {**THREAD, "type": "prompt.dropped", "turn_id": "T5", "prompt_id": "record-5"}])


def test_an_unfinished_answer_is_no_step_and_has_the_status_of_its_turn() -> None:
    def journal(status: str) -> list[Event]:
        events = good_run().messages
        end = next(index for index, each in enumerate(events) if each.get("outcome") == "failed")
        return [*events[:end], message("T2", "assistant", 2, text("I was"), status=status), *events[end:]]

    [turn] = [each for each in turns_of(journal("failed")) if each.turn_id == "T2"]
    assert [each["step"] for each in turn.assistants] == [1]
    with pytest.raises(IllegalHistory, match="expected the end of an unfinished turn"):
        turns_of(journal("cancelled"))
