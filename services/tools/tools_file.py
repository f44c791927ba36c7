"""The YAML file of HTTP tools and MCP servers, checked as a whole before anything is called.

    http:
      - name: get_order
        description: An order of the shop.
        method: GET
        url: https://shop.example/orders/{order_id}
        headers: {Authorization: "Bearer ${SHOP_TOKEN}"}
        parameters: {type: object, properties: {order_id: {type: string}}, required: [order_id]}
    mcp:
      - name: files
        command: mcp-server-files
        args: ["--read-only"]
        prefix: files_
      - name: tickets
        url: https://tickets.example/mcp
        headers: {Authorization: "Bearer ${TICKETS_TOKEN}"}

`${NAME}` is the environment variable NAME, so that no secret stands in the file. It is replaced in the values of
headers, of the fixed query and of a server's environment; never in what a model gives.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from schemas.base import JsonObject, Name, TenantId
from services.runtime.errors import ConfigurationError

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    queue: Name | None = None
    timeout_seconds: float = Field(default=60, gt=0, le=86_400)
    approval: bool = False
    retries: int = Field(default=0, ge=0, le=20)
    tenant_id: TenantId | None = None


class HttpToolEntry(_Entry):
    """A tool that is one HTTP request. Arguments that the URL does not name go into the query (GET, DELETE) or, as a
    JSON object, into the body."""

    description: str = ""
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    url: str
    headers: dict[str, str] = {}
    query: dict[str, str] = {}
    parameters: JsonObject = {"type": "object", "properties": {}}

    @model_validator(mode="after")
    def _fits(self) -> "HttpToolEntry":
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc or "{" in parts.netloc:
            raise ValueError(f"url: expected http(s)://host/..., with placeholders after the host only; got {self.url}")
        properties = self.parameters.get("properties")
        known = set(properties) if isinstance(properties, dict) else set[str]()
        unknown = set(PLACEHOLDER.findall(self.url)) - known
        if unknown:
            raise ValueError(f"url: {sorted(unknown)} are not among the properties of parameters")
        return self


class McpServerEntry(_Entry):
    """An MCP server, started as a child (`command`, stdio) or reached at `url` (streamable HTTP)."""

    command: str | None = None
    args: list[str] = []
    env: dict[str, str] = {}
    cwd: Path | None = None
    url: str | None = None
    headers: dict[str, str] = {}
    prefix: str = Field(default="", pattern=r"^[A-Za-z0-9_-]{0,32}$")
    include: list[str] | None = None
    exclude: list[str] = []

    @model_validator(mode="after")
    def _reachable(self) -> "McpServerEntry":
        if (self.command is None) == (self.url is None):
            raise ValueError("expected either command or url")
        return self

    def wants(self, tool_name: str) -> bool:
        """Whether a tool of the server is offered to agents."""
        return tool_name not in self.exclude and (self.include is None or tool_name in self.include)


class ToolsFile(BaseModel):
    """What the file holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    http: list[HttpToolEntry] = []
    mcp: list[McpServerEntry] = []


def read_tools_file(path: Path, environment: Mapping[str, str]) -> tuple[ToolsFile, frozenset[str]]:
    """The file, and the secret values in it, which must never be shown.

    Raises:
        ConfigurationError: the file cannot be read, or is wrong; the message names every wrong place.
    """
    try:
        document: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"TURNLOG_TOOLS_FILE: cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"TURNLOG_TOOLS_FILE: {path} is not YAML: {error}") from error
    try:
        raw = ToolsFile.model_validate(document or {})
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(step) for step in problem['loc'])}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_input=False)
        )
        raise ConfigurationError(f"TURNLOG_TOOLS_FILE: {path}: {problems}") from error
    names = set(_variables(raw))
    missing = sorted(names - environment.keys())
    if missing:
        raise ConfigurationError(f"TURNLOG_TOOLS_FILE: {path} names environment variables that are unset: {missing}")
    doubled = _doubled([entry.name for entry in raw.http]) + _doubled([entry.name for entry in raw.mcp])
    if doubled:
        raise ConfigurationError(f"TURNLOG_TOOLS_FILE: {path}: more than one entry is named {doubled}")
    return _filled(raw, environment), frozenset(value for name in names if (value := environment[name]))


def _variables(file: ToolsFile) -> Iterator[str]:
    for entry in file.http:
        for value in (*entry.headers.values(), *entry.query.values()):
            yield from _VARIABLE.findall(value)
    for entry in file.mcp:
        for value in (*entry.headers.values(), *entry.env.values()):
            yield from _VARIABLE.findall(value)


def _filled(file: ToolsFile, environment: Mapping[str, str]) -> ToolsFile:
    def fill(values: dict[str, str]) -> dict[str, str]:
        return {key: _VARIABLE.sub(lambda found: environment[found[1]], text) for key, text in values.items()}

    return ToolsFile(
        http=[each.model_copy(update={"headers": fill(each.headers), "query": fill(each.query)}) for each in file.http],
        mcp=[each.model_copy(update={"headers": fill(each.headers), "env": fill(each.env)}) for each in file.mcp],
    )


def _doubled(names: list[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})
