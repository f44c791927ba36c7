"""An answer while it is written, as its deltas tell."""

from typing import Any

from schemas.http import MessageView
from schemas.ids import EPOCH
from schemas.journal import LAST_POSITION
from services.gateway.answers import streaming, written_of
from services.gateway.fanout import LogEvent


def delta(kind: str, step: int = 1, attempt: int = 1, **said: Any) -> LogEvent:
    body = {"turn_id": "turn-1", "step": step, "attempt": attempt, **said}
    return LogEvent("deltas", 0, 0, kind, "default", "t-1", body, "")


def text(piece: str, step: int = 1, attempt: int = 1) -> LogEvent:
    return delta("text.delta", step, attempt, text=piece)


def test_the_pieces_of_each_step_are_joined() -> None:
    deltas = [text("It "), delta("reasoning.delta", text="hm"), text("is"), text("Found", 2), text(" here")]
    assert written_of(deltas) == {1: "It is here", 2: "Found"}


def test_of_several_attempts_the_last_one_counts_and_none_that_was_given_up() -> None:
    assert written_of([text("It"), delta("stream.aborted", reason="timeout")]) == {}
    again = [text("It"), delta("stream.aborted", reason="timeout"), text("That", attempt=2)]
    assert written_of(again) == {1: "That"}
    assert written_of([text("It"), text("That", attempt=2), text(" is late")]) == {1: "That"}


def test_a_pending_answer_is_streaming_once_something_has_come_of_it() -> None:
    pending = MessageView(
        message_id="m-1",
        thread_id="t-1",
        position=LAST_POSITION,
        role="assistant",
        status="pending",
        parts=[],
        text="",
        created_at=EPOCH,
    )
    assert streaming(pending, None) == streaming(pending, "") == pending
    written = streaming(pending, "It is")
    assert (written.status, written.text, written.parts[0].type) == ("streaming", "It is", "text")
