"""Settings of memory."""

from pydantic import Field, SecretStr

from services.runtime.settings import RuntimeSettings


class MemorySettings(RuntimeSettings):
    """Which Qdrant holds the threads."""

    qdrant_url: str | None = Field(default=None, description="URL of a Qdrant cluster; unset: the engine in process")
    qdrant_api_key: SecretStr | None = Field(default=None, description="API key of the Qdrant cluster")
    qdrant_collection: str = Field(default="turnlog", description="collection on the cluster, behind the prefix")
    failpoints: str = Field(default="", description="for tests: points at which the process dies, NAME=kill@N")
