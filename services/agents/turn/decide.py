"""`decide`: what an input does to a thread."""

from dataclasses import replace
from datetime import datetime

from schemas.completions import TurnError
from schemas.parts import parts_of, text_of
from schemas.prompts import (
    HumanReply,
    ToolApproval,
    TurnCancel,
)
from schemas.tool_calls import ToolFailed, ToolProgress, ToolReturned
from schemas.turns import AwaitingHuman, Calling, Thinking
from services.agents.turn import events
from services.agents.turn.closing import (
    arrived_as_queued,
    budget_for,
    cancel,
    cancel_turns,
    complete,
    open_turn,
    overdue,
    unknown_agent,
)
from services.agents.turn.commands import command_arrived
from services.agents.turn.inputs import (
    ClockJumped,
    CommandArrived,
    Decision,
    Environment,
    ModelAnswered,
    ModelFailed,
    PromptArrived,
    Recovered,
    ThreadInput,
    Tick,
)
from services.agents.turn.queue import size_of
from services.agents.turn.state import ThreadState
from services.agents.turn.steps import (
    call_deadline,
    clock_jumped,
    model_answered,
    model_failed,
    recovered,
    retry_due,
    settle_calls,
    tool_answered,
)
from services.agents.turn.values import MAX_NESTING, nested_too_deeply

MAX_QUEUED = 10_000
"""Prompts that wait for one thread: they are in the worker's memory, and a new owner of the partition reads them."""

MAX_QUEUED_BYTES = 64 * 2**20
"""Bytes of the prompts that wait for one thread: a count alone would let 10,000 of 1 MB fill the worker's memory."""


def decide(state: ThreadState | None, happened: ThreadInput, env: Environment) -> Decision:
    """The next state of a thread and the events to write, for anything that can happen to it.

    Total: an input that no longer fits (a late result, a second cancel) gives the state back and writes nothing.
    """
    match happened:
        case PromptArrived():
            return _prompt_arrived(state, happened, env)
        case CommandArrived():
            return command_arrived(state, happened, env)
        case _ if state is None:
            return Decision(None)
        case ModelAnswered():
            return model_answered(state, happened, env)
        case ModelFailed():
            return model_failed(state, happened, env)
        case ToolReturned() | ToolFailed():
            return tool_answered(state, happened, env)
        case ToolProgress():
            return Decision(state)
        case ToolApproval():
            return _approval(state, happened, env)
        case HumanReply():
            return _human_reply(state, happened, env)
        case TurnCancel():
            return cancel_turns(state, happened.turn_id, env, happened.reason)
        case Tick():
            return _tick(state, env)
        case ClockJumped():
            return clock_jumped(state, happened)
        case Recovered():
            return recovered(state, env)


def _prompt_arrived(state: ThreadState | None, arrived: PromptArrived, env: Environment) -> Decision:
    prompt = arrived.prompt
    queued = arrived_as_queued(arrived)

    def rejected(error: TurnError) -> Decision:
        return Decision(state, (events.prompt_rejected(prompt.tenant_id, prompt.thread_id, queued, error, env.at),))

    if state is not None and (arrived.turn_id == state.turn.turn_id or state.queue.holds(arrived.turn_id)):
        return Decision(state)
    if nested_too_deeply(prompt.model_dump(exclude_defaults=True)):
        message = f"the prompt is nested deeper than {MAX_NESTING} levels"
        return rejected(TurnError(code="bad_request", message=message, retryable=False))
    spec = env.agent(prompt.tenant_id, prompt.agent, None)
    if spec is None:
        return rejected(unknown_agent(prompt.agent))
    wanted = spec.tools if prompt.options.tools is None else prompt.options.tools
    unknown = [name for name in wanted if env.tool(prompt.tenant_id, name) is None]
    if unknown:
        message = f"agent {spec.name!r} needs tools that no worker has announced: {', '.join(unknown)}"
        return rejected(TurnError(code="unknown_tool", message=message, retryable=True))
    if (used_up := budget_for(prompt.tenant_id, prompt.thread_id, queued, spec, env)) is not None:
        return rejected(used_up)
    if state is None:
        return open_turn((prompt.tenant_id, prompt.thread_id), queued, spec, env.at)
    if spec.on_busy == "reject":
        return rejected(TurnError(code="busy", message="the thread is in another turn", retryable=True))
    if spec.on_busy == "interrupt":
        return cancel(replace(state, queue=state.queue.preceded_by(queued)), env, "interrupted by another prompt")
    if len(state.queue) >= MAX_QUEUED:
        message = f"{MAX_QUEUED} prompts wait for the thread already"
        return rejected(TurnError(code="busy", message=message, retryable=True))
    if state.queue.bytes + size_of(queued) > MAX_QUEUED_BYTES:
        message = f"more than {MAX_QUEUED_BYTES >> 20} MiB of prompts would wait for the thread"
        return rejected(TurnError(code="busy", message=message, retryable=True))
    return Decision(replace(state, queue=state.queue.appended(queued)))


def _approval(state: ThreadState, approval: ToolApproval, env: Environment) -> Decision:
    phase = state.turn.phase
    if not isinstance(phase, Calling):
        return Decision(state)
    if not approval.approved:
        by = f" by {approval.user_id}" if approval.user_id else ""
        why = f": {approval.reason}" if approval.reason else ""
        return settle_calls(state, [approval.call_id], f"denied{by}{why}", env, is_error=True, waiting="approval")
    approved = [call for call in phase.calls if call.call_id == approval.call_id and call.state == "approval"]
    if not approved:
        return Decision(state)
    if env.at >= state.turn.deadline_at:
        return overdue(state, env)
    call = approved[0]
    tool = env.tool(state.tenant_id, call.name)
    if tool is None:
        return settle_calls(
            state, [call.call_id], f"the tool {call.name!r} is gone", env, is_error=True, waiting="approval"
        )
    running = call.model_copy(update={"state": "running", "deadline_at": call_deadline(tool, state.turn, env.at)})
    calls = [running if each is call else each for each in phase.calls]
    return Decision(state.with_turn(phase=Calling(calls=calls)), (events.tool_called(state, running, env.at),))


def _human_reply(state: ThreadState, reply: HumanReply, env: Environment) -> Decision:
    if not isinstance(state.turn.phase, AwaitingHuman) or state.turn.turn_id != reply.turn_id:
        return Decision(state)
    parts = parts_of(reply.content)
    message = events.human_message(state, parts, reply.user_id, env.at)
    decision = complete(state, env, text=text_of(parts), finish_reason="stop", steps=1)
    return replace(decision, emits=(message, *decision.emits))


def _tick(state: ThreadState, env: Environment) -> Decision:
    turn = state.turn
    if env.at >= turn.deadline_at:
        return overdue(state, env)
    match turn.phase:
        case Thinking(retry_at=datetime() as retry_at) if env.at >= retry_at:
            return retry_due(state, env)
        case Calling(calls=calls):
            late = [call.call_id for call in calls if call.state == "running" and env.at >= call.deadline_at]
            return settle_calls(state, late, "timeout: the tool did not answer in time", env, is_error=True)
        case _:
            return Decision(state)
