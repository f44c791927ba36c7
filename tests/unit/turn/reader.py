"""A reader of what is committed, who knows what a legal history is and complains of the first line that is not."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from schemas.base import TokenCounts
from services.runtime.owner.actor import Emit
from tests.unit.turn.story import TERMINAL

Thread = tuple[str, str]
"""Tenant and thread."""

OUTCOMES = {"completed": "turn.completed", "failed": "turn.failed", "cancelled": "turn.cancelled"}


@dataclass
class Turn:
    turn_id: str
    prompt_id: str
    step: int = 0
    """Steps that have their message."""
    attempts: int = 0
    """Attempts of the step that runs, each with its usage."""
    answered: bool = False
    """Whether the last attempt was the good one; its message must follow."""
    spent: TokenCounts = field(default_factory=TokenCounts)
    heard: bool = False
    """Whether the user's message is there."""
    pending: dict[str, Any] = field(default_factory=dict)
    """Calls of the last step that have no result yet, as the model wrote them."""
    called: set[str] = field(default_factory=set)
    outcome: str | None = None


@dataclass
class Reader:
    """Takes events in the order in which they were committed. Raises AssertionError, with what is wrong."""

    interrupting: frozenset[str] = frozenset()
    """Agents whose prompts go before others."""
    sequences: dict[tuple[Thread, str], int] = field(default_factory=dict)
    """Prompts to their place in the log."""
    may_be_called: set[str] | None = None
    """Calls that a person approved, where `needs_approval` names the tool."""
    needs_approval: frozenset[str] = frozenset()
    ids: set[str] = field(default_factory=set)
    open: dict[Thread, Turn] = field(default_factory=dict)
    ended: dict[Thread, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    """Prompts to their terminal event."""
    opened: set[str] = field(default_factory=set)
    last_sequence: dict[Thread, int] = field(default_factory=dict)

    def read(self, emit: Emit) -> None:
        event = emit.event
        assert emit.event_id not in self.ids, f"two events have one id: {event}"
        self.ids.add(emit.event_id)
        own = {"message.added": "message_id", "tool.called": "call_id", "usage.recorded": "usage_id"}
        if event.type in own:
            assert getattr(event, own[event.type]) == emit.event_id, "an event goes by another id than its own"
        thread = (event.tenant_id, event.thread_id)
        match event.type:
            case "turn.opened":
                self._opened(thread, event)
            case "turn.waiting":
                self._waiting(self._turn(thread, event), event)
            case "turn.closed":
                self._closed(self._turn(thread, event), event)
            case "message.added" if event.turn_id is not None:
                self._message(self._turn(thread, event), event)
            case "tool.called":
                self._called(self._turn(thread, event), event)
            case "usage.recorded":
                self._usage(self._turn(thread, event), event)
            case kind if kind in TERMINAL:
                self._ended(thread, event)
            case "prompt.dropped":
                assert event.turn_id not in self.opened, "a prompt is dropped whose turn opened"
                self.opened.add(event.turn_id)
            case _:
                pass

    def _turn(self, thread: Thread, event: Any) -> Turn:
        turn = self.open.get(thread)
        assert turn is not None, f"{event.type} of a turn that is not open"
        assert turn.turn_id == event.turn_id, f"{event.type} of a turn that is not open"
        assert turn.outcome is None, f"{event.type} of a turn that is closed"
        return turn

    def _opened(self, thread: Thread, event: Any) -> None:
        assert thread not in self.open, "a turn opens before the last one has come to its end"
        assert event.turn_id not in self.opened, "a turn opens twice"
        assert event.prompt_id not in self.ended[thread], "a turn opens for a prompt that has ended"
        self.opened.add(event.turn_id)
        self.open[thread] = Turn(event.turn_id, event.prompt_id)
        sequence = self.sequences.get((thread, event.prompt_id))
        if sequence is not None and event.agent not in self.interrupting:
            assert sequence > self.last_sequence.get(thread, -1), "a later prompt was answered first"
            self.last_sequence[thread] = sequence

    def _message(self, turn: Turn, event: Any) -> None:
        if event.role == "user":
            assert not turn.heard, "the user speaks twice in a turn"
            assert (event.step, turn.step) == (0, 0), "a user's message is of step 0"
            turn.heard = True
            return
        assert turn.heard, "the answer goes before the question"
        if event.role == "tool":
            for part in event.parts:
                assert part.call_id in turn.pending, "a result that nobody asked for, or a second one"
                del turn.pending[part.call_id]
            assert event.step == turn.step, "a result of another step"
            return
        assert not turn.pending, "a step begins before the results of the last one"
        assert event.step == turn.step + 1, "steps do not follow each other"
        assert turn.answered == (event.model is not None), "a step without its usage, or usage without its step"
        turn.step, turn.attempts, turn.answered = event.step, 0, False
        turn.pending = {part.call_id: part for part in event.parts if part.type == "tool_call"}

    def _usage(self, turn: Turn, event: Any) -> None:
        assert not turn.answered, "an attempt after the good one"
        assert not turn.pending, "the model is asked before the results are there"
        assert (event.step, event.attempt) == (turn.step + 1, turn.attempts + 1), "an attempt is missing or doubled"
        assert event.billable == (event.outcome == "ok"), "what failed or was lost is billed, or what succeeded is not"
        assert event.provider, "nobody knows who was asked"
        assert event.model, "nobody knows which model was asked"
        if event.outcome == "lost":
            assert event.estimated, "somebody has counted what a lost attempt spent"
            assert event.input_tokens > 0, "a lost attempt is metered as nothing"
        turn.attempts, turn.answered = event.attempt, event.outcome == "ok"
        if turn.answered:
            turn.spent = turn.spent + _counts(event)

    def _waiting(self, turn: Turn, event: Any) -> None:
        assert set(event.call_ids) <= set(turn.pending), "waits for calls that are not pending"
        assert not turn.called & set(event.call_ids), "waits for approval of a call that was made"
        assert bool(event.call_ids) == (event.reason == "approval"), "waits for nobody"

    def _called(self, turn: Turn, event: Any) -> None:
        part = turn.pending.get(event.call_id)
        assert part is not None, "a call that the model did not ask for"
        assert (part.name, event.step) == (event.name, turn.step), "another call than the model asked for"
        assert event.call_id not in turn.called, "a call is made twice"
        assert event.deadline_at > event.called_at, "a call without time"
        if self.may_be_called is not None and event.name in self.needs_approval:
            assert event.call_id in self.may_be_called, "a call is made that nobody approved"
        turn.called.add(event.call_id)

    def _closed(self, turn: Turn, event: Any) -> None:
        assert turn.heard, "a turn closes that nobody spoke in"
        assert not turn.pending, "a turn closes with calls that have no result"
        assert not turn.answered, "a turn closes without the message of its step"
        assert event.steps == turn.step, "the count of steps is wrong"
        turn.outcome = event.outcome

    def _ended(self, thread: Thread, event: Any) -> None:
        assert event.prompt_id not in self.ended[thread], "a prompt ends twice"
        turn = self.open.get(thread)
        if turn is not None and turn.turn_id == event.turn_id:
            assert turn.outcome is not None, "a turn ends that was not closed"
            assert OUTCOMES[turn.outcome] == event.type, "a turn ends otherwise than it was closed"
            assert (event.steps, _counts(event.usage)) == (turn.step, turn.spent), "the sum is wrong"
            del self.open[thread]
        else:
            assert event.type in ("turn.rejected", "turn.cancelled"), "a turn that never opened has an answer"
        self.ended[thread][event.prompt_id] = event.type


def _counts(event: Any) -> TokenCounts:
    return TokenCounts(**{name: getattr(event, name) for name in TokenCounts.model_fields})
