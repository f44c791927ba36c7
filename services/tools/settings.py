"""Settings of the tools worker."""

from pathlib import Path

from pydantic import Field

from services.runtime.settings import RuntimeSettings


class ToolsSettings(RuntimeSettings):
    """Which tools a worker has and how many calls it runs at once."""

    tools_port: int = Field(default=0, ge=0, le=65535, description="port of health and metrics; 0: any free one")
    tools_modules: str = Field(
        default="services.tools.sample",
        description="comma list of Python modules, or paths of .py files, that hold tools",
    )
    tools_file: Path | None = Field(default=None, description="YAML file of HTTP tools and MCP servers")
    tools_concurrency: int = Field(default=32, ge=1, le=10_000, description="calls that a worker runs at once")
    tools_grace_seconds: float = Field(
        default=20, ge=0, description="time that running calls get to end on SIGTERM, seconds"
    )
    tools_session_timeout_ms: int = Field(
        default=10_000, ge=1_000, le=300_000, description="silence after which a worker's calls go to others, ms"
    )
    failpoints: str = Field(default="", description="for tests: points at which the process dies, NAME=kill@N")
