"""Tools of MCP servers (Model Context Protocol), over stdio or streamable HTTP.

One task a server holds its connection, lists its tools, and connects again when it is gone. While it is away its tools
answer `unavailable`, which is tried again as far as the server's entry says.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, cast

import anyio
import httpx2
import structlog
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CONNECTION_CLOSED, INVALID_PARAMS, CallToolResult, RequestParamsMeta, TextContent
from mcp_types import Tool as ListedTool
from pydantic import ValidationError

from schemas.base import JsonObject
from schemas.http import ComponentHealth
from schemas.tools import ToolSpec
from services.runtime.tasks import end_task
from services.tools.errors import InvalidArgumentsError, ToolError, ToolUnavailableError
from services.tools.tool import Invocation, RetryPolicy, Tool, ToolContext
from services.tools.tools_file import McpServerEntry

log = structlog.get_logger(__name__)

REFRESH_SECONDS = 60.0
"""How often an idle server is asked for its tools: finds new ones, and a server that has died."""

CONNECT_SECONDS = 30.0
"""For connecting, the handshake and the list of tools: a server that is started may have to install itself."""

FIRST_DELAY_SECONDS = 0.5
LONGEST_DELAY_SECONDS = 30.0

CALL_ID_META = "turnlog/callId"
"""Where a server finds the idempotency key, in the `_meta` of a call."""

Connect = Callable[[], contextlib.AbstractAsyncContextManager[Client]]
OnTools = Callable[[str, Sequence[Tool]], Awaitable[None]]


class McpServer:
    """One server of the file. `on_tools(name, tools)` is awaited with every list that the server gives."""

    def __init__(
        self,
        entry: McpServerEntry,
        *,
        on_tools: OnTools,
        connect: Connect | None = None,
        refresh_seconds: float = REFRESH_SECONDS,
    ) -> None:
        self.entry = entry
        self._on_tools = on_tools
        self._connect = connect or (lambda: connect_to(entry))
        self._refresh_seconds = refresh_seconds
        self._client: Client | None = None
        self._listed = asyncio.Event()
        self._doubted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._trouble: str | None = "connecting"

    def start(self) -> None:
        """Begins to connect; `listed` tells when the first list is there."""
        self._task = asyncio.create_task(self._hold(), name=f"mcp:{self.entry.name}")

    async def stop(self) -> None:
        await end_task(self._task)

    async def listed(self, *, timeout_seconds: float) -> bool:
        """Whether the server has given its tools within the time."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._listed.wait()
        except TimeoutError:
            return False
        return True

    def health(self) -> ComponentHealth:
        return ComponentHealth(ready=self._trouble is None, detail=self._trouble or "")

    async def call(self, name: str, arguments: JsonObject, context: ToolContext) -> Any:
        """The result of a tool: its structured content, else its text, else its content blocks.

        Raises:
            ToolUnavailableError: the server is away.
            InvalidArgumentsError, ToolError: what the server says.
        """
        client = self._client
        if client is None:
            raise ToolUnavailableError(f"MCP server {self.entry.name} does not answer: {self._trouble}")

        async def report(progress: float, total: float | None, message: str | None) -> None:
            context.progress(message, progress / total if total else None)

        meta = cast("RequestParamsMeta", {CALL_ID_META: context.call_id})
        try:
            result = await client.call_tool(name, arguments, progress_callback=report, meta=meta)
        except MCPError as error:
            if error.code == INVALID_PARAMS:
                raise InvalidArgumentsError(f"invalid arguments for {name}: {error.message}") from error
            self._doubted.set()
            if error.code == CONNECTION_CLOSED:
                raise ToolUnavailableError(f"MCP server {self.entry.name} closed the connection") from error
            raise ToolError(f"MCP server {self.entry.name}: {error.message}") from error
        except (anyio.ClosedResourceError, anyio.BrokenResourceError, httpx2.HTTPError, OSError) as error:
            self._doubted.set()
            raise ToolUnavailableError(f"MCP server {self.entry.name} is gone: {type(error).__name__}") from error
        return _result(result)

    async def _hold(self) -> None:
        delay = FIRST_DELAY_SECONDS
        while True:
            try:
                async with contextlib.AsyncExitStack() as stack:
                    async with asyncio.timeout(CONNECT_SECONDS):
                        client = await stack.enter_async_context(self._connect())
                        await self._take_list(client)
                    self._client, self._trouble, delay = client, None, FIRST_DELAY_SECONDS
                    self._listed.set()
                    await self._watch(client)
            except Exception as error:  # noqa: BLE001 - whatever the server's trouble is, it is connected to again
                self._trouble = _reason(error)
                log.warning("mcp_server_away", server=self.entry.name, reason=self._trouble)
            finally:
                self._client = None
            await asyncio.sleep(delay)
            delay = min(LONGEST_DELAY_SECONDS, delay * 2)

    async def _watch(self, client: Client) -> None:
        """Lists the tools from time to time, and at once after an error: what is gone fails here."""
        while True:
            self._doubted.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._refresh_seconds):
                    await self._doubted.wait()
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._take_list(client)

    async def _take_list(self, client: Client) -> None:
        listed: list[ListedTool] = []
        cursor: str | None = None
        while True:
            page = await client.list_tools(cursor=cursor, cache_mode="refresh")
            listed += page.tools
            cursor = page.next_cursor
            if not cursor:
                break
        tools: list[Tool] = []
        for each in listed:
            if self.entry.wants(each.name):
                try:
                    tools.append(McpTool(self, each))
                except ValidationError as error:
                    reason = error.errors()[0]["msg"]
                    log.warning("mcp_tool_left_out", server=self.entry.name, tool=each.name, reason=reason)
        await self._on_tools(self.entry.name, tools)


class McpTool:
    """A tool of a server, under a name that model APIs take. The server checks the arguments."""

    def __init__(self, server: McpServer, listed: ListedTool) -> None:
        entry = server.entry
        self._server = server
        self._name = listed.name
        self.retry = RetryPolicy(retries=entry.retries)
        self.spec = ToolSpec(
            name=entry.prefix + re.sub(r"[^A-Za-z0-9_-]", "_", listed.name),
            tenant_id=entry.tenant_id,
            description=listed.description or listed.title or "",
            parameters=listed.input_schema,
            queue=entry.queue,
            timeout_seconds=entry.timeout_seconds,
            approval=entry.approval,
        )

    def bind(self, arguments: JsonObject, context: ToolContext) -> Invocation:
        return Invocation(lambda: self._server.call(self._name, arguments, context))


@contextlib.asynccontextmanager
async def connect_to(entry: McpServerEntry) -> AsyncGenerator[Client]:
    """A connection to the server of an entry, closed on leaving; a server that was started is ended."""
    if entry.command is not None:
        server = StdioServerParameters(command=entry.command, args=entry.args, env=entry.env, cwd=entry.cwd)
        async with Client(server) as client:
            yield client
        return
    assert entry.url is not None
    timeout = httpx2.Timeout(CONNECT_SECONDS, read=entry.timeout_seconds + CONNECT_SECONDS)
    async with (
        httpx2.AsyncClient(headers=entry.headers, timeout=timeout) as http,
        Client(streamable_http_client(entry.url, http_client=http)) as client,
    ):
        yield client


def _result(result: CallToolResult) -> Any:
    texts = [block.text for block in result.content if isinstance(block, TextContent)]
    if result.is_error:
        raise ToolError("\n".join(texts) or "the tool failed and said nothing")
    if result.structured_content is not None:
        return result.structured_content
    if len(texts) == len(result.content):
        return "\n".join(texts)
    return [block.model_dump(mode="json", by_alias=True, exclude_none=True) for block in result.content]


def _reason(error: BaseException) -> str:
    """The first cause in a group of errors, as anyio's task groups raise them."""
    cause = error
    while isinstance(cause, BaseExceptionGroup):
        cause = cast("BaseExceptionGroup[BaseException]", cause).exceptions[0]
    return f"{type(cause).__name__}: {cause}"[:500]
