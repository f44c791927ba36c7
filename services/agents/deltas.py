"""The answer while it is written: pieces grouped by time and cut at words, lines or sentences, sent to `deltas`."""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from schemas.agents import StreamOptions
from schemas.deltas import ReasoningDelta, StreamAborted, TextDelta, ToolArgsDelta
from schemas.turns import ActiveTurn, Thinking
from services.agents.turn.state import WantedCall

DeltaEvent = TextDelta | ReasoningDelta | ToolArgsDelta | StreamAborted

_BOUNDARIES = {
    "word": re.compile(r"\s+(?=\S*$)"),
    "line": re.compile(r"\n(?=[^\n]*$)"),
    "sentence": re.compile(r"(?<=[.!?])\s+(?=[^.!?]*$)|\n(?=[^\n]*$)"),
}


def split_at_boundary(text: str, chunking: str) -> tuple[str, str]:
    """What may be sent now, and what waits for the rest of its word, line or sentence."""
    boundary = _BOUNDARIES[chunking].search(text)
    return (text[: boundary.end()], text[boundary.end() :]) if boundary else ("", text)


@dataclass(slots=True)
class _Arguments:
    name: str = ""
    text: str = ""


@dataclass(slots=True)
class DeltaStream:
    """The deltas of one attempt. `send` must not block; a lost delta is no lost answer, which comes with the commit."""

    tenant_id: str
    thread_id: str
    turn: ActiveTurn
    options: StreamOptions
    send: Callable[[DeltaEvent], None]
    characters: int = 0
    """How much has come so far: text, reasoning and calls of tools."""
    answering: str | None = None
    """What the provider calls the model that answers, once it has said so."""
    _sequence: int = 0
    _written: list[str] = field(default_factory=list[str])
    _text: str = ""
    _reasoning: str = ""
    _arguments: dict[int, _Arguments] = field(default_factory=dict[int, _Arguments])
    _flush_at: asyncio.TimerHandle | None = None

    @property
    def call(self) -> WantedCall:
        """The model call that it is of."""
        phase = self.turn.phase
        assert isinstance(phase, Thinking)
        return WantedCall(self.turn.turn_id, self.turn.step, phase.attempt)

    @property
    def written(self) -> str:
        """All of the text so far, also of an attempt that came to nothing."""
        return "".join(self._written)

    def model(self, name: str) -> None:
        self.answering = name

    def text(self, piece: str) -> None:
        self.characters += len(piece)
        self._written.append(piece)
        self._text += piece
        self._schedule()

    def reasoning(self, piece: str) -> None:
        self.characters += len(piece)
        self._reasoning += piece
        self._schedule()

    def tool_arguments(self, index: int, name: str, piece: str) -> None:
        self.characters += len(name) + len(piece)
        waiting = self._arguments.setdefault(index, _Arguments())
        waiting.name = name or waiting.name
        waiting.text += piece
        self._schedule()

    def finish(self) -> None:
        """Sends what is left. The answer is complete."""
        self._cancel_timer()
        self._flush(whole=True)

    def abort(self, reason: str) -> None:
        """Says that what was sent will not be committed; says nothing when nothing was sent."""
        self._cancel_timer()
        self._text = self._reasoning = ""
        self._arguments.clear()
        if self._sequence:
            self.send(StreamAborted(**self._identity(), reason=reason))

    def _schedule(self) -> None:
        """The first piece goes out at once, later ones at most one group a throttle interval."""
        if self._sequence == 0 or self.options.throttle_ms == 0:
            self._flush(whole=self._sequence == 0)
        elif self._flush_at is None:
            self._flush_later()

    def _flush_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._flush_at = loop.call_later(self.options.throttle_ms / 1000, self._flush_due)

    def _flush_due(self) -> None:
        self._flush_at = None
        self._flush(whole=False)

    def _flush(self, *, whole: bool) -> None:
        if self._reasoning:
            self.send(ReasoningDelta(**self._identity(), text=self._reasoning))
            self._reasoning = ""
        ready, self._text = (self._text, "") if whole else split_at_boundary(self._text, self.options.chunking)
        if ready:
            self.send(TextDelta(**self._identity(), text=ready))
        for index, waiting in self._arguments.items():
            if waiting.text:
                self.send(ToolArgsDelta(**self._identity(), index=index, name=waiting.name, arguments=waiting.text))
                waiting.text = ""

    def _identity(self) -> dict[str, Any]:
        phase = self.turn.phase
        assert isinstance(phase, Thinking)
        sequence = self._sequence
        self._sequence += 1
        return {
            "tenant_id": self.tenant_id,
            "thread_id": self.thread_id,
            "turn_id": self.turn.turn_id,
            "step": self.turn.step,
            "attempt": phase.attempt,
            "sequence": sequence,
        }

    def _cancel_timer(self) -> None:
        if self._flush_at is not None:
            self._flush_at.cancel()
            self._flush_at = None
