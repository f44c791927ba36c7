"""Which trace an event of a decision belongs to: that of its own turn, which need not be the one that is open."""

from dataclasses import replace

from services.agents.turn.inputs import Decision, PromptArrived, ThreadInput
from services.agents.turn.state import ThreadState
from services.runtime.owner.actor import Emit
from services.runtime.telemetry import traceparent_of_turn


def traceparent_of(state: ThreadState) -> str:
    """The trace of the open turn: the one its prompt came with, else one with the turn's own id."""
    return state.turn.traceparent or traceparent_of_turn(state.turn.turn_id)


def traced(decision: Decision, before: ThreadState | None, happened: ThreadInput) -> Decision:
    """Puts each event of a turn into the trace of that turn. Events of no turn are left to their cause's trace."""
    emits = tuple(_traced(emit, decision.state, before, happened) for emit in decision.emits)
    return replace(decision, emits=emits)


def _traced(emit: Emit, after: ThreadState | None, before: ThreadState | None, happened: ThreadInput) -> Emit:
    turn_id: str | None = getattr(emit.event, "turn_id", None)
    if turn_id is None:
        return emit
    came = _came_with(turn_id, after, before, happened)
    return replace(emit, traceparent=came or traceparent_of_turn(turn_id))


def _came_with(
    turn_id: str, after: ThreadState | None, before: ThreadState | None, happened: ThreadInput
) -> str | None:
    if isinstance(happened, PromptArrived) and happened.turn_id == turn_id:
        return happened.traceparent
    for state in (before, after):
        if state is not None and state.turn.turn_id == turn_id:
            return state.turn.traceparent
    queued = before.queue.of_turn(turn_id) if before is not None else None
    return queued.traceparent if queued is not None else None
