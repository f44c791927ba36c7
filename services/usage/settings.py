"""Settings of usage."""

from pydantic import Field, SecretStr

from services.runtime.settings import RuntimeSettings


class UsageSettings(RuntimeSettings):
    """Which ClickHouse holds what was used."""

    clickhouse_url: SecretStr | None = Field(
        default=None, description="http[s]://user:password@host:port/database of ClickHouse; unset: chDB in process"
    )
    failpoints: str = Field(default="", description="for tests: points at which the process dies, NAME=kill@N")
