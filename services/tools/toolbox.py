"""The tools that a worker has, by name."""

from collections.abc import Iterable, Sequence

from services.runtime.errors import ConfigurationError
from services.tools.tool import Tool


class Toolbox:
    """The worker's own tools, and those of others (MCP servers), which come and go while it runs."""

    def __init__(self, tools: Iterable[Tool] = ()) -> None:
        """Raises ConfigurationError when two tools have one name."""
        self._own: dict[str, Tool] = {}
        self._others: dict[str, dict[str, Tool]] = {}
        for tool in tools:
            if tool.spec.name in self._own:
                raise ConfigurationError(f"two tools are named {tool.spec.name!r}: give one of them another name")
            self._own[tool.spec.name] = tool

    def get(self, name: str, *, tenant_id: str) -> Tool | None:
        """The tool that a tenant calls by this name, if it may."""
        tool = self._find(name)
        if tool is None or tool.spec.tenant_id not in (None, tenant_id):
            return None
        return tool

    def replace(self, owner: str, tools: Sequence[Tool]) -> list[str]:
        """Puts the tools of an owner in place of those it had. Returns names that are taken, whose tools are left
        out."""
        self._others.pop(owner, None)
        accepted: dict[str, Tool] = {}
        taken: list[str] = []
        for tool in tools:
            name = tool.spec.name
            if self._find(name) is not None or name in accepted:
                taken.append(name)
            else:
                accepted[name] = tool
        self._others[owner] = accepted
        return taken

    def all(self) -> list[Tool]:
        return [*self._own.values(), *(tool for tools in self._others.values() for tool in tools.values())]

    def _find(self, name: str) -> Tool | None:
        if name in self._own:
            return self._own[name]
        return next((tools[name] for tools in self._others.values() if name in tools), None)
