"""What a model should see of a thread: recent messages, hits of a search, their neighbours. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic_core import to_json

from schemas.http import ContextMessage, FoundBy, MessageView
from schemas.parts import Part, ReasoningPart, TextPart, ToolCallPart, ToolResultPart
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

    A tool's call comes only with its answer and an answer only with its call, but for the turn's own: there the answer
    may be on its way.
    """
    found = {_identity(hit.message): hit for hit in hits}
    chosen: dict[tuple[str, str], ContextMessage] = {}
    strongest_first: list[tuple[Reason, Iterable[MessageView]]] = [
        ("turn", turn),
        ("recent", recent),
        ("hit", [hit.message for hit in hits]),
        ("neighbour", neighbours),
    ]
    for reason, messages in strongest_first:
        for message in messages:
            identity = _identity(message)
            if identity in chosen:
                continue
            hit = found.get(identity)
            score, found_by = (hit.score, list(hit.found_by)) if hit else (None, [])
            chosen[identity] = ContextMessage(message=message, reason=reason, score=score, found_by=found_by)
    return _whole_calls(sorted(chosen.values(), key=lambda each: _place(each.message, thread_id)))


def within_budget(messages: Sequence[ContextMessage], max_tokens: int) -> list[ContextMessage]:
    """What of a context is left when it must not have more tokens than that, in the order that it came in.

    First go neighbours, the oldest first; then hits, the weakest first; then recent messages, the oldest first. The
    turn's own stay, even where they are too many by themselves. A call takes its answers along.
    """
    sizes: dict[tuple[str, str, int], int] = {}

    def size(each: ContextMessage) -> int:
        key = *_identity(each.message), len(each.message.parts)
        return sizes.get(key) or sizes.setdefault(key, tokens_of([each]))

    kept = list(messages)
    for goes in sorted((each for each in messages if each.reason != "turn"), key=_worth):
        if sum(map(size, kept)) <= max_tokens:
            break
        kept = _whole_calls([each for each in kept if _identity(each.message) != _identity(goes.message)])
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


def _identity(message: MessageView) -> tuple[str, str]:
    """The id of a message is its own within its thread alone."""
    return message.thread_id, message.message_id


def _place(message: MessageView, thread_id: str) -> tuple[bool, str, int]:
    return message.thread_id == thread_id, message.thread_id, message.position


def _whole_calls(messages: Sequence[ContextMessage]) -> list[ContextMessage]:
    """Without calls and answers that have lost each other, and without messages that nothing else is left of.

    The ids of calls need not differ: an answer is that of the last call of its id before it in its thread.
    """
    waiting: dict[tuple[str, str], ToolCallPart] = {}
    paired: set[int] = set()
    has_any = False
    for each in messages:
        for part in each.message.parts:
            if isinstance(part, ToolCallPart):
                has_any = True
                waiting[each.message.thread_id, part.call_id] = part
            elif isinstance(part, ToolResultPart):
                has_any = True
                call = waiting.pop((each.message.thread_id, part.call_id), None)
                paired |= {id(call), id(part)} if call is not None else set()
    if not has_any:
        return list(messages)

    def is_whole(part: Part, reason: Reason) -> bool:
        match part:
            case ToolCallPart():
                return reason == "turn" or id(part) in paired
            case ToolResultPart():
                return id(part) in paired
            case _:
                return True

    whole: list[ContextMessage] = []
    for each in messages:
        left = [part for part in each.message.parts if is_whole(part, each.reason)]
        if len(left) == len(each.message.parts):
            whole.append(each)
        elif not all(isinstance(part, ReasoningPart) for part in left):
            message = each.message.model_copy(update={"parts": left})
            whole.append(each.model_copy(update={"message": message}))
    return whole
