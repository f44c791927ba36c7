"""How a turn ends, and how the next one of the thread begins."""

from dataclasses import replace
from datetime import datetime

from pydantic import JsonValue

from schemas.agents import AgentSpec
from schemas.base import TokenCounts
from schemas.budgets import Spender
from schemas.completions import ErrorCode, TurnError
from schemas.journal import MessageAdded, MessageStatus
from schemas.turns import ActiveTurn, AwaitingHuman, Calling, QueuedPrompt, Thinking
from services.agents.chat import chat_messages, sent_tokens
from services.agents.turn import events
from services.agents.turn.inputs import Decision, Environment, InFlight, PromptArrived
from services.agents.turn.queue import PromptQueue
from services.agents.turn.state import ThreadState
from services.agents.turn.values import later, writable
from services.runtime.owner.actor import Emit


def committed_steps(turn: ActiveTurn) -> int:
    """How many model steps of the turn are stored: the running one counts once its tools are called."""
    return turn.step if isinstance(turn.phase, Calling) else turn.step - 1


def open_turn(
    thread: tuple[str, str], prompt: QueuedPrompt, spec: AgentSpec, at: datetime, queue: PromptQueue | None = None
) -> Decision:
    """A prompt becomes the turn of a free thread, which is named by tenant and id."""
    seconds = prompt.options.limits.max_seconds or spec.stop.max_seconds
    turn = ActiveTurn(
        turn_id=prompt.turn_id,
        prompt_id=prompt.prompt_id,
        user_id=prompt.user_id,
        team_id=prompt.team_id,
        agent=spec.name,
        agent_version=spec.version,
        options=prompt.options,
        opened_at=at,
        deadline_at=later(at, seconds),
        step=1,
        traceparent=prompt.traceparent,
        phase=AwaitingHuman() if spec.kind == "human" else Thinking(attempt=1, started_at=at),
    )
    state = ThreadState(*thread, turn, queue or PromptQueue())
    said = events.user_message(state, prompt, at)
    emits = [events.turn_opened(state), said]
    if spec.kind == "human":
        emits.append(events.turn_waiting(state, "human", [], at))
        return Decision(state, tuple(emits))
    instructions = prompt.options.instructions if prompt.options.instructions is not None else spec.instructions
    assert isinstance(said.event, MessageAdded)
    sent = sent_tokens(chat_messages(instructions, [said.event]))
    return Decision(state.with_turn(context_tokens=sent), tuple(emits))


def complete(
    state: ThreadState, env: Environment, *, text: str, value: JsonValue = None, finish_reason: str, steps: int
) -> Decision:
    """Ends the turn with its answer."""
    completed = events.turn_completed(state, env.at, steps=steps, text=text, value=value, finish_reason=finish_reason)
    return _close(state, env, [events.turn_closed(state, "completed", steps, env.at), completed])


def fail(state: ThreadState, env: Environment, code: ErrorCode, message: str, *, retryable: bool) -> Decision:
    """Ends the turn with an error; calls that are still open are answered with it, so that the journal stays whole."""
    steps = committed_steps(state.turn)
    error = TurnError(code=code, message=message, retryable=retryable)
    return _close(
        state,
        env,
        [
            *answer_open_calls(state, message, env.at),
            events.turn_closed(state, "failed", steps, env.at),
            events.turn_failed(state, env.at, steps=steps, error=error),
        ],
    )


def overdue(state: ThreadState, env: Environment) -> Decision:
    """Ends a turn whose time is over. A model call in flight is given up and recorded as lost."""
    seconds = (state.turn.deadline_at - state.turn.opened_at).total_seconds()
    decision = fail(state, env, "deadline", f"the turn did not end within {seconds:g} s", retryable=True)
    given_up = (*lost_attempt(state, env), *unfinished(state, env, "failed"))
    return replace(decision, emits=(*given_up, *decision.emits))


def cancel(state: ThreadState, env: Environment, reason: str | None) -> Decision:
    """Ends the turn on somebody's word. A model call in flight is given up and recorded as lost."""
    steps = committed_steps(state.turn)
    return _close(
        state,
        env,
        [
            *lost_attempt(state, env),
            *unfinished(state, env, "cancelled"),
            *answer_open_calls(state, reason or "cancelled", env.at),
            events.turn_closed(state, "cancelled", steps, env.at),
            events.turn_cancelled(state, env.at, steps=steps, reason=reason),
        ],
    )


def cancel_turns(state: ThreadState, turn_id: str | None, env: Environment, reason: str | None) -> Decision:
    """Ends the named turn, open or queued; without a name every one of the thread."""
    gone = [each for each in state.queue if turn_id in (None, each.turn_id)]
    emits = tuple(
        emit
        for each in gone
        for emit in (
            events.prompt_dropped(state.tenant_id, state.thread_id, each, env.at),
            events.queued_cancelled(state, each, env.at, reason),
        )
    )
    if gone:
        state = replace(state, queue=PromptQueue() if turn_id is None else state.queue.without(turn_id))
    if turn_id not in (None, state.turn.turn_id):
        return Decision(state, emits)
    decision = cancel(state, env, reason)
    return replace(decision, emits=(*emits, *decision.emits))


def lost_attempt(state: ThreadState, env: Environment) -> list[Emit]:
    """The usage record of a model call that is given up before its answer.

    Of one that this worker has not sent, as that of a worker that died, only the turn's own input is known.
    """
    phase = state.turn.phase
    if not isinstance(phase, Thinking) or phase.retry_at is not None:
        return []
    own = TokenCounts(input_tokens=state.turn.context_tokens)
    given_up = env.in_flight or InFlight(*env.model(model_ref(state, env)), usage=own)
    return [events.usage_lost(state, phase.attempt, given_up, env.at)]


def unfinished(state: ThreadState, env: Environment, status: MessageStatus) -> list[Emit]:
    """What the model had written of the answer that the turn ends without."""
    if not isinstance(state.turn.phase, Thinking) or env.in_flight is None or not env.in_flight.written:
        return []
    return [events.unfinished_message(state, writable(env.in_flight.written), status, env.at)]


def model_ref(state: ThreadState, env: Environment) -> str | None:
    """`provider/model` that the turn asks now: the prompt's, the agent's, or one of its fallbacks.

    An agent whose version is gone may have fewer fallbacks now: then the first model is asked.
    """
    turn = state.turn
    spec = env.agent(state.tenant_id, turn.agent, turn.agent_version)
    first = turn.options.model or (spec.model if spec else None)
    index = turn.phase.model if isinstance(turn.phase, Thinking) else 0
    fallbacks = spec.fallbacks if spec else []
    return fallbacks[index - 1] if 0 < index <= len(fallbacks) else first


def answer_open_calls(state: ThreadState, message: str, at: datetime) -> list[Emit]:
    phase = state.turn.phase
    if not isinstance(phase, Calling):
        return []
    return [events.tool_message(state, call.call_id, call.name, message, at, is_error=True) for call in phase.calls]


def _close(state: ThreadState, env: Environment, emits: list[Emit]) -> Decision:
    """The terminal events of a turn, then the opening of the next one whose agent still exists and may spend."""
    queue = state.queue
    while queue:
        head, queue = queue[0], queue.without_first()
        thread = state.tenant_id, state.thread_id
        spec = env.agent(state.tenant_id, head.agent, None)
        error = unknown_agent(head.agent) if spec is None else budget_for(*thread, head, spec, env)
        if spec is not None and error is None:
            opened = open_turn(thread, head, spec, env.at, queue)
            return replace(opened, emits=(*emits, *opened.emits))
        assert error is not None
        emits.append(events.prompt_dropped(*thread, head, env.at))
        emits.append(events.prompt_rejected(*thread, head, error, env.at))
    return Decision(None, tuple(emits))


def unknown_agent(name: str) -> TurnError:
    return TurnError(
        code="unknown_agent",
        message=f"no agent {name!r} is known: apply it with `turnlog agents apply FILE`",
        retryable=False,
    )


def budget_for(
    tenant_id: str, thread_id: str, prompt: QueuedPrompt, spec: AgentSpec, env: Environment
) -> TurnError | None:
    """The budget that keeps a turn from opening. A person's turn spends nothing."""
    if spec.kind == "human":
        return None
    return env.budget(Spender(tenant_id, prompt.user_id, prompt.agent, thread_id, prompt.team_id), True)


def arrived_as_queued(arrived: PromptArrived) -> QueuedPrompt:
    prompt = arrived.prompt
    return QueuedPrompt(
        sequence=arrived.sequence,
        turn_id=arrived.turn_id,
        prompt_id=arrived.prompt_id,
        user_id=prompt.user_id,
        team_id=prompt.team_id,
        agent=prompt.agent,
        content=prompt.content,
        options=prompt.options,
        metadata=prompt.metadata,
        traceparent=arrived.traceparent,
    )
