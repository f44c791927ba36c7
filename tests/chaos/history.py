"""The grammar of a thread's journal. Pure, and nothing of the platform's own code.

history  = turn*, with prompt.dropped anywhere between: its turn never opens
turn     = turn.opened  user message (step 0)  step*  unfinished?  turn.closed
unfinished = assistant message that is failed or cancelled: what there was of an answer that a turn ends without
step n   = assistant message that calls tools (step n)  turn.waiting?  a tool message for each call
         | assistant message without calls (step n), which ends a completed turn
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

Event = dict[str, Any]


class IllegalHistory(Exception):
    """A journal that is none. Says where it went wrong; `describe` shows all of it."""


@dataclass
class Turn:
    """A turn as the journal tells it."""

    turn_id: str
    prompt_id: str
    outcome: str
    question: str
    """Text of the user's message."""
    assistants: list[Event] = field(default_factory=list)
    """The committed steps, in order."""
    results: list[Event] = field(default_factory=list)
    """Tool messages, in order."""

    @property
    def answer(self) -> str:
        """What the last step said."""
        return text_of(self.assistants[-1]) if self.assistants else ""


def turns_of(journal: Sequence[Event]) -> list[Turn]:
    """Parses the journal of one thread. Raises IllegalHistory."""
    dropped = [event["turn_id"] for event in journal if event["type"] == "prompt.dropped"]
    rest = iter([event for event in journal if event["type"] != "prompt.dropped"])
    turns = [_turn(event, rest) for event in rest]
    ids = [*dropped, *(turn.turn_id for turn in turns)]
    _demand(len(set(ids)) == len(ids), "a turn opens twice, or after it was dropped", journal[-1] if journal else {})
    return turns


def describe(journal: Sequence[Event]) -> str:
    """The journal, an event a line, for people."""
    return "\n".join(_line(event) for event in journal)


def text_of(message: Event) -> str:
    return "\n".join(part["text"] for part in message["parts"] if part["type"] == "text")


def is_step(event: Event) -> bool:
    """Whether it is the message of a committed step."""
    return _is(event, "assistant") and event.get("status", "success") == "success"


def calls_of(message: Event) -> list[Event]:
    """The tool calls that an assistant message asks for."""
    return [part for part in message["parts"] if part["type"] == "tool_call"]


def result_of(message: Event) -> Event:
    """The one result that a tool message carries."""
    return message["parts"][0]


def _turn(opened: Event, rest: Iterator[Event]) -> Turn:
    _demand(opened["type"] == "turn.opened", "expected turn.opened", opened)
    turn_id = opened["turn_id"]
    asked = _next(rest, turn_id, "the user's message")
    _demand(_is(asked, "user") and asked["step"] == 0, "expected the user's message at step 0", asked)
    turn = Turn(turn_id, opened["prompt_id"], "", text_of(asked))
    while True:
        event = _next(rest, turn_id, "a step or turn.closed")
        if event["type"] == "turn.closed":
            _close(turn, event)
            return turn
        _demand(_is(event, "assistant"), "expected an assistant message or turn.closed", event)
        if not is_step(event):
            closed = _next(rest, turn_id, "turn.closed")
            _demand(closed.get("outcome") == event["status"], "expected the end of an unfinished turn", closed)
            _close(turn, closed)
            return turn
        _demand(not turn.assistants or bool(calls_of(turn.assistants[-1])), "a step after the answer", event)
        turn.assistants.append(event)
        _demand(event["step"] == len(turn.assistants), f"expected step {len(turn.assistants)}", event)
        _results(turn, event, rest)


def _results(turn: Turn, asking: Event, rest: Iterator[Event]) -> None:
    """Takes the tool messages of a step: each call is answered once, before anything else."""
    open_calls = {call["call_id"] for call in calls_of(asking)}
    _demand(len(open_calls) == len(calls_of(asking)), "two calls with one id", asking)
    while open_calls:
        event = _next(rest, turn.turn_id, f"results of {sorted(open_calls)}")
        if event["type"] == "turn.waiting":
            _demand(set(event["call_ids"]) <= open_calls, "waits for a call that is not open", event)
            continue
        _demand(_is(event, "tool") and event["step"] == asking["step"], "expected the result of a call", event)
        call_id = result_of(event)["call_id"]
        _demand(call_id in open_calls, "a result that no open call waits for", event)
        open_calls.discard(call_id)
        turn.results.append(event)


def _close(turn: Turn, closed: Event) -> None:
    turn.outcome = closed["outcome"]
    answered = bool(turn.assistants) and not calls_of(turn.assistants[-1])
    _demand(closed["steps"] == len(turn.assistants), f"expected {len(turn.assistants)} steps", closed)
    _demand(turn.outcome in ("completed", "failed", "cancelled"), "an unknown outcome", closed)
    _demand(answered == (turn.outcome == "completed"), "the outcome does not fit the last step", closed)


def _next(rest: Iterator[Event], turn_id: str, expected: str) -> Event:
    event = next(rest, None)
    if event is None:
        raise IllegalHistory(f"ends where {expected} was expected, in turn {turn_id}")
    _demand(event.get("turn_id") == turn_id, f"expected {expected} of turn {turn_id}", event)
    return event


def _is(event: Event, role: str) -> bool:
    return event["type"] == "message.added" and event["role"] == role


def _demand(holds: bool, what: str, event: Event) -> None:
    if not holds:
        raise IllegalHistory(f"{what}, at: {_line(event)}")


def _line(event: Event) -> str:
    position = "[{}]@{}".format(*event["position"]) if "position" in event else ""
    words = [position, event.get("type", "?"), str(event.get("turn_id", ""))]
    if event.get("type") == "message.added":
        words.append(f"step {event['step']} {event['role']}")
        words += [f"call {part['call_id']} {part['name']}" for part in calls_of(event)]
        words += [f"result of {part['call_id']}" for part in event["parts"] if part["type"] == "tool_result"]
        words.append(repr(text_of(event))[:80])
    else:
        words += [f"{name}={event[name]}" for name in ("prompt_id", "outcome", "steps", "call_ids") if name in event]
    return " ".join(word for word in words if word)
