"""The events that a turn writes, each from the state alone, with an id derived from what it says."""

from datetime import datetime
from typing import Any

from pydantic import JsonValue

from schemas.base import TokenCounts
from schemas.completions import TurnCancelled, TurnCompleted, TurnError, TurnFailed, TurnRejected
from schemas.ids import derived_id, message_id_of, time_of
from schemas.journal import MessageAdded, MessageStatus, PromptDropped, TurnClosed, TurnOpened, TurnOutcome, TurnWaiting
from schemas.parts import Part, TextPart, ToolResultPart, parts_of
from schemas.tool_calls import ToolCalled
from schemas.topics import COMPLETIONS, MESSAGES, TOOL_CALLS, USAGE, tool_queue
from schemas.turns import ActiveTurn, PendingCall, QueuedPrompt
from schemas.usage import UsageRecorded
from services.agents.turn.inputs import InFlight, ModelAnswered, ModelFailed
from services.agents.turn.state import ThreadState
from services.agents.turn.values import writable
from services.runtime.owner.actor import Emit


def call_id_of(turn: ActiveTurn, index: int) -> str:
    return derived_id("call", turn.turn_id, turn.step, index, at=turn.opened_at)


def turn_opened(state: ThreadState) -> Emit:
    turn = state.turn
    event = TurnOpened(
        tenant_id=state.tenant_id,
        thread_id=state.thread_id,
        turn_id=turn.turn_id,
        prompt_id=turn.prompt_id,
        user_id=turn.user_id,
        agent=turn.agent,
        agent_version=turn.agent_version,
        opened_at=turn.opened_at,
    )
    return Emit(MESSAGES.name, event, derived_id("opened", turn.turn_id, at=turn.opened_at))


def turn_waiting(state: ThreadState, reason: str, call_ids: list[str], at: datetime) -> Emit:
    turn = state.turn
    event = TurnWaiting.model_validate(
        {
            "tenant_id": state.tenant_id,
            "thread_id": state.thread_id,
            "turn_id": turn.turn_id,
            "step": turn.step,
            "reason": reason,
            "call_ids": call_ids,
            "waiting_since": at,
        }
    )
    return Emit(MESSAGES.name, event, derived_id("waiting", turn.turn_id, turn.step, at=turn.opened_at))


def turn_closed(state: ThreadState, outcome: TurnOutcome, steps: int, at: datetime) -> Emit:
    turn = state.turn
    event = TurnClosed(
        tenant_id=state.tenant_id,
        thread_id=state.thread_id,
        turn_id=turn.turn_id,
        outcome=outcome,
        steps=steps,
        closed_at=at,
    )
    return Emit(MESSAGES.name, event, derived_id("closed", turn.turn_id, at=turn.opened_at))


def user_message(state: ThreadState, prompt: QueuedPrompt, at: datetime) -> Emit:
    return _message(
        state, "user", 0, at, step=0, parts=parts_of(prompt.content), user_id=prompt.user_id, metadata=prompt.metadata
    )


def assistant_message(state: ThreadState, answer: ModelAnswered, parts: list[Part], at: datetime) -> Emit:
    turn = state.turn
    return _message(
        state,
        "assistant",
        0,
        at,
        parts=parts,
        agent=turn.agent,
        agent_version=turn.agent_version,
        provider=answer.provider,
        model=answer.model,
        usage=answer.usage,
        latency_ms=answer.latency_ms,
        finish_reason=answer.finish_reason,
    )


def unfinished_message(state: ThreadState, text: str, status: MessageStatus, at: datetime) -> Emit:
    """What there is of an answer that will never be whole. It is no step, and its message is in the place of one."""
    turn = state.turn
    return _message(
        state,
        "assistant",
        0,
        at,
        parts=[TextPart(text=text)],
        status=status,
        agent=turn.agent,
        agent_version=turn.agent_version,
    )


def human_message(state: ThreadState, parts: list[Part], user_id: str | None, at: datetime) -> Emit:
    turn = state.turn
    return _message(
        state, "assistant", 0, at, parts=parts, agent=turn.agent, agent_version=turn.agent_version, user_id=user_id
    )


def tool_message(
    state: ThreadState, call_id: str, name: str, result: JsonValue, at: datetime, *, is_error: bool = False
) -> Emit:
    part = ToolResultPart(call_id=call_id, name=name, result=result, is_error=is_error)
    return _message(
        state, "tool", call_id, at, parts=[part], agent=state.turn.agent, status="failed" if is_error else "success"
    )


def _message(state: ThreadState, role: str, index: object, at: datetime, **fields: Any) -> Emit:
    turn = state.turn
    step = fields.pop("step", turn.step)
    message_id = message_id_of(turn.turn_id, step, role, index, opened_at=turn.opened_at)
    event = MessageAdded(
        tenant_id=state.tenant_id,
        thread_id=state.thread_id,
        message_id=message_id,
        turn_id=turn.turn_id,
        step=step,
        role=role,  # pyright: ignore[reportArgumentType]
        created_at=at,
        **fields,
    )
    return Emit(MESSAGES.name, event, message_id)


def tool_called(state: ThreadState, call: PendingCall, at: datetime) -> Emit:
    turn = state.turn
    event = ToolCalled(
        tenant_id=state.tenant_id,
        thread_id=state.thread_id,
        call_id=call.call_id,
        turn_id=turn.turn_id,
        step=turn.step,
        name=call.name,
        arguments=call.arguments,
        user_id=turn.user_id,
        team_id=turn.team_id,
        agent=turn.agent,
        called_at=at,
        deadline_at=call.deadline_at,
    )
    return Emit(tool_queue(call.queue) if call.queue else TOOL_CALLS.name, event, call.call_id)


def usage_recorded(
    state: ThreadState, call: ModelAnswered | ModelFailed, at: datetime, *, completes_turn: bool = False
) -> Emit:
    """What an attempt spent. A failed one is not billable, whatever the provider counted."""
    answered = isinstance(call, ModelAnswered)
    return _usage(
        state,
        call.step,
        call.attempt,
        at,
        provider=call.provider,
        model=call.model,
        usage=call.usage,
        latency_ms=call.latency_ms,
        first_token_ms=call.first_token_ms if answered else None,
        outcome="ok" if answered else "error",
        estimated=call.estimated if answered else True,
        billable=answered,
        completes_turn=completes_turn,
    )


def usage_lost(state: ThreadState, attempt: int, given_up: InFlight, at: datetime) -> Emit:
    """An attempt whose worker died or whose turn was cancelled: what it spent is estimated and is not billed."""
    return _usage(
        state,
        state.turn.step,
        attempt,
        at,
        provider=given_up.provider,
        model=writable(given_up.model),
        usage=given_up.usage,
        outcome="lost",
        estimated=True,
        billable=False,
    )


def _usage(state: ThreadState, step: int, attempt: int, at: datetime, *, usage: TokenCounts, **fields: Any) -> Emit:
    turn = state.turn
    usage_id = derived_id("usage", turn.turn_id, step, attempt, at=turn.opened_at)
    event = UsageRecorded(
        usage_id=usage_id,
        tenant_id=state.tenant_id,
        thread_id=state.thread_id,
        turn_id=turn.turn_id,
        prompt_id=turn.prompt_id,
        user_id=turn.user_id,
        team_id=turn.team_id,
        agent=turn.agent,
        agent_version=turn.agent_version,
        step=step,
        attempt=attempt,
        kind="completion",
        occurred_at=at,
        **usage.model_dump(include=set(TokenCounts.model_fields)),
        **fields,
    )
    return Emit(USAGE.name, event, usage_id)


def prompt_rejected(tenant_id: str, thread_id: str, prompt: QueuedPrompt, error: TurnError, at: datetime) -> Emit:
    """The terminal event of a prompt that is not going to be a turn."""
    event = TurnRejected(
        tenant_id=tenant_id,
        thread_id=thread_id,
        turn_id=prompt.turn_id,
        prompt_id=prompt.prompt_id,
        user_id=prompt.user_id,
        agent=prompt.agent,
        completed_at=at,
        error=error,
    )
    return Emit(COMPLETIONS.name, event, _terminal_id(prompt.turn_id))


def turn_completed(
    state: ThreadState, at: datetime, *, steps: int, text: str, value: JsonValue, finish_reason: str
) -> Emit:
    event = TurnCompleted(**_closing(state, steps, at), text=text, object=value, finish_reason=finish_reason)
    return Emit(COMPLETIONS.name, event, _terminal_id(state.turn.turn_id))


def turn_failed(state: ThreadState, at: datetime, *, steps: int, error: TurnError) -> Emit:
    return Emit(
        COMPLETIONS.name, TurnFailed(**_closing(state, steps, at), error=error), _terminal_id(state.turn.turn_id)
    )


def turn_cancelled(state: ThreadState, at: datetime, *, steps: int, reason: str | None) -> Emit:
    return Emit(
        COMPLETIONS.name, TurnCancelled(**_closing(state, steps, at), reason=reason), _terminal_id(state.turn.turn_id)
    )


def prompt_dropped(tenant_id: str, thread_id: str, prompt: QueuedPrompt, at: datetime) -> Emit:
    """Tells the journal of a prompt that was taken in and whose turn never opened."""
    event = PromptDropped(
        tenant_id=tenant_id,
        thread_id=thread_id,
        turn_id=prompt.turn_id,
        prompt_id=prompt.prompt_id,
        user_id=prompt.user_id,
        agent=prompt.agent,
        dropped_at=at,
    )
    return Emit(MESSAGES.name, event, derived_id("dropped", prompt.turn_id, at=time_of(prompt.turn_id)))


def queued_cancelled(state: ThreadState, prompt: QueuedPrompt, at: datetime, reason: str | None) -> Emit:
    """The terminal event of a prompt whose turn never opened."""
    event = TurnCancelled(
        tenant_id=state.tenant_id,
        thread_id=state.thread_id,
        turn_id=prompt.turn_id,
        prompt_id=prompt.prompt_id,
        user_id=prompt.user_id,
        agent=prompt.agent,
        agent_version="",
        steps=0,
        usage=TokenCounts(),
        opened_at=at,
        completed_at=at,
        reason=reason,
    )
    return Emit(COMPLETIONS.name, event, _terminal_id(prompt.turn_id))


def _closing(state: ThreadState, steps: int, at: datetime) -> dict[str, Any]:
    turn = state.turn
    return {
        "tenant_id": state.tenant_id,
        "thread_id": state.thread_id,
        "turn_id": turn.turn_id,
        "prompt_id": turn.prompt_id,
        "user_id": turn.user_id,
        "agent": turn.agent,
        "agent_version": turn.agent_version,
        "steps": steps,
        "usage": turn.usage,
        "opened_at": turn.opened_at,
        "completed_at": at,
    }


def _terminal_id(turn_id: str) -> str:
    return derived_id("terminal", turn_id, at=time_of(turn_id))
