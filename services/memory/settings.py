"""Settings of memory."""

from typing import Literal

from pydantic import Field, SecretStr, field_validator

from services.runtime.settings import RuntimeSettings, is_http_url

Quantization = Literal["none", "scalar", "binary"]


class MemorySettings(RuntimeSettings):
    """Which Qdrant holds the threads, and what makes vectors of them."""

    qdrant_url: str | None = Field(default=None, description="URL of a Qdrant cluster; unset: the engine in process")
    qdrant_api_key: SecretStr | None = Field(default=None, description="API key of the Qdrant cluster")
    qdrant_collection: str = Field(default="turnlog", description="collection on the cluster, behind the prefix")
    qdrant_shards: int | None = Field(
        default=None, ge=1, description="shards of a collection that is made; unset: as many as the cluster takes"
    )
    qdrant_replicas: int = Field(default=1, ge=1, description="copies of each shard of a collection that is made")
    qdrant_quantization: Quantization = Field(
        default="none",
        description="how vectors are held for searching: `none`, `scalar` (a quarter) or `binary` (1/32)",
    )
    embedding_model: str = Field(
        default="wordllama",
        min_length=1,
        description="what makes vectors: `wordllama` in this process, `none`, or a model of the endpoint",
    )
    embedding_former_model: str | None = Field(
        default=None,
        min_length=1,
        description="the model before: meaning is searched by it until every message has its vector of the new one",
    )
    embedding_base_url: str = Field(
        default="https://api.openai.com/v1", description="base URL of an OpenAI-compatible endpoint with the model"
    )
    embedding_api_key: SecretStr | None = Field(default=None, description="API key of that endpoint")
    embedding_former_base_url: str | None = Field(
        default=None, description="base URL of the endpoint with the former model; unset: the present one"
    )
    embedding_former_api_key: SecretStr | None = Field(
        default=None, description="API key of that endpoint; unset: the present one, at the present endpoint alone"
    )
    failpoints: str = Field(default="", description="for tests: points at which the process dies, NAME=kill@N")

    @field_validator("embedding_base_url", "embedding_former_base_url")
    @classmethod
    def _http_url(cls, value: str | None) -> str | None:
        if value is not None and not is_http_url(value):
            raise ValueError("expected http[s]://host:port/path")
        return value

    @field_validator("qdrant_api_key", "embedding_api_key", "embedding_former_api_key")
    @classmethod
    def _key(cls, value: SecretStr | None) -> SecretStr | None:
        """Without the end of its line, which one that was read from a file has."""
        if value is None:
            return None
        key = value.get_secret_value().strip()
        if not key.isprintable():
            raise ValueError("expected one line without control characters")
        return SecretStr(key)
