"""What a model should see of a thread: recent messages, hits of a search, their neighbours. Pure."""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from schemas.http import ContextMessage, FoundBy, MessageView
from schemas.ids import EPOCH
from schemas.parts import Part, ToolCallPart, ToolResultPart, in_words, result_text
from schemas.tokens import IMAGE_TOKENS, estimated_tokens

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
    turn's own stay, even where they are too many by themselves. A call takes its answer along, and an answer its call,
    but for a call of the turn.
    """
    left = {_identity(each.message): each for each in messages}
    holders = {id(part): _identity(each.message) for each in messages for part in each.message.parts}
    partners = _partners(messages)
    tokens = tokens_of(messages)
    for goes in sorted((each for each in messages if each.reason != "turn"), key=_worth):
        if tokens <= max_tokens:
            break
        gone = left.pop(_identity(goes.message), None)
        if gone is None:
            continue
        tokens -= tokens_of([gone])
        for part in gone.message.parts:
            partner = partners.get(id(part))
            holder = left.get(holders[id(partner)]) if partner is not None else None
            if partner is None or holder is None or _may_wait(partner, holder.reason):
                continue
            tokens -= tokens_of([holder])
            rest = _without(holder, {id(partner)})
            if rest is None:
                del left[_identity(holder.message)]
            else:
                left[_identity(holder.message)] = rest
                tokens += tokens_of([rest])
    return list(left.values())


def tokens_of(messages: Iterable[ContextMessage]) -> int:
    """An estimate of what a model is sent, which is no reasoning. A user's image counts as one, whatever its size."""
    return sum(map(_tokens, messages))


def _tokens(each: ContextMessage) -> int:
    characters, images = 0, 0
    for part in each.message.parts:
        if part.type == "text":
            characters += len(part.text)
        elif part.type == "image" and each.message.role == "user":
            images += 1
        elif part.type == "tool_call":
            characters += len(part.name) + len(part.arguments)
        elif part.type == "tool_result":
            characters += len(result_text(part.result))
        elif part.type != "reasoning":
            characters += len(in_words(part))
    return TOKENS_AROUND + estimated_tokens(characters) + images * IMAGE_TOKENS


def _worth(each: ContextMessage) -> tuple[int, float, datetime, int]:
    """The least goes first. Positions tell the order within a thread alone."""
    message = each.message
    match each.reason:
        case "neighbour":
            return 0, 0.0, message.created_at, message.position
        case "hit":
            return 1, each.score or 0.0, message.created_at, message.position
        case _:
            return 2, 0.0, EPOCH, message.position


def _identity(message: MessageView) -> tuple[str, str]:
    """The id of a message is its own within its thread alone."""
    return message.thread_id, message.message_id


def _place(message: MessageView, thread_id: str) -> tuple[bool, str, int]:
    return message.thread_id == thread_id, message.thread_id, message.position


def _whole_calls(messages: Sequence[ContextMessage]) -> list[ContextMessage]:
    """Without calls and answers that have lost each other, and without messages that nothing else is left of."""
    partners = _partners(messages)
    alone = {
        id(part)
        for each in messages
        for part in each.message.parts
        if part.type in ("tool_call", "tool_result") and id(part) not in partners and not _may_wait(part, each.reason)
    }
    if not alone:
        return list(messages)
    return [rest for each in messages if (rest := _without(each, alone)) is not None]


def _may_wait(part: Part, reason: Reason) -> bool:
    return reason == "turn" and part.type == "tool_call"


def _partners(messages: Sequence[ContextMessage]) -> Mapping[int, ToolCallPart | ToolResultPart]:
    """By the `id()` of each call that has an answer, and of each answer that has a call, the other.

    The ids of calls need not differ: an answer is that of the last call of its id before it in its thread.
    """
    waiting: dict[tuple[str, str], ToolCallPart] = {}
    partners: dict[int, ToolCallPart | ToolResultPart] = {}
    for each in messages:
        for part in each.message.parts:
            if part.type == "tool_call":
                waiting[each.message.thread_id, part.call_id] = part
            elif part.type == "tool_result":
                call = waiting.pop((each.message.thread_id, part.call_id), None)
                if call is not None:
                    partners[id(call)], partners[id(part)] = part, call
    return partners


def _without(each: ContextMessage, parts: Set[int]) -> ContextMessage | None:
    """The message but for these parts, by their `id()`. None where nothing is left, or only how it came about."""
    left = [part for part in each.message.parts if id(part) not in parts]
    if len(left) == len(each.message.parts):
        return each
    if all(part.type == "reasoning" for part in left):
        return None
    return each.model_copy(update={"message": each.message.model_copy(update={"parts": left})})
