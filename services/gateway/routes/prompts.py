"""`/v1/threads/{id}/prompts`, and what is said to a turn that runs."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from schemas.base import Identifier, ThreadId
from schemas.http import PromptAccepted, PromptBody, RequestBody
from schemas.ids import new_id
from schemas.parts import Content
from schemas.prompts import HumanReply, PromptSubmitted, ToolApproval, TurnCancel
from services.gateway.ports import Ports, PortsDep, TenantDep
from services.gateway.reads import once_known
from services.gateway.sse import begun
from services.gateway.turns import submit, submit_and_stream, submit_and_wait
from services.gateway.upstream import path_of

router = APIRouter(tags=["prompts"])

MAX_WAIT_SECONDS = 300.0


class CancelBody(RequestBody):
    reason: str | None = None
    user_id: Identifier | None = None


class ApprovalBody(RequestBody):
    approved: bool
    user_id: Identifier | None = None
    reason: str | None = None


class ReplyBody(RequestBody):
    content: Content
    user_id: Identifier | None = None


@router.post(
    "/v1/threads/{thread_id}/prompts",
    status_code=202,
    response_model=PromptAccepted,
    responses={
        200: {
            "description": "The terminal event, or everything of the turn",
            "content": {"application/json": {}, "text/event-stream": {}},
        }
    },
)
async def post_prompt(
    thread_id: ThreadId,
    body: PromptBody,
    request: Request,
    ports: PortsDep,
    tenant_id: TenantDep,
    wait: Annotated[float | None, Query(ge=0, le=MAX_WAIT_SECONDS, description="seconds to wait for the end")] = None,
    prefer: Annotated[str | None, Header(description="`wait=30`, as RFC 7240 has it")] = None,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200)] = None,
) -> Response:
    """Submits a prompt. 202 with its ids; with a wait 200 with the terminal event; as an event stream all of it."""
    given = idempotency_key or body.prompt_id
    prompt = PromptSubmitted(
        tenant_id=tenant_id,
        thread_id=thread_id,
        agent=body.agent,
        content=body.content,
        user_id=body.user_id,
        team_id=body.team_id,
        prompt_id=given or new_id(datetime.now(UTC)),
        options=body.options,
        metadata=body.metadata,
    )
    if "text/event-stream" in request.headers.get("accept", ""):
        events = await begun(submit_and_stream(ports, prompt, repeatable=given is not None))
        return StreamingResponse(events, media_type="text/event-stream")
    seconds = wait if wait is not None else _preferred_wait(prefer)
    if seconds:
        accepted, ended = await submit_and_wait(ports, prompt, seconds, repeatable=given is not None)
        if ended is not None:
            return JSONResponse(dict(ended))
    else:
        accepted = await submit(ports, prompt)
    location = f"/v1/{path_of('threads', thread_id, 'events')}"
    return JSONResponse(accepted.model_dump(), status_code=202, headers={"Location": location})


@router.post("/v1/turns/{turn_id}/cancel", status_code=202)
async def cancel_turn(
    turn_id: str, ports: PortsDep, tenant_id: TenantDep, body: CancelBody | None = None
) -> dict[str, Any]:
    """Asks the turn to end. Its terminal event says how it did."""
    turn = await _known(ports, path_of("turns", turn_id), tenant_id)
    asked = body or CancelBody()
    event = TurnCancel(
        tenant_id=tenant_id,
        thread_id=turn["thread_id"],
        turn_id=turn_id,
        user_id=asked.user_id,
        reason=asked.reason,
    )
    await ports.log.submit(event)
    return {"thread_id": turn["thread_id"], "turn_id": turn_id}


@router.post("/v1/tool-calls/{call_id}/approval", status_code=202)
async def approve(call_id: str, body: ApprovalBody, ports: PortsDep, tenant_id: TenantDep) -> dict[str, Any]:
    """Lets a waiting tool call run, or denies it."""
    call = await _known(ports, path_of("tool-calls", call_id), tenant_id)
    event = ToolApproval(
        tenant_id=tenant_id,
        thread_id=call["thread_id"],
        call_id=call_id,
        approved=body.approved,
        user_id=body.user_id,
        reason=body.reason,
    )
    await ports.log.submit(event)
    return {"thread_id": call["thread_id"], "call_id": call_id}


@router.post("/v1/turns/{turn_id}/reply", status_code=202)
async def reply(turn_id: str, body: ReplyBody, ports: PortsDep, tenant_id: TenantDep) -> dict[str, Any]:
    """Answers as the human agent that the turn waits for."""
    turn = await _known(ports, path_of("turns", turn_id), tenant_id)
    event = HumanReply(
        tenant_id=tenant_id,
        thread_id=turn["thread_id"],
        turn_id=turn_id,
        content=body.content,
        user_id=body.user_id,
    )
    await ports.log.submit(event)
    return {"thread_id": turn["thread_id"], "turn_id": turn_id}


async def _known(ports: Ports, path: str, tenant_id: str) -> Any:
    """What memory knows of a turn or a call; waits a little for one that has only just come into being."""
    return await once_known(lambda: ports.memory.get(path, tenant_id=tenant_id))


def _preferred_wait(prefer: str | None) -> float | None:
    found = re.search(r"\bwait=(\d{1,3})\b", prefer or "")
    return min(float(found.group(1)), MAX_WAIT_SECONDS) if found else None
