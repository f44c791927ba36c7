"""A step of a turn: the model answers or fails, its tools are called and come back."""

import hashlib
from dataclasses import replace
from datetime import datetime
from decimal import Decimal

from pydantic import JsonValue

from schemas.agents import AgentSpec, RetryPolicy
from schemas.base import TokenCounts, format_amount
from schemas.completions import TurnCompleted
from schemas.parts import Part, ReasoningPart, TextPart, ToolCallPart, result_text
from schemas.tokens import estimated_tokens
from schemas.tool_calls import ToolFailed, ToolReturned
from schemas.tools import ToolSpec
from schemas.turns import ActiveTurn, AwaitingHuman, Calling, PendingCall, Phase, Thinking
from schemas.usage import UsageRecorded
from services.agents.turn import events
from services.agents.turn.closing import complete, fail, lost_attempt, overdue, unfinished
from services.agents.turn.inputs import AskedTool, ClockJumped, Decision, Environment, ModelAnswered, ModelFailed
from services.agents.turn.state import ThreadState, spender
from services.agents.turn.values import MAX_NESTING, json_value, later, nested_too_deeply, writable
from services.runtime.owner.actor import Emit
from services.runtime.pricing.rate import EXACT

QUEUE_SECONDS = 30
"""Time for a call to reach a worker and for its answer to come back, beyond the tool's own time limit: longer than
it takes to restart a worker or to hand a partition over."""


def model_answered(state: ThreadState, answer: ModelAnswered, env: Environment) -> Decision:
    """Commits the step: message, usage, and either tool calls or the completion."""
    if not _expects(state, answer):
        return Decision(state)
    turn = state.turn
    answer = _writable_answer(answer)
    calls = [(events.call_id_of(turn, index), asked) for index, asked in enumerate(answer.tool_calls)]
    spec = env.agent(state.tenant_id, turn.agent, turn.agent_version)
    recorded = events.usage_recorded(state, answer, env.at)
    counted = _paid(state.with_turn(**_counted(turn, answer.usage)), recorded, spec, env)
    following = _call_tools(counted, calls, spec, env) if calls else _finish(counted, answer, spec, env)
    completes = any(isinstance(emit.event, TurnCompleted) for emit in following.emits)
    emits = [
        replace(recorded, event=recorded.event.model_copy(update={"completes_turn": completes})),
        events.assistant_message(state, answer, _parts(answer, calls), env.at),
    ]
    return _after(emits, following)


def model_failed(state: ThreadState, failure: ModelFailed, env: Environment) -> Decision:
    """Tries again, goes on to a fallback model, or ends the turn. Every attempt is on record."""
    if not _expects(state, failure):
        return Decision(state)
    turn = state.turn
    phase = turn.phase
    assert isinstance(phase, Thinking)
    failure = replace(failure, message=writable(failure.message), model=writable(failure.model))
    emits = [events.usage_recorded(state, failure, env.at)]
    spec = env.agent(state.tenant_id, turn.agent, turn.agent_version)
    sent = max(turn.context_tokens, failure.usage.input_tokens)
    state = _paid(state.with_turn(context_tokens=sent), emits[0], spec, env)
    policy = spec.retries if spec else RetryPolicy()
    retry_at = later(env.at, _delay(policy, phase.tries, turn.turn_id, failure.retry_after_seconds))
    following = {"attempt": phase.attempt + 1, "started_at": env.at}
    if failure.retryable and phase.tries < policy.max_attempts and retry_at < turn.deadline_at:
        again = phase.model_copy(update={**following, "tries": phase.tries + 1, "retry_at": retry_at})
        return Decision(state.with_turn(phase=again), tuple(emits))
    if spec is not None and phase.model < len(spec.fallbacks):
        other = phase.model_copy(update={**following, "tries": 1, "model": phase.model + 1, "retry_at": None})
        return Decision(state.with_turn(phase=other), tuple(emits))
    emits += unfinished(state, env, "failed")
    return _after(emits, fail(state, env, failure.code, failure.message, retryable=failure.retryable))


def recovered(state: ThreadState, env: Environment) -> Decision:
    """Asks the model again for a step whose answer was never committed; what waits for tools or people goes on."""
    lost = lost_attempt(state, env)
    if not lost:
        return Decision(state)
    if env.at >= state.turn.deadline_at:
        return overdue(state, env)
    phase = state.turn.phase
    assert isinstance(phase, Thinking)
    again = phase.model_copy(update={"attempt": phase.attempt + 1, "started_at": env.at})
    spec = env.agent(state.tenant_id, state.turn.agent, state.turn.agent_version)
    return Decision(_paid(state, lost[0], spec, env).with_turn(phase=again), tuple(lost))


def retry_due(state: ThreadState, env: Environment) -> Decision:
    phase = state.turn.phase
    assert isinstance(phase, Thinking)
    return Decision(state.with_turn(phase=phase.model_copy(update={"retry_at": None, "started_at": env.at})))


def clock_jumped(state: ThreadState, jumped: ClockJumped) -> Decision:
    """Moves what the turn waits for along with the clock, so that it has as much time left as before."""
    seconds = jumped.by.total_seconds()
    phase: Phase
    match state.turn.phase:
        case Thinking(retry_at=retry_at) as thinking:
            moved = retry_at and later(retry_at, seconds)
            phase = thinking.model_copy(update={"retry_at": moved})
        case Calling(calls=calls):
            phase = Calling(
                calls=[each.model_copy(update={"deadline_at": later(each.deadline_at, seconds)}) for each in calls]
            )
        case AwaitingHuman() as waiting:
            phase = waiting
    return Decision(state.with_turn(deadline_at=later(state.turn.deadline_at, seconds), phase=phase))


def tool_answered(state: ThreadState, answer: ToolReturned | ToolFailed, env: Environment) -> Decision:
    """Takes the result of a call that is pending; anything else was answered before and changes nothing."""
    if isinstance(answer, ToolReturned):
        if nested_too_deeply(answer.result):
            message = f"the result is nested deeper than {MAX_NESTING} levels"
            return settle_calls(state, [answer.call_id], message, env, is_error=True)
        return settle_calls(state, [answer.call_id], answer.result, env, is_error=False)
    return settle_calls(state, [answer.call_id], f"{answer.code}: {answer.message}", env, is_error=True)


def settle_calls(
    state: ThreadState,
    call_ids: list[str],
    result: JsonValue,
    env: Environment,
    *,
    is_error: bool,
    waiting: str = "running",
) -> Decision:
    """Answers pending calls with one result; the next step begins with the last answer."""
    phase = state.turn.phase
    if not isinstance(phase, Calling):
        return Decision(state)
    settled = [call for call in phase.calls if call.call_id in call_ids and call.state == waiting]
    if not settled:
        return Decision(state)
    emits = tuple(
        events.tool_message(state, call.call_id, call.name, result, env.at, is_error=is_error) for call in settled
    )
    left = [call for call in phase.calls if call not in settled]
    told = len(settled) * estimated_tokens(len(result_text(result)))
    state = state.with_turn(phase=Calling(calls=left), context_tokens=state.turn.context_tokens + told)
    if left:
        return Decision(state, emits)
    return _after([*emits], _next_step(state, env))


def _next_step(state: ThreadState, env: Environment) -> Decision:
    """Asks the model again, if the turn may spend more."""
    going_on = state.with_turn(step=state.turn.step + 1, phase=Thinking(attempt=1, started_at=env.at))
    return _spent_up(state, env) or Decision(going_on)


def _spent_up(state: ThreadState, env: Environment) -> Decision | None:
    """The end of a turn that may not go on, by its own cost or since a budget is used up by now."""
    turn = state.turn
    most = _max_cost(state, env.agent(state.tenant_id, turn.agent, turn.agent_version))
    if most is not None and turn.cost >= most:
        message = f"the turn has cost {format_amount(turn.cost)} USD, and may cost {format_amount(most)}"
        return fail(state, env, "max_cost", message, retryable=False)
    used_up = env.budget(spender(state), False)
    if used_up is None:
        return None
    return fail(state, env, used_up.code, used_up.message, retryable=used_up.retryable)


def _paid(state: ThreadState, recorded: Emit, spec: AgentSpec | None, env: Environment) -> ThreadState:
    """The turn with the cost of a call that has ended, if that matters to it."""
    if _max_cost(state, spec) is None:
        return state
    assert isinstance(recorded.event, UsageRecorded)
    return state.with_turn(cost=EXACT.add(state.turn.cost, env.cost(recorded.event)))


def _counted(turn: ActiveTurn, usage: TokenCounts) -> dict[str, object]:
    """The counts of the turn after a step: what went into it and came out of it goes into the next one."""
    step = usage.input_tokens + usage.output_tokens
    return {"usage": turn.usage + usage, "context_tokens": max(turn.context_tokens, step)}


def _max_cost(state: ThreadState, spec: AgentSpec | None) -> Decimal | None:
    of_prompt = state.turn.options.limits.max_cost
    return of_prompt if of_prompt is not None or spec is None else spec.stop.max_cost


def _expects(state: ThreadState, call: ModelAnswered | ModelFailed) -> bool:
    turn = state.turn
    return (
        isinstance(turn.phase, Thinking)
        and turn.phase.retry_at is None
        and (turn.turn_id, turn.step, turn.phase.attempt) == (call.turn_id, call.step, call.attempt)
    )


def _writable_answer(answer: ModelAnswered) -> ModelAnswered:
    """The answer with every text in it fit for the log: a stream may break an escaped character in two."""
    return replace(
        answer,
        model=writable(answer.model),
        text=writable(answer.text),
        reasoning=writable(answer.reasoning),
        finish_reason=writable(answer.finish_reason),
        tool_calls=tuple(
            AskedTool(writable(each.provider_call_id), writable(each.name), writable(each.arguments))
            for each in answer.tool_calls
        ),
    )


def _parts(answer: ModelAnswered, calls: list[tuple[str, AskedTool]]) -> list[Part]:
    parts: list[Part] = []
    if answer.reasoning:
        parts.append(ReasoningPart(text=answer.reasoning))
    if answer.text or not calls:
        parts.append(TextPart(text=answer.text))
    parts += [ToolCallPart(call_id=call_id, name=asked.name, arguments=asked.arguments) for call_id, asked in calls]
    return parts


def _finish(state: ThreadState, answer: ModelAnswered, spec: AgentSpec | None, env: Environment) -> Decision:
    schema = state.turn.options.response_schema or (spec.response_schema if spec else None)
    value: JsonValue = None
    if schema is not None:
        try:
            value = json_value(answer.text)
        except ValueError as error:
            # The step is committed and billed: it counts though its text is not what was asked for.
            done = state.with_turn(step=state.turn.step + 1)
            return fail(done, env, "response_schema", f"the answer is not JSON: {error}", retryable=True)
    return complete(
        state, env, text=answer.text, value=value, finish_reason=answer.finish_reason, steps=state.turn.step
    )


def _call_tools(
    state: ThreadState, calls: list[tuple[str, AskedTool]], spec: AgentSpec | None, env: Environment
) -> Decision:
    """Hands the calls out. One that cannot be made is answered at once, so that the model can mend it."""
    turn = state.turn
    limit = turn.options.limits.max_steps or (spec.stop.max_steps if spec else turn.step)
    emits: list[Emit] = []
    pending: list[PendingCall] = []
    for call_id, asked in calls:
        planned = _plan(state, call_id, asked, spec, env)
        if isinstance(planned, str):
            emits.append(events.tool_message(state, call_id, asked.name, planned, env.at, is_error=True))
        else:
            pending.append(planned)
    state = state.with_turn(phase=Calling(calls=pending))
    if turn.step >= limit:
        message = f"the model wanted to go on after {limit} steps, the most this turn may take"
        return _after(emits, fail(state, env, "max_steps", message, retryable=False))
    if env.at >= turn.deadline_at:
        return _after(emits, overdue(state, env))
    stopped = _spent_up(state, env)
    if stopped is not None or not pending:
        return _after(emits, stopped or _next_step(state, env))
    emits += [events.tool_called(state, call, env.at) for call in pending if call.state == "running"]
    waiting = [call.call_id for call in pending if call.state == "approval"]
    if waiting:
        emits.append(events.turn_waiting(state, "approval", waiting, env.at))
    return Decision(state, tuple(emits))


def _plan(
    state: ThreadState, call_id: str, asked: AskedTool, spec: AgentSpec | None, env: Environment
) -> PendingCall | str:
    """The call to make, or what to tell the model instead."""
    turn = state.turn
    offered = turn.options.tools if turn.options.tools is not None else (spec.tools if spec else [])
    tool = env.tool(state.tenant_id, asked.name) if asked.name in offered else None
    if tool is None:
        return f"there is no tool {asked.name!r}; the tools are: {', '.join(offered) or 'none'}"
    try:
        arguments = json_value(asked.arguments or "{}")
    except ValueError as error:
        return f"the arguments are not JSON: {error}"
    if not isinstance(arguments, dict):
        return f"expected a JSON object of arguments, got {type(arguments).__name__}"
    approval = tool.approval or (spec is not None and (spec.approval == "all" or asked.name in spec.approval))
    return PendingCall(
        call_id=call_id,
        provider_call_id=asked.provider_call_id,
        name=asked.name,
        arguments=arguments,
        state="approval" if approval else "running",
        queue=tool.queue,
        deadline_at=turn.deadline_at if approval else call_deadline(tool, turn, env.at),
    )


def call_deadline(tool: ToolSpec, turn: ActiveTurn, at: datetime) -> datetime:
    """When the turn stops waiting for a call that is made now."""
    return min(later(at, tool.timeout_seconds + QUEUE_SECONDS), turn.deadline_at)


def _delay(policy: RetryPolicy, tries: int, turn_id: str, retry_after: float | None) -> float:
    """Seconds until the next try: what the provider asked for, else doubling with up to 25 % of spread by turn."""
    if retry_after is not None:
        return max(0.0, retry_after)
    backoff = min(policy.backoff_seconds * 2 ** (tries - 1), policy.max_backoff_seconds)
    spread = hashlib.sha256(f"{turn_id}/{tries}".encode()).digest()[0] / 255
    return backoff * (1 + spread / 4)


def _after(emits: list[Emit], decision: Decision) -> Decision:
    return replace(decision, emits=(*emits, *decision.emits))
