"""What a model should see of a thread: recent messages, hits of a search, their neighbours. Pure."""

from collections.abc import Iterable, Sequence
from typing import Literal

from schemas.http import ContextMessage, MessageView
from schemas.parts import ToolCallPart, ToolResultPart

Reason = Literal["recent", "hit", "neighbour", "turn"]

_RANK: dict[Reason, int] = {"turn": 0, "recent": 1, "hit": 2, "neighbour": 3}


def assemble(
    *,
    turn: Sequence[MessageView],
    recent: Sequence[MessageView],
    hits: Sequence[tuple[MessageView, float]] = (),
    neighbours: Sequence[MessageView] = (),
    exclude_tool_messages: bool,
) -> list[ContextMessage]:
    """Every message once, in thread order, for its strongest reason; other threads' messages come first.

    Messages of the present turn come whole. Of the rest, tool messages are left out where asked, and a tool's answer
    never comes without its call, nor a call without its answer.
    """
    chosen: dict[str, ContextMessage] = {}
    scores = {message.message_id: score for message, score in hits}
    for reason, messages in (
        ("turn", turn),
        ("recent", recent),
        ("hit", [message for message, _ in hits]),
        ("neighbour", neighbours),
    ):
        for message in messages:
            if reason != "turn" and exclude_tool_messages and _about_tools(message):
                continue
            known = chosen.get(message.message_id)
            if known is None or _RANK[reason] < _RANK[known.reason]:  # pyright: ignore[reportArgumentType]
                chosen[message.message_id] = ContextMessage(
                    message=message,
                    reason=reason,  # pyright: ignore[reportArgumentType]
                    score=scores.get(message.message_id),
                )
    here = (turn or recent or [message for message, _ in hits] or [None])[0]
    thread_id = here.thread_id if here is not None else None
    ordered = sorted(
        chosen.values(),
        key=lambda each: (each.message.thread_id == thread_id, each.message.thread_id, each.message.position),
    )
    return _whole_calls(ordered)


def _about_tools(message: MessageView) -> bool:
    """A tool's answer, or a message that does nothing but call tools."""
    return message.role == "tool" or (
        not message.text and any(isinstance(part, ToolCallPart) for part in message.parts)
    )


def _whole_calls(messages: Sequence[ContextMessage]) -> list[ContextMessage]:
    called = _ids(messages, ToolCallPart)
    return [
        each
        for each in messages
        if each.message.role != "tool"
        or any(part.call_id in called for part in each.message.parts if isinstance(part, ToolResultPart))
    ]


def _ids(messages: Iterable[ContextMessage], part_type: type[ToolCallPart]) -> set[str]:
    return {part.call_id for each in messages for part in each.message.parts if isinstance(part, part_type)}
