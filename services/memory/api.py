"""The HTTP interface of memory: inside the platform only; the gateway is the door."""

from typing import Annotated, Literal, Protocol

from fastapi import FastAPI, Query, Request, Response

from schemas.base import DEFAULT_TENANT, TenantId, Timestamp
from schemas.http import (
    MOST_POSITION,
    ContextRequest,
    ContextResponse,
    MessageView,
    Page,
    Problem,
    SearchMode,
    SearchPage,
    SeenRequest,
    SeenResponse,
    ThreadOrder,
    ThreadView,
)
from schemas.journal import MessageStatus, Role, ThreadStatus
from services.memory.projector import CallView, TurnView
from services.memory.reads import BadCursorError, NotFoundError, Reads
from services.memory.store import Range
from services.runtime.health import ReadinessCheck
from services.runtime.web import install_health, install_problems, problem_response

Limit = Annotated[int, Query(ge=1, le=1000)]
Position = Annotated[int, Query(ge=0, le=MOST_POSITION)]
WAIT_SECONDS = 5.0


class Progress(Protocol):
    """How far the journal has been read."""

    async def wait_for(self, partition: int, min_offset: int, timeout_seconds: float) -> None:
        """Returns when everything before `min_offset` can be read. Raises BehindError after the time-out."""
        ...


def build_api(
    reads: Reads, progress: Progress, check: ReadinessCheck, *, wait_seconds: float = WAIT_SECONDS
) -> FastAPI:
    """Routes over the reads. A GET that names `partition` and `min_offset` waits up to `wait_seconds` for them."""
    app = FastAPI(title="Turnlog memory", docs_url=None, redoc_url=None)
    install_problems(app)
    install_health(app, check)

    async def on_not_found(request: Request, error: Exception) -> Response:
        return problem_response(
            Problem(type="urn:turnlog:problem:not-found", title="Not found", status=404, detail=str(error))
        )

    async def on_bad_cursor(request: Request, error: Exception) -> Response:
        return problem_response(
            Problem(type="urn:turnlog:problem:bad-cursor", title="Bad cursor", status=400, detail=str(error))
        )

    app.add_exception_handler(NotFoundError, on_not_found)
    app.add_exception_handler(BadCursorError, on_bad_cursor)

    async def reflect(partition: int | None, min_offset: int) -> None:
        if partition is not None and min_offset:
            await progress.wait_for(partition, min_offset, wait_seconds)

    @app.post("/context")
    async def context(request: ContextRequest) -> ContextResponse:
        if request.partition is not None:
            await progress.wait_for(request.partition, request.min_offset, request.wait_seconds)
        return await reads.context(request)

    @app.post("/prompts/seen")
    async def seen(request: SeenRequest) -> SeenResponse:
        await progress.wait_for(request.partition, request.min_offset, request.wait_seconds)
        return SeenResponse(seen=await reads.seen(request.prompts))

    @app.get("/threads")
    async def threads(
        tenant_id: TenantId = DEFAULT_TENANT,
        user_id: str | None = None,
        status: ThreadStatus | None = None,
        q: str | None = None,
        order: ThreadOrder = "updated",
        cursor: str | None = None,
        limit: Limit = 50,
    ) -> Page[ThreadView]:
        return await reads.threads(
            tenant_id, user_id=user_id, status=status, query=q, order=order, cursor=cursor, limit=limit
        )

    @app.get("/threads/{thread_id}")
    async def thread(
        thread_id: str, tenant_id: TenantId = DEFAULT_TENANT, partition: int | None = None, min_offset: int = 0
    ) -> ThreadView:
        await reflect(partition, min_offset)
        return await reads.thread(tenant_id, thread_id)

    @app.get("/threads/{thread_id}/messages")
    async def messages(
        thread_id: str,
        tenant_id: TenantId = DEFAULT_TENANT,
        cursor: str | None = None,
        limit: Limit = 50,
        order: Literal["asc", "desc"] = "asc",
        role: Role | None = None,
        status: MessageStatus | None = None,
        agent: str | None = None,
        turn_id: str | None = None,
        exclude_tool: bool = False,
        from_position: Position | None = None,
        to_position: Position | None = None,
        partition: int | None = None,
        min_offset: int = 0,
    ) -> Page[MessageView]:
        await reflect(partition, min_offset)
        page = await reads.messages(
            tenant_id,
            thread_id,
            cursor=cursor,
            limit=limit,
            descending=order == "desc",
            role=role,
            status=status,
            agent=agent,
            turn_id=turn_id,
            exclude_tool=exclude_tool,
            positions=Range(
                above=None if from_position is None else from_position - 1,
                below=None if to_position is None else to_position + 1,
            ),
        )
        if not page.items and cursor is None:
            await reads.thread(tenant_id, thread_id)
        return page

    @app.get("/threads/{thread_id}/messages/{message_id:path}")
    async def message(
        thread_id: str,
        message_id: str,
        tenant_id: TenantId = DEFAULT_TENANT,
        partition: int | None = None,
        min_offset: int = 0,
    ) -> MessageView:
        await reflect(partition, min_offset)
        return await reads.message(tenant_id, thread_id, message_id)

    @app.get("/search")
    async def search(
        q: Annotated[str, Query(min_length=1)],
        tenant_id: TenantId = DEFAULT_TENANT,
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
    ) -> SearchPage:
        return await reads.search(
            tenant_id,
            q,
            mode=mode,
            user_id=user_id,
            thread_id=thread_id,
            agent=agent,
            role=role,
            since=since,
            until=until,
            least=score_threshold,
            cursor=cursor,
            limit=limit,
        )

    @app.get("/turns/{turn_id}")
    async def turn(
        turn_id: str, tenant_id: TenantId = DEFAULT_TENANT, partition: int | None = None, min_offset: int = 0
    ) -> TurnView:
        await reflect(partition, min_offset)
        return await reads.turn(tenant_id, turn_id)

    @app.get("/tool-calls/{call_id}")
    async def tool_call(call_id: str, tenant_id: TenantId = DEFAULT_TENANT) -> CallView:
        return await reads.tool_call(tenant_id, call_id)

    return app
