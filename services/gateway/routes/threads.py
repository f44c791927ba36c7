"""`/v1/threads`: threads, their messages, events, context and search."""

from datetime import UTC, datetime
from typing import Annotated, Any, Self

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import Field, field_validator, model_validator

from schemas.agents import ContextOptions
from schemas.base import Identifier, JsonObject, Name, ThreadId
from schemas.http import (
    ContextRequest,
    DeletionAccepted,
    ForkAccepted,
    MessageListQuery,
    MessagesAccepted,
    MessageView,
    Page,
    RequestBody,
    SearchPage,
    SearchQuery,
    ThreadAccepted,
    ThreadContext,
    ThreadListQuery,
    ThreadView,
)
from schemas.ids import new_id
from schemas.journal import ClearedField, ForkedFrom, MessagePosition, ThreadStatus
from schemas.prompts import MessagesAppend, MessagesDelete, NewMessage, ThreadCreate, ThreadDelete, ThreadUpdate
from services.gateway.fanout import BadPositionError, Position
from services.gateway.forks import fork
from services.gateway.ports import Ports, PortsDep, TenantDep
from services.gateway.reads import answers_in_progress, known_thread, once_known, read_thread, thread_if_any
from services.gateway.sse import thread_events
from services.gateway.upstream import path_of
from services.gateway.writes import carry_out, write
from services.runtime.web import problem

router = APIRouter(tags=["threads"])

Wait = Annotated[float | None, Query(ge=0, le=300, description="seconds to wait until reads show it: then 200")]


def _shown(answer: type[ThreadAccepted]) -> dict[int | str, dict[str, Any]]:
    """Of a change: that there is a 200 beside the 202."""
    return {200: {"model": answer, "description": "Every read shows it"}}


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
    """What is left out stays. Null clears; there is always a status. `metadata` is replaced as a whole."""

    title: str | None = None
    summary: str | None = None
    status: ThreadStatus | None = None
    metadata: JsonObject | None = None

    @field_validator("status")
    @classmethod
    def _is_one(cls, value: ThreadStatus | None) -> ThreadStatus | None:
        if value is None:
            raise ValueError("a thread is active or archived: leave the status out for it to stay")
        return value

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("give one of title, summary, status and metadata")
        return self

    @property
    def cleared(self) -> list[ClearedField]:
        clearable: tuple[ClearedField, ...] = ("title", "summary", "metadata")
        return [name for name in clearable if name in self.model_fields_set and getattr(self, name) is None]


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
    """`agent`: whose instructions and context options hold; `options` take the place of these, all of them, as those of
    a prompt do. A search is for the `query`, else for the prompt of `turn_id`, else for what a user has said last.
    Other threads are those of `user_id`, else of the turn's user.
    """

    agent: Name | None = None
    turn_id: Identifier | None = None
    user_id: Identifier | None = None
    query: str | None = None
    options: ContextOptions | None = None


@router.post("/v1/threads", status_code=202, responses=_shown(ThreadAccepted))
async def create_thread(
    body: ThreadBody, response: Response, ports: PortsDep, tenant_id: TenantDep, wait: Wait = None
) -> ThreadAccepted:
    """Creates a thread; one that is only prompted comes into being by itself. 409 where there is one of this id."""
    if body.thread_id is not None and await thread_if_any(ports, tenant_id, body.thread_id) is not None:
        detail = f"thread {body.thread_id!r} is there: change it with PATCH, or name another one, or none"
        raise problem(409, "thread-exists", "Thread exists", detail)
    thread_id = body.thread_id or new_id(datetime.now(UTC))
    fields = body.model_dump(exclude={"thread_id"})
    change = ThreadCreate(tenant_id=tenant_id, thread_id=thread_id, **fields)
    response.status_code = await write(ports, change, wait)
    return ThreadAccepted(thread_id=thread_id)


@router.get("/v1/threads", response_model=Page[ThreadView])
async def list_threads(asked: Annotated[ThreadListQuery, Query()], ports: PortsDep, tenant_id: TenantDep) -> Any:
    """Last changed first, or last created; `q` searches titles and summaries, the best match first."""
    return await ports.memory.get("threads", tenant_id=tenant_id, **asked.model_dump(mode="json"))


@router.get("/v1/threads/{thread_id}", response_model=ThreadView)
async def get_thread(thread_id: ThreadId, ports: PortsDep, tenant_id: TenantDep) -> Any:
    return await read_thread(ports, tenant_id, thread_id)


@router.patch("/v1/threads/{thread_id}", status_code=202, responses=_shown(ThreadAccepted))
async def patch_thread(
    thread_id: ThreadId,
    body: ThreadPatch,
    response: Response,
    ports: PortsDep,
    tenant_id: TenantDep,
    wait: Wait = None,
) -> ThreadAccepted:
    """Changes what is given, and clears what is null.

    404 where there is no such thread; one that was created a moment ago is there.
    """
    await known_thread(ports, tenant_id, thread_id)
    change = ThreadUpdate(tenant_id=tenant_id, thread_id=thread_id, **body.model_dump(), cleared=body.cleared)
    response.status_code = await write(ports, change, wait)
    return ThreadAccepted(thread_id=thread_id)


@router.delete("/v1/threads/{thread_id}", status_code=202, responses=_shown(ThreadAccepted))
async def delete_thread(
    thread_id: ThreadId, response: Response, ports: PortsDep, tenant_id: TenantDep, wait: Wait = None
) -> ThreadAccepted:
    """Ends the turns of the thread, then removes it with its messages.

    It is there until then, if it is long with the status `deleting` and how far that is, and 404 afterwards.
    """
    await known_thread(ports, tenant_id, thread_id)
    response.status_code = await write(ports, ThreadDelete(tenant_id=tenant_id, thread_id=thread_id), wait)
    return ThreadAccepted(thread_id=thread_id)


@router.post("/v1/threads/{thread_id}/fork", status_code=202, responses=_shown(ForkAccepted))
async def fork_thread(
    thread_id: ThreadId,
    response: Response,
    ports: PortsDep,
    tenant_id: TenantDep,
    body: ForkBody | None = None,
    wait: Wait = None,
) -> ForkAccepted:
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
    return ForkAccepted(thread_id=create.thread_id, forked_from=source, messages=copied)


@router.get("/v1/threads/{thread_id}/messages", response_model=Page[MessageView])
async def list_messages(
    thread_id: ThreadId, asked: Annotated[MessageListQuery, Query()], ports: PortsDep, tenant_id: TenantDep
) -> Any:
    """The conversation in order. Shows everything whose completion this gateway has given out.

    `status` `pending` and `streaming` show what open turns have yet to answer, and what has come of it.
    """
    if asked.status in ("pending", "streaming"):
        return await answers_in_progress(ports, tenant_id, thread_id, asked)
    return await read_thread(ports, tenant_id, thread_id, "messages", **asked.model_dump(mode="json"))


@router.post("/v1/threads/{thread_id}/messages", status_code=202, responses=_shown(MessagesAccepted))
async def append_messages(
    thread_id: ThreadId,
    body: AppendBody,
    response: Response,
    ports: PortsDep,
    tenant_id: TenantDep,
    wait: Wait = None,
) -> MessagesAccepted:
    """Adds messages without asking an agent."""
    at = datetime.now(UTC)
    ids = [each.message_id or new_id(at) for each in body.messages]
    messages = [each.model_copy(update={"message_id": named}) for each, named in zip(body.messages, ids, strict=True)]
    change = MessagesAppend(tenant_id=tenant_id, thread_id=thread_id, messages=messages)
    response.status_code = await write(ports, change, wait)
    return MessagesAccepted(thread_id=thread_id, message_ids=ids)


@router.delete(
    "/v1/threads/{thread_id}/messages",
    status_code=202,
    responses=_shown(DeletionAccepted),
    response_model_exclude_none=True,
)
async def delete_messages(
    thread_id: ThreadId,
    body: DeleteBody,
    response: Response,
    ports: PortsDep,
    tenant_id: TenantDep,
    wait: Wait = None,
) -> DeletionAccepted:
    """Removes messages: those of the ids, or those at the positions that are there when it is carried out.

    Ids that are not there are no error; a thread that is not there is a 404.
    """
    await known_thread(ports, tenant_id, thread_id)
    change = MessagesDelete(tenant_id=tenant_id, thread_id=thread_id, **body.model_dump(exclude_none=True))
    response.status_code = await write(ports, change, wait)
    return DeletionAccepted(thread_id=thread_id, **body.model_dump())


@router.get(
    "/v1/threads/{thread_id}/events",
    response_class=StreamingResponse,
    responses={200: {"description": "Server-sent events", "content": {"text/event-stream": {}}}},
)
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
    """What a model would see of the thread, found as for a turn of the agent, and why each message is there.

    Memory gives a worker the context of a thread that is only coming into being: that there is one is asked for here.
    """
    agent = ports.agents.get(body.agent, tenant_id=tenant_id) if body.agent else None
    if body.agent and agent is None:
        raise problem(404, "unknown-agent", "Unknown agent", f"there is no agent {body.agent!r}")
    await read_thread(ports, tenant_id, thread_id)
    turn_user = await _user_of_turn(ports, tenant_id, thread_id, body.turn_id) if body.turn_id else None
    partition, offset = ports.log.journal_position(thread_id)
    request = ContextRequest(
        tenant_id=tenant_id,
        thread_id=thread_id,
        turn_id=body.turn_id,
        user_id=body.user_id or turn_user,
        query=body.query,
        options=body.options or (agent.context if agent else ContextOptions()),
        preview=True,
        partition=partition,
        min_offset=offset,
    )
    found = await ports.memory.post("context", request.model_dump_json())
    return ThreadContext.model_validate({**found, "instructions": agent.instructions if agent else None})


async def _user_of_turn(ports: Ports, tenant_id: str, thread_id: str, turn_id: str) -> str | None:
    """Raises ProblemError: 404 where there is no such turn in the thread."""
    turn = await once_known(lambda: ports.memory.get(path_of("turns", turn_id), tenant_id=tenant_id))
    if turn["thread_id"] != thread_id:
        raise problem(404, "not-found", "Not found", f"there is no turn {turn_id!r} in thread {thread_id!r}")
    return turn["user_id"]


@router.get("/v1/search", response_model=SearchPage)
async def search(asked: Annotated[SearchQuery, Query()], ports: PortsDep, tenant_id: TenantDep) -> Any:
    """Messages that match, best first. `since` is inclusive, `until` is not.

    In one thread it finds everything whose completion this gateway has given out.
    """
    partition, offset = ports.log.journal_position(asked.thread_id) if asked.thread_id is not None else (None, None)
    return await ports.memory.get(
        "search", tenant_id=tenant_id, partition=partition, min_offset=offset, **asked.model_dump(mode="json")
    )
