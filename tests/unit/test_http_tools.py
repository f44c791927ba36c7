"""HTTP tools against a local server, and the file that defines them."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from services.runtime.errors import ConfigurationError
from services.tools.errors import InvalidArgumentsError, ResultTooLargeError, ToolError, ToolUnavailableError
from services.tools.execution import MAX_RESULT_BYTES
from services.tools.http_tools import HttpTools
from services.tools.tool import Tool, ToolContext
from services.tools.tools_file import HttpToolEntry, read_tools_file

CONTEXT = ToolContext(call_id="c-1", tenant_id="default", thread_id="t-1", turn_id="turn-1")
SECRET = "s3cret-token"
PARAMETERS = {
    "type": "object",
    "properties": {"id": {"type": "string"}, "tags": {"type": "array"}, "deep": {"type": "boolean"}},
    "required": ["id"],
    "additionalProperties": False,
}


@pytest.fixture
async def server() -> AsyncIterator[TestServer]:
    async def echo(request: web.Request) -> web.Response:
        return web.json_response(
            {
                "method": request.method,
                "path": request.raw_path,
                "key": request.headers.get("Idempotency-Key"),
                "authorization": request.headers.get("Authorization"),
                "body": await request.json() if request.can_read_body else None,
            }
        )

    async def status(request: web.Request) -> web.Response:
        headers = {"Retry-After": request.query["after"]} if "after" in request.query else {}
        return web.Response(status=int(request.match_info["id"]), text=f"said with {SECRET}", headers=headers)

    async def kind(request: web.Request) -> web.Response:
        match request.match_info["id"]:
            case "text":
                return web.Response(text="plain")
            case "empty":
                return web.Response(status=204)
            case "false":
                return web.Response(text="{", content_type="application/json")
            case "away":
                raise web.HTTPFound("/echo/x")
            case size:
                return web.Response(text="x" * int(size))

    async def hang(request: web.Request) -> web.Response:
        await asyncio.Event().wait()
        return web.Response()

    application = web.Application()
    application.router.add_route("*", "/echo/{id:.*}", echo)
    application.router.add_get("/status/{id}", status)
    application.router.add_get("/kind/{id}", kind)
    application.router.add_get("/hang/{id}", hang)
    async with TestServer(application) as running:
        yield running


@asynccontextmanager
async def http_tool(url: str, **options: Any) -> AsyncIterator[Tool]:
    entry = HttpToolEntry.model_validate({"name": "it", "url": url, "parameters": PARAMETERS} | options)
    tools = HttpTools([entry], secrets=[SECRET])
    await tools.start()
    try:
        yield tools.tools[0]
    finally:
        await tools.stop()


async def invoke(tool: Tool, **arguments: Any) -> Any:
    return await tool.bind(arguments, CONTEXT).call()


async def test_arguments_go_into_the_path_and_the_query(server: TestServer) -> None:
    url = str(server.make_url("/echo/")) + "{id}?fixed=1"
    async with http_tool(url, query={"key": "a b"}) as tool:
        answer = await invoke(tool, id="a/b?c#d é", tags=["x&y", 2], deep=True)
    assert answer["path"] == "/echo/a%2Fb%3Fc%23d%20%C3%A9?fixed=1&key=a%20b&tags=x%26y&tags=2&deep=true"
    assert (answer["method"], answer["key"], answer["body"]) == ("GET", "c-1", None)


async def test_a_post_sends_the_rest_as_json_and_secrets_are_never_shown(server: TestServer) -> None:
    headers = {"Authorization": f"Bearer {SECRET}"}
    async with http_tool(str(server.make_url("/echo/")) + "{id}", method="POST", headers=headers) as tool:
        answer = await invoke(tool, id="7", deep=False)
    assert (answer["method"], answer["path"], answer["body"]) == ("POST", "/echo/7", {"deep": False})
    assert answer["authorization"] == "Bearer ***"


@pytest.mark.parametrize("value", ["", ".", ".."])
async def test_no_argument_reaches_another_path(server: TestServer, value: str) -> None:
    async with http_tool(str(server.make_url("/echo/")) + "{id}/x") as tool:
        with pytest.raises(InvalidArgumentsError, match="is no URL part"):
            tool.bind({"id": value}, CONTEXT)


async def test_arguments_are_held_against_the_schema() -> None:
    async with http_tool("http://localhost/{id}") as tool:
        with pytest.raises(InvalidArgumentsError) as raised:
            tool.bind({"deep": "yes", "other": 1}, CONTEXT)
    for part in ("'id' is a required property", "deep: 'yes' is not of type 'boolean'", "'other' was unexpected"):
        assert part in str(raised.value)


async def test_text_and_nothing_are_answers_too(server: TestServer) -> None:
    async with http_tool(str(server.make_url("/kind/")) + "{id}") as tool:
        assert await invoke(tool, id="text") == "plain"
        assert await invoke(tool, id="empty") is None


async def test_an_answer_that_is_too_large_is_not_read_to_its_end(server: TestServer) -> None:
    async with http_tool(str(server.make_url("/kind/")) + "{id}") as tool:
        assert len(await invoke(tool, id=str(MAX_RESULT_BYTES))) == MAX_RESULT_BYTES
        with pytest.raises(ResultTooLargeError):
            await invoke(tool, id=str(MAX_RESULT_BYTES + 1))


@pytest.mark.parametrize(("identifier", "said"), [("false", "said JSON"), ("away", "answered 302")])
async def test_false_json_and_redirects_are_errors(server: TestServer, identifier: str, said: str) -> None:
    async with http_tool(str(server.make_url("/kind/")) + "{id}") as tool:
        with pytest.raises(ToolError, match=said):
            await invoke(tool, id=identifier)


@pytest.mark.parametrize("status", ["429", "503"])
async def test_a_passing_failure_is_retryable_and_says_when(server: TestServer, status: str) -> None:
    async with http_tool(str(server.make_url("/status/")) + "{id}", query={"after": "3"}, retries=2) as tool:
        with pytest.raises(ToolUnavailableError) as raised:
            await invoke(tool, id=status)
    assert raised.value.retry_after_seconds == 3
    assert tool.retry.delay_seconds(raised.value, 1) == 3
    assert f"answered {status}: said with ***" in str(raised.value)


async def test_a_date_says_when_too(server: TestServer) -> None:
    async with http_tool(
        str(server.make_url("/status/")) + "{id}", query={"after": "Wed, 21 Oct 2015 07:28:00 GMT"}
    ) as tool:
        with pytest.raises(ToolUnavailableError) as raised:
            await invoke(tool, id="503")
    assert raised.value.retry_after_seconds == 0


async def test_a_lasting_failure_is_not_retryable(server: TestServer) -> None:
    async with http_tool(str(server.make_url("/status/")) + "{id}", retries=2) as tool:
        with pytest.raises(ToolError) as raised:
            await invoke(tool, id="404")
    assert tool.retry.delay_seconds(raised.value, 1) is None
    assert SECRET not in str(raised.value)


async def test_a_host_that_is_not_there_is_unavailable() -> None:
    async with http_tool(f"http://127.0.0.1:{unused_port()}/" + "{id}") as tool:
        with pytest.raises(ToolUnavailableError, match=r"GET 127\.0\.0\.1: Client"):
            await invoke(tool, id="x")


async def test_a_request_can_be_cancelled(server: TestServer) -> None:
    async with http_tool(str(server.make_url("/hang/")) + "{id}") as tool:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(invoke(tool, id="x"), 0.1)


FILE = """
http:
  - name: get_order
    description: An order.
    url: https://shop.example/orders/{id}
    headers: {Authorization: "Bearer ${SHOP_TOKEN}"}
    parameters: {type: object, properties: {id: {type: string}}, required: [id]}
    retries: 2
mcp:
  - name: files
    command: server-files
    args: ["--root", "${NOT_REPLACED}"]
    env: {TOKEN: "${FILES_TOKEN}"}
    prefix: files_
    exclude: [delete]
"""
ENVIRONMENT = {"SHOP_TOKEN": "t-1", "FILES_TOKEN": "t-2"}


def read(tmp_path: Path, text: str, environment: Mapping[str, str] = ENVIRONMENT) -> Any:
    path = tmp_path / "tools.yaml"
    path.write_text(text)
    return read_tools_file(path, environment)


def test_secrets_come_from_the_environment_by_name(tmp_path: Path) -> None:
    file, secrets = read(tmp_path, FILE)
    assert file.http[0].headers == {"Authorization": "Bearer t-1"}
    assert file.mcp[0].env == {"TOKEN": "t-2"}
    assert file.mcp[0].args == ["--root", "${NOT_REPLACED}"]
    assert (file.mcp[0].wants("read"), file.mcp[0].wants("delete")) == (True, False)
    assert secrets == {"t-1", "t-2"}


def test_unset_variables_are_all_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"\['FILES_TOKEN', 'SHOP_TOKEN'\]"):
        read(tmp_path, FILE, {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("http: [", "is not YAML"),
        ("http: [{name: a}]", "http.0.url: Field required"),
        ("http: [{name: a, url: 'ftp://x/y'}]", r"expected http\(s\)://host"),
        ("http: [{name: a, url: 'https://{host}/y'}]", "placeholders after the host only"),
        ("http: [{name: a, url: 'https://x/{id}'}]", "not among the properties"),
        ("mcp: [{name: a}]", "either command or url"),
        ("mcp: [{name: a, url: 'http://x', command: b}]", "either command or url"),
        ("tools: []", "Extra inputs"),
        ("http: [{name: a, url: 'http://x'}, {name: a, url: 'http://y'}]", r"more than one entry is named \['a'\]"),
    ],
)
def test_a_wrong_file_says_where(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        read(tmp_path, text)


def test_a_missing_file_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot read"):
        read_tools_file(tmp_path / "none.yaml", {})


@pytest.mark.parametrize(
    "change", [{"parameters": {"type": "nothing"}}, {"parameters": json.loads('{"type": 3}')}, {"name": "a.b"}]
)
def test_a_tool_that_models_cannot_be_told_of_is_refused(change: dict[str, Any]) -> None:
    entry = HttpToolEntry.model_validate({"name": "it", "url": "http://x/"} | change)
    with pytest.raises(ConfigurationError, match="HTTP tool"):
        HttpTools([entry], secrets=[])
