"""The HTTP interface of memory: inside the platform only; the gateway is the door."""

from typing import Annotated, Protocol

from fastapi import FastAPI, Query, Request, Response

from schemas.base import DEFAULT_TENANT, TenantId
from schemas.http import (
    AsOf,
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
from services.memory.cursors import BadCursorError
from services.memory.projector import CallView, TurnView
from services.memory.reads import NotFoundError, Reads
from services.memory.store import Range
from services.runtime.errors import BehindError
from services.runtime.health import ReadinessCheck
from services.runtime.web import install_health, install_problems, problem_response

WAIT_SECONDS = 5.0


class ReadParameters(AsOf):
    """What every GET takes."""

    tenant_id: TenantId = DEFAULT_TENANT


class ThreadListParameters(ThreadListQuery, ReadParameters): ...


class MessageListParameters(MessageListQuery, ReadParameters): ...


class SearchParameters(SearchQuery, ReadParameters): ...


class Progress(Protocol):
    """How far the journal has been read."""

    async def wait_for(self, partition: int, min_offset: int, timeout_seconds: float) -> None:
        """Returns when everything before `min_offset` can be read. Raises BehindError after the time-out."""
        ...


def build_api(
    reads: Reads, progress: Progress, check: ReadinessCheck, *, wait_seconds: float = WAIT_SECONDS
) -> FastAPI:
    """Routes over the reads. Each waits for the position that it is asked for, a GET up to `wait_seconds`."""
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

    async def reflect(asked: AsOf, seconds: float = wait_seconds) -> None:
        if asked.partition is not None and asked.min_offset is not None:
            await progress.wait_for(asked.partition, asked.min_offset, seconds)

    @app.post("/context")
    async def context(request: ContextRequest) -> ContextResponse:
        await reflect(request, request.wait_seconds)
        return await reads.context(request)

    @app.post("/prompts/seen")
    async def seen(request: SeenRequest) -> SeenResponse:
        await progress.wait_for(request.partition, request.min_offset, request.wait_seconds)
        return SeenResponse(seen=await reads.seen(request.prompts))

    @app.get("/threads")
    async def threads(asked: Annotated[ThreadListParameters, Query()]) -> Page[ThreadView]:
        await reflect(asked)
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
    async def thread(thread_id: str, asked: Annotated[ReadParameters, Query()]) -> ThreadView:
        """One that is being deleted is answered at once: memory reads nothing on until it is gone."""
        if await reads.is_being_deleted(asked.tenant_id, thread_id):
            return await reads.thread(asked.tenant_id, thread_id)
        try:
            await reflect(asked)
        except BehindError:
            if not await reads.is_being_deleted(asked.tenant_id, thread_id):
                raise
        return await reads.thread(asked.tenant_id, thread_id)

    @app.get("/threads/{thread_id}/messages")
    async def messages(thread_id: str, asked: Annotated[MessageListParameters, Query()]) -> Page[MessageView]:
        await reflect(asked)
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
    async def message(thread_id: str, message_id: str, asked: Annotated[ReadParameters, Query()]) -> MessageView:
        await reflect(asked)
        return await reads.message(asked.tenant_id, thread_id, message_id)

    @app.get("/search")
    async def search(asked: Annotated[SearchParameters, Query()]) -> SearchPage:
        await reflect(asked)
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
    async def turn(turn_id: str, asked: Annotated[ReadParameters, Query()]) -> TurnView:
        await reflect(asked)
        return await reads.turn(asked.tenant_id, turn_id)

    @app.get("/tool-calls/{call_id}")
    async def tool_call(call_id: str, asked: Annotated[ReadParameters, Query()]) -> CallView:
        await reflect(asked)
        return await reads.tool_call(asked.tenant_id, call_id)

    return app
