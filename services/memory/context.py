"""What a model should see of a thread: recent messages, hits of a search, their neighbours. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic_core import to_json

from schemas.http import ContextMessage, FoundBy, MessageView
from schemas.parts import ReasoningPart, TextPart, ToolCallPart, ToolResultPart
from schemas.tokens import estimated_tokens

Reason = Literal["recent", "hit", "neighbour", "turn"]

TOKENS_AROUND = 4
"""Of each message, for its role and what marks its ends, as OpenAI counts them."""


@dataclass(frozen=True, slots=True)
class MessageHit:
    message: MessageView
    score: float
    found_by: tuple[FoundBy, ...]


def assemble(
    thread_id: str,
    *,
    turn: Sequence[MessageView],
    recent: Sequence[MessageView],
    hits: Sequence[MessageHit] = (),
    neighbours: Sequence[MessageView] = (),
) -> list[ContextMessage]:
    """Every message once, for its strongest reason: first those of other threads, then those of the thread, in order.

    A tool's answer comes only where its call comes too. A call without an answer stays: it may be on its way.
    """
    by_id = {hit.message.message_id: hit for hit in hits}
    chosen: dict[str, ContextMessage] = {}
    strongest_first: list[tuple[Reason, Iterable[MessageView]]] = [
        ("turn", turn),
        ("recent", recent),
        ("hit", [hit.message for hit in hits]),
        ("neighbour", neighbours),
    ]
    for reason, messages in strongest_first:
        for message in messages:
            found = ContextMessage(message=message, reason=reason)
            if hit := by_id.get(message.message_id):
                found = ContextMessage(message=message, reason=reason, score=hit.score, found_by=list(hit.found_by))
            chosen.setdefault(message.message_id, found)
    return _whole_calls(sorted(chosen.values(), key=lambda each: _place(each.message, thread_id)))


def within_budget(messages: Sequence[ContextMessage], max_tokens: int) -> list[ContextMessage]:
    """What of a context is left when it must not have more tokens than that, in the order that it came in.

    First go neighbours, the oldest first; then hits, the weakest first; then recent messages, the oldest first. The
    turn's own stay, even where they are too many by themselves. A call takes its answers along.
    """
    sizes = {each.message.message_id: tokens_of([each]) for each in messages}
    kept, total = list(messages), sum(sizes.values())
    for goes in sorted((each for each in messages if each.reason != "turn"), key=_worth):
        if total <= max_tokens:
            break
        kept = _whole_calls([each for each in kept if each is not goes])
        total = sum(sizes[each.message.message_id] for each in kept)
    return kept


def tokens_of(messages: Iterable[ContextMessage]) -> int:
    """An estimate, of text and of what tools are asked and answer; images and files are not counted."""
    return sum(TOKENS_AROUND + estimated_tokens(_characters(each.message)) for each in messages)


def _characters(message: MessageView) -> int:
    count = 0
    for part in message.parts:
        match part:
            case TextPart() | ReasoningPart():
                count += len(part.text)
            case ToolCallPart():
                count += len(part.name) + len(part.arguments)
            case ToolResultPart():
                count += len(to_json(part.result))
            case _:
                pass
    return count


def _worth(each: ContextMessage) -> tuple[int, float, int]:
    """The least goes first."""
    match each.reason:
        case "neighbour":
            return 0, 0.0, each.message.position
        case "hit":
            return 1, each.score or 0.0, each.message.position
        case _:
            return 2, 0.0, each.message.position


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
