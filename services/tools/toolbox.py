"""The tools that a worker has, by name."""

from collections.abc import Iterable

from services.runtime.errors import ConfigurationError
from services.tools.tool import Tool


class Toolbox:
    """Grows while the worker runs: the tools of an MCP server are known once it answers."""

    def __init__(self, tools: Iterable[Tool] = ()) -> None:
        self._tools: dict[str, Tool] = {}
        for tool in tools:
            if tool.spec.name in self._tools:
                raise ConfigurationError(f"two tools are named {tool.spec.name!r}; rename one with @tool(name=...)")
            self._tools[tool.spec.name] = tool

    def get(self, name: str, *, tenant_id: str) -> Tool | None:
        """The tool that a tenant calls by this name, if it may."""
        tool = self._tools.get(name)
        if tool is None or tool.spec.tenant_id not in (None, tenant_id):
            return None
        return tool

    def put(self, tool: Tool) -> None:
        """Adds a tool, or a newer definition of it."""
        self._tools[tool.spec.name] = tool

    def all(self) -> list[Tool]:
        return list(self._tools.values())
