"""`/v1/threads`: threads, their messages, events, context and search."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import Field, model_validator

from schemas.agents import ContextOptions
from schemas.base import Identifier, JsonObject, Name, ThreadId, Timestamp
from schemas.http import (
    MOST_POSITION,
    ContextRequest,
    MessageView,
    Page,
    RequestBody,
    SearchMode,
    SearchPage,
    ThreadContext,
    ThreadOrder,
    ThreadView,
)
from schemas.ids import new_id
from schemas.journal import ForkedFrom, MessageStatus, Role, ThreadStatus
from schemas.prompts import MessagesAppend, MessagesDelete, NewMessage, ThreadCreate, ThreadDelete, ThreadUpdate
from services.gateway.fanout import BadPositionError, Position
from services.gateway.forks import fork
from services.gateway.ports import PortsDep, TenantDep
from services.gateway.sse import thread_events
from services.gateway.writes import carry_out, message_ids_between, write
from services.runtime.web import problem

router = APIRouter(tags=["threads"])

Limit = Annotated[int, Query(ge=1, le=1000)]
MessagePosition = Annotated[int, Field(ge=0, le=MOST_POSITION)]
Wait = Annotated[float | None, Query(ge=0, le=300, description="seconds to wait until reads show it: then 200")]


class ThreadBody(RequestBody):
    thread_id: ThreadId | None = None
    user_id: Identifier | None = None
    title: str | None = None
    summary: str | None = None
    metadata: JsonObject = {}


class ForkBody(ThreadBody):
    """What is left out is as in the original. Without `message_id` all of its messages are copied."""

    message_id: Identifier | None = None


class ThreadPatch(RequestBody):
    title: str | None = None
    summary: str | None = None
    status: ThreadStatus | None = None
    metadata: JsonObject | None = None


class AppendBody(RequestBody):
    messages: Annotated[list[NewMessage], Field(min_length=1, max_length=1000)]


class DeleteBody(RequestBody):
    """Either ids, or positions of which one may be left out; both are inclusive."""

    message_ids: Annotated[list[Identifier], Field(min_length=1, max_length=1000)] | None = None
    from_position: MessagePosition | None = None
    to_position: MessagePosition | None = None

    @model_validator(mode="after")
    def _ids_or_positions(self) -> Self:
        by_position = self.from_position is not None or self.to_position is not None
        if (self.message_ids is not None) == by_position:
            raise ValueError("give message_ids, or from_position and to_position or one of them")
        return self


class ContextBody(RequestBody):
    """`agent`: whose instructions and context options hold; `options` win over its own, as those of a prompt do."""

    agent: Name | None = None
    user_id: Identifier | None = None
    query: str | None = None
    options: ContextOptions | None = None


@router.post("/v1/threads", status_code=202)
async def create_thread(
    body: ThreadBody, response: Response, ports: PortsDep, tenant_id: TenantDep, wait: Wait = None
) -> dict[str, Any]:
    """Creates a thread; one that is only prompted comes into being by itself."""
    thread_id = body.thread_id or new_id(datetime.now(UTC))
    fields = body.model_dump(exclude={"thread_id"})
    change = ThreadCreate(tenant_id=tenant_id, thread_id=thread_id, **fields)
    response.status_code = await write(ports, change, wait)
    return {"thread_id": thread_id}


@router.get("/v1/threads", response_model=Page[ThreadView])
async def list_threads(
    ports: PortsDep,
    tenant_id: TenantDep,
    user_id: str | None = None,
    status: ThreadStatus | None = None,
    q: str | None = None,
    order: ThreadOrder = "updated",
    cursor: str | None = None,
    limit: Limit = 50,
) -> Any:
    """Last changed first, or last created; `q` searches titles and summaries, the best match first, on one page."""
    return await ports.memory.get(
        "threads",
        tenant_id=tenant_id,
        user_id=user_id,
        status=status,
        q=q,
        order=order,
        cursor=cursor,
        limit=limit,
    )


@router.get("/v1/threads/{thread_id}", response_model=ThreadView)
async def get_thread(thread_id: ThreadId, ports: PortsDep, tenant_id: TenantDep) -> Any:
    partition, offset = ports.log.journal_position(thread_id)
    return await ports.memory.get(f"threads/{thread_id}", tenant_id=tenant_id, partition=partition, min_offset=offset)


@router.patch("/v1/threads/{thread_id}", status_code=202)
async def patch_thread(
    thread_id: ThreadId,
    body: ThreadPatch,
    response: Response,
    ports: PortsDep,
    tenant_id: TenantDep,
    wait: Wait = None,
) -> dict[str, Any]:
    """Changes what is given."""
    change = ThreadUpdate(tenant_id=tenant_id, thread_id=thread_id, **body.model_dump())
    response.status_code = await write(ports, change, wait)
    return {"thread_id": thread_id}


@router.delete("/v1/threads/{thread_id}", status_code=202)
async def delete_thread(
    thread_id: ThreadId, response: Response, ports: PortsDep, tenant_id: TenantDep, wait: Wait = None
) -> dict[str, Any]:
    """Ends the turns of the thread, then removes it with its messages. It is there until then, and 404 afterwards."""
    response.status_code = await write(ports, ThreadDelete(tenant_id=tenant_id, thread_id=thread_id), wait)
    return {"thread_id": thread_id}


@router.post("/v1/threads/{thread_id}/fork", status_code=202)
async def fork_thread(
    thread_id: ThreadId,
    response: Response,
    ports: PortsDep,
    tenant_id: TenantDep,
    body: ForkBody | None = None,
    wait: Wait = None,
) -> dict[str, Any]:
    """A new thread with the messages of this one, up to and with `message_id`. A prompt to it comes behind them all.

    With a `thread_id` of the client's own the same request again finishes what was cut short, and copies nothing twice.
    """
    asked = body or ForkBody()
    source = ForkedFrom(thread_id=thread_id, message_id=asked.message_id)
    create = ThreadCreate(
        tenant_id=tenant_id,
        thread_id=asked.thread_id or new_id(datetime.now(UTC)),
        forked_from=source,
        **asked.model_dump(exclude={"thread_id", "message_id"}),
    )
    response.status_code, copied = await carry_out(ports, fork(ports, tenant_id, source, create), wait)
    return {"thread_id": create.thread_id, "forked_from": source.model_dump(), "messages": copied}


@router.get("/v1/threads/{thread_id}/messages", response_model=Page[MessageView])
async def list_messages(
    thread_id: ThreadId,
    ports: PortsDep,
    tenant_id: TenantDep,
    cursor: str | None = None,
    limit: Limit = 50,
    order: Literal["asc", "desc"] = "asc",
    role: Role | None = None,
    status: MessageStatus | None = None,
    agent: str | None = None,
    turn_id: str | None = None,
    exclude_tool: bool = False,
    from_position: MessagePosition | None = None,
    to_position: MessagePosition | None = None,
) -> Any:
    """The conversation in order. Shows everything whose completion this gateway has given out."""
    partition, offset = ports.log.journal_position(thread_id)
    return await ports.memory.get(
        f"threads/{thread_id}/messages",
        tenant_id=tenant_id,
        cursor=cursor,
        limit=limit,
        order=order,
        role=role,
        status=status,
        agent=agent,
        turn_id=turn_id,
        exclude_tool=exclude_tool,
        from_position=from_position,
        to_position=to_position,
        partition=partition,
        min_offset=offset,
    )


@router.post("/v1/threads/{thread_id}/messages", status_code=202)
async def append_messages(
    thread_id: ThreadId,
    body: AppendBody,
    response: Response,
    ports: PortsDep,
    tenant_id: TenantDep,
    wait: Wait = None,
) -> dict[str, Any]:
    """Adds messages without asking an agent."""
    at = datetime.now(UTC)
    messages = [each.model_copy(update={"message_id": each.message_id or new_id(at)}) for each in body.messages]
    change = MessagesAppend(tenant_id=tenant_id, thread_id=thread_id, messages=messages)
    response.status_code = await write(ports, change, wait)
    return {"thread_id": thread_id, "message_ids": [each.message_id for each in messages]}


@router.delete("/v1/threads/{thread_id}/messages", status_code=202)
async def delete_messages(
    thread_id: ThreadId,
    body: DeleteBody,
    response: Response,
    ports: PortsDep,
    tenant_id: TenantDep,
    wait: Wait = None,
) -> dict[str, Any]:
    """Removes messages, and says which. Ids that are not there are no error.

    By position those that are there now: 1000 messages a record, so that a failure in the middle leaves some removed;
    the same request again removes the rest.
    """
    if body.message_ids is not None:
        batches = [body.message_ids]
    else:
        between = (body.from_position, body.to_position)
        batches = await message_ids_between(ports, tenant_id, thread_id, *between)
    if not batches:
        response.status_code = 200
    for batch in batches:
        change = MessagesDelete(tenant_id=tenant_id, thread_id=thread_id, message_ids=batch)
        response.status_code = await write(ports, change, wait if batch is batches[-1] else None)
    return {"thread_id": thread_id, "message_ids": [each for batch in batches for each in batch]}


@router.get("/v1/threads/{thread_id}/events")
async def stream_thread(
    thread_id: ThreadId,
    request: Request,
    ports: PortsDep,
    tenant_id: TenantDep,
    last_event_id: Annotated[str | None, Header()] = None,
    from_start: bool = False,
) -> StreamingResponse:
    """Everything that happens on the thread, as server-sent events. `Last-Event-ID` resumes on any gateway."""
    try:
        since = Position.parse(last_event_id) if last_event_id else None
    except BadPositionError as error:
        raise problem(400, "bad-last-event-id", "Bad Last-Event-ID", str(error)) from error
    events = thread_events(ports.log, tenant_id, thread_id, since=since, from_start=from_start)
    return StreamingResponse(events, media_type="text/event-stream")


@router.post("/v1/threads/{thread_id}/context")
async def context(thread_id: ThreadId, body: ContextBody, ports: PortsDep, tenant_id: TenantDep) -> ThreadContext:
    """What a model would see of the thread, found as for a turn of the agent, and why each message is there."""
    agent = ports.agents.get(body.agent, tenant_id=tenant_id) if body.agent else None
    if body.agent and agent is None:
        raise problem(404, "unknown-agent", "Unknown agent", f"there is no agent {body.agent!r}")
    partition, offset = ports.log.journal_position(thread_id)
    request = ContextRequest(
        tenant_id=tenant_id,
        thread_id=thread_id,
        user_id=body.user_id,
        query=body.query,
        options=body.options or (agent.context if agent else ContextOptions()),
        partition=partition,
        min_offset=offset,
    )
    found = await ports.memory.post("context", request.model_dump_json())
    return ThreadContext.model_validate({**found, "instructions": agent.instructions if agent else None})


@router.get("/v1/search", response_model=SearchPage)
async def search(
    q: Annotated[str, Query(min_length=1)],
    ports: PortsDep,
    tenant_id: TenantDep,
    mode: SearchMode = "text",
    user_id: str | None = None,
    thread_id: str | None = None,
    agent: str | None = None,
    role: Role | None = None,
    since: Timestamp | None = None,
    until: Timestamp | None = None,
    score_threshold: float | None = None,
    cursor: str | None = None,
    limit: Limit = 20,
) -> Any:
    """Messages that match, best first. `since` is inclusive, `until` is not."""
    return await ports.memory.get(
        "search",
        tenant_id=tenant_id,
        q=q,
        mode=mode,
        user_id=user_id,
        thread_id=thread_id,
        agent=agent,
        role=role,
        since=since and since.isoformat(),
        until=until and until.isoformat(),
        score_threshold=score_threshold,
        cursor=cursor,
        limit=limit,
    )
