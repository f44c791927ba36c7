"""Answers while they are written: put together from the deltas of a turn. Pure."""

from collections.abc import Iterable

from schemas.deltas import StreamAborted, TextDelta
from schemas.http import MessageView
from schemas.parts import TextPart
from services.gateway.fanout import LogEvent


def written_of(deltas: Iterable[LogEvent]) -> dict[int, str]:
    """By step, the text of its last attempt, from deltas in order; nothing of an attempt that was given up."""
    texts: dict[int, tuple[int, str]] = {}
    for delta in deltas:
        step, attempt = int(delta.body["step"]), int(delta.body["attempt"])
        latest, text = texts.get(step, (0, ""))
        if attempt < latest:
            continue
        if delta.type == StreamAborted.model_fields["type"].default:
            texts[step] = attempt, ""
        elif delta.type == TextDelta.model_fields["type"].default:
            texts[step] = attempt, (text if attempt == latest else "") + str(delta.body["text"])
    return {step: text for step, (_, text) in texts.items() if text}


def streaming(answer: MessageView, text: str | None) -> MessageView:
    """A pending answer with what has come of it, if anything has."""
    if not text:
        return answer
    return answer.model_copy(update={"status": "streaming", "parts": [TextPart(text=text)], "text": text})
