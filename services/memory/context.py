"""What a model should see of a thread: recent messages, hits of a search, their neighbours. Pure."""

from collections.abc import Iterable, Sequence
from typing import Literal

from schemas.http import ContextMessage, MessageView
from schemas.parts import ToolCallPart, ToolResultPart

Reason = Literal["recent", "hit", "neighbour", "turn"]


def assemble(
    thread_id: str,
    *,
    turn: Sequence[MessageView],
    recent: Sequence[MessageView],
    hits: Sequence[tuple[MessageView, float]] = (),
    neighbours: Sequence[MessageView] = (),
) -> list[ContextMessage]:
    """Every message once, for its strongest reason: first those of other threads, then those of the thread, in order.

    A tool's answer comes only where its call comes too. A call without an answer stays: it may be on its way.
    """
    scores = {message.message_id: score for message, score in hits}
    chosen: dict[str, ContextMessage] = {}
    strongest_first: list[tuple[Reason, Iterable[MessageView]]] = [
        ("turn", turn),
        ("recent", recent),
        ("hit", [message for message, _ in hits]),
        ("neighbour", neighbours),
    ]
    for reason, messages in strongest_first:
        for message in messages:
            found = ContextMessage(message=message, reason=reason, score=scores.get(message.message_id))
            chosen.setdefault(message.message_id, found)
    return _whole_calls(sorted(chosen.values(), key=lambda each: _place(each.message, thread_id)))


def _place(message: MessageView, thread_id: str) -> tuple[bool, str, int]:
    return message.thread_id == thread_id, message.thread_id, message.position


def _whole_calls(messages: Sequence[ContextMessage]) -> list[ContextMessage]:
    called = {part.call_id for each in messages for part in each.message.parts if isinstance(part, ToolCallPart)}
    return [
        each
        for each in messages
        if each.message.role != "tool"
        or any(part.call_id in called for part in each.message.parts if isinstance(part, ToolResultPart))
    ]
