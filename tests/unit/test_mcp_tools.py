"""Tools of MCP servers: in process, over stdio, and over streamable HTTP."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from aiohttp.test_utils import unused_port
from mcp import Client
from mcp.server.mcpserver import Context, MCPServer

from services.tools.errors import ToolError, ToolUnavailableError
from services.tools.mcp_tools import McpServer
from services.tools.tool import Tool, ToolContext
from services.tools.tools_file import McpServerEntry

SERVER = """
import os
from mcp.server.mcpserver import MCPServer

server = MCPServer("child")

@server.tool()
def whoami() -> str:
    return os.environ["WHO"]

@server.tool()
def die() -> None:
    os._exit(1)

server.run("stdio")
"""


def in_process() -> MCPServer:
    server = MCPServer("shop")

    @server.tool(description="Adds.")
    def add(left: int, right: int) -> int:
        return left + right

    @server.tool(name="say.hello", structured_output=False)
    def hello(name: str) -> str:
        return f"hello {name}"

    @server.tool()
    def fail() -> str:
        raise ValueError("no such order")

    @server.tool()
    async def slow(context: Context[Any]) -> str:
        await context.report_progress(1, 2, "half")
        return "done"

    @server.tool()
    def hidden() -> None: ...

    return server


class Box:
    """What `on_tools` was given last."""

    def __init__(self) -> None:
        self.tools: dict[str, Tool] = {}
        self.lists = 0

    async def take(self, owner: str, tools: Sequence[Tool]) -> None:
        self.tools = {tool.spec.name: tool for tool in tools}
        self.lists += 1


async def until(condition: Callable[[], bool], *, seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def running(entry: dict[str, Any], **options: Any) -> AsyncIterator[tuple[McpServer, Box]]:
    box = Box()
    server = McpServer(McpServerEntry.model_validate({"name": "shop"} | entry), on_tools=box.take, **options)
    server.start()
    try:
        yield server, box
    finally:
        await server.stop()


async def invoke(tool: Tool, send_progress: Any = lambda message, fraction: None, **arguments: Any) -> Any:
    context = ToolContext("c-1", "default", "t-1", "turn-1", send_progress=send_progress)
    return await tool.bind(arguments, context).call()


async def test_tools_of_a_server_are_told_and_called_under_names_that_models_take() -> None:
    entry = {"url": "http://unused", "prefix": "shop_", "exclude": ["hidden"], "queue": "mcp", "timeout_seconds": 7}
    server = in_process()
    async with running(entry, connect=lambda: Client(server)) as (connection, box):
        assert await connection.listed(timeout_seconds=20)
        assert connection.health().ready
        assert sorted(box.tools) == ["shop_add", "shop_fail", "shop_say_hello", "shop_slow"]
        spec = box.tools["shop_add"].spec
        assert (spec.description, spec.queue, spec.timeout_seconds) == ("Adds.", "mcp", 7)
        assert spec.parameters["required"] == ["left", "right"]
        assert await invoke(box.tools["shop_add"], left=2, right=3) == {"result": 5}
        assert await invoke(box.tools["shop_say_hello"], name="you") == "hello you"


async def test_a_failure_inside_a_tool_is_told_to_the_model() -> None:
    server = in_process()
    async with running({"url": "http://unused"}, connect=lambda: Client(server)) as (connection, box):
        assert await connection.listed(timeout_seconds=20)
        with pytest.raises(ToolError, match="fail"):
            await invoke(box.tools["fail"])
        with pytest.raises(ToolError, match="left"):
            await invoke(box.tools["add"], right=1)


async def test_progress_of_a_server_is_passed_on() -> None:
    server = in_process()
    seen: list[tuple[str | None, float | None]] = []
    async with running({"url": "http://unused"}, connect=lambda: Client(server)) as (connection, box):
        assert await connection.listed(timeout_seconds=20)
        assert await invoke(box.tools["slow"], lambda *each: seen.append(each)) == {"result": "done"}
        await until(lambda: seen == [("half", 0.5)])


async def test_a_new_tool_is_found_without_a_restart() -> None:
    server = in_process()
    async with running({"url": "http://unused"}, connect=lambda: Client(server), refresh_seconds=0.05) as (_, box):
        await until(lambda: "add" in box.tools)

        @server.tool()
        def late() -> None: ...

        await until(lambda: "late" in box.tools)


async def test_a_server_that_is_away_is_named_and_connected_to_when_it_is_back() -> None:
    server = in_process()
    up = asyncio.Event()

    @contextlib.asynccontextmanager
    async def connect() -> AsyncIterator[Client]:
        if not up.is_set():
            raise ConnectionRefusedError("nobody there")
        async with Client(server) as client:
            yield client

    async with running({"url": "http://unused"}, connect=connect) as (connection, box):
        assert not await connection.listed(timeout_seconds=0.1)
        assert connection.health().detail == "ConnectionRefusedError: nobody there"
        up.set()
        await until(lambda: connection.health().ready)
        assert "add" in box.tools


async def test_a_child_is_started_with_its_environment_and_started_again_when_it_dies(tmp_path: Path) -> None:
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    entry = {"command": sys.executable, "args": [str(script)], "env": {"WHO": "me"}}
    async with running(entry) as (connection, box):
        assert await connection.listed(timeout_seconds=30)
        assert await invoke(box.tools["whoami"]) == {"result": "me"}
        with pytest.raises(ToolUnavailableError):
            await invoke(box.tools["die"])
        await until(lambda: box.lists == 2 and connection.health().ready, seconds=30)
        assert await invoke(box.tools["whoami"]) == {"result": "me"}


@contextlib.asynccontextmanager
async def serving(server: MCPServer, port: int) -> AsyncIterator[None]:
    config = uvicorn.Config(server.streamable_http_app(), host="127.0.0.1", port=port, log_level="error", ws="none")
    http = uvicorn.Server(config)
    http.install_signal_handlers = lambda: None  # type: ignore[method-assign]
    task = asyncio.create_task(http.serve())
    await until(lambda: http.started)
    try:
        yield
    finally:
        http.should_exit = http.force_exit = True
        await task


async def test_a_server_is_reached_over_http_and_again_after_it_was_gone() -> None:
    port = unused_port()
    async with running({"url": f"http://127.0.0.1:{port}/mcp"}) as (connection, box):
        async with serving(in_process(), port):
            await until(lambda: connection.health().ready)
            assert await invoke(box.tools["add"], left=2, right=3) == {"result": 5}
        with pytest.raises(ToolUnavailableError):
            await invoke(box.tools["add"], left=2, right=3)
        async with serving(in_process(), port):

            async def answers() -> bool:
                try:
                    return await invoke(box.tools["add"], left=1, right=1) == {"result": 2}
                except (ToolUnavailableError, ToolError):
                    return False

            async with asyncio.timeout(30):
                while not await answers():
                    await asyncio.sleep(0.05)
