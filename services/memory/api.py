"""The HTTP interface of memory: inside the platform only; the gateway is the door."""

from typing import Annotated, Protocol

from fastapi import FastAPI, Query, Request, Response

from schemas.base import DEFAULT_TENANT, TenantId
from schemas.http import (
    ContextRequest,
    ContextResponse,
    MessageListQuery,
    MessageView,
    Page,
    Problem,
    SearchPage,
    SearchQuery,
    SeenRequest,
    SeenResponse,
    ThreadListQuery,
    ThreadView,
)
from services.memory.projector import CallView, TurnView
from services.memory.reads import BadCursorError, NotFoundError, Reads
from services.memory.store import Range
from services.runtime.errors import BehindError
from services.runtime.health import ReadinessCheck
from services.runtime.web import install_health, install_problems, problem_response

WAIT_SECONDS = 5.0


class ThreadListParameters(ThreadListQuery):
    tenant_id: TenantId = DEFAULT_TENANT


class MessageListParameters(MessageListQuery):
    tenant_id: TenantId = DEFAULT_TENANT
    partition: int | None = None
    min_offset: int = 0


class SearchParameters(SearchQuery):
    tenant_id: TenantId = DEFAULT_TENANT


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
    async def threads(asked: Annotated[ThreadListParameters, Query()]) -> Page[ThreadView]:
        return await reads.threads(
            asked.tenant_id,
            user_id=asked.user_id,
            status=asked.status,
            query=asked.q,
            order=asked.order,
            cursor=asked.cursor,
            limit=asked.limit,
        )

    @app.get("/threads/{thread_id}")
    async def thread(
        thread_id: str, tenant_id: TenantId = DEFAULT_TENANT, partition: int | None = None, min_offset: int = 0
    ) -> ThreadView:
        """One that is being deleted is answered at once: memory reads nothing on until it is gone."""
        if await reads.is_being_deleted(tenant_id, thread_id):
            return await reads.thread(tenant_id, thread_id)
        try:
            await reflect(partition, min_offset)
        except BehindError:
            if not await reads.is_being_deleted(tenant_id, thread_id):
                raise
        return await reads.thread(tenant_id, thread_id)

    @app.get("/threads/{thread_id}/messages")
    async def messages(thread_id: str, asked: Annotated[MessageListParameters, Query()]) -> Page[MessageView]:
        await reflect(asked.partition, asked.min_offset)
        page = await reads.messages(
            asked.tenant_id,
            thread_id,
            cursor=asked.cursor,
            limit=asked.limit,
            descending=asked.order == "desc",
            role=asked.role,
            status=asked.status,
            agent=asked.agent,
            turn_id=asked.turn_id,
            exclude_tool=asked.exclude_tool,
            positions=Range(
                above=None if asked.from_position is None else asked.from_position - 1,
                below=None if asked.to_position is None else asked.to_position + 1,
            ),
        )
        if not page.items:
            await reads.thread(asked.tenant_id, thread_id)
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
    async def search(asked: Annotated[SearchParameters, Query()]) -> SearchPage:
        return await reads.search(
            asked.tenant_id,
            asked.q,
            mode=asked.mode,
            user_id=asked.user_id,
            thread_id=asked.thread_id,
            agent=asked.agent,
            role=asked.role,
            since=asked.since,
            until=asked.until,
            least=asked.score_threshold,
            cursor=asked.cursor,
            limit=asked.limit,
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
