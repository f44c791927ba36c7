"""Settings of usage."""

from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, model_validator

from services.runtime.settings import RuntimeSettings, is_http_url


def _http_url(value: SecretStr) -> SecretStr:
    """The client takes any text for a server on localhost, so a wrong one is found here. Empty is unset."""
    url = value.get_secret_value()
    if url and not is_http_url(url):
        raise ValueError("expected http[s]://user:password@host:port/database")
    return value


class UsageSettings(RuntimeSettings):
    """Which ClickHouse holds what was used."""

    clickhouse_url: Annotated[SecretStr, AfterValidator(_http_url)] | None = Field(
        default=None, description="http[s]://user:password@host:port/database of ClickHouse; unset: chDB in process"
    )
    clickhouse_cluster: str | None = Field(
        default=None, pattern=r"^\w[\w.-]*$", description="cluster whose nodes keep the tables; unset: one server"
    )
    clickhouse_sharded: bool = Field(
        default=False, description="each shard of the cluster keeps a part of the usage, instead of every node all"
    )
    usage_storage_policy: str | None = Field(
        default=None, pattern=r"^\w+$", description="storage policy of ClickHouse that the tables are moved to"
    )
    usage_cold_days: int | None = Field(
        default=None, ge=1, description="days after which usage moves to the cold volume; unset: never"
    )
    usage_cold_volume: str = Field(
        default="cold", pattern=r"^\w+$", description="volume of the storage policy that old usage moves to"
    )
    usage_keep_months: int | None = Field(
        default=None, ge=1, description="whole months of usage that are kept before the running one; unset: all"
    )
    usage_read_seconds: int = Field(
        default=20, ge=1, le=50, description="seconds that one question of usage may take; then it is refused"
    )
    usage_read_rows: int = Field(
        default=1_000_000_000, ge=1, description="rows that one question of usage may read; then it is refused"
    )
    failpoints: str = Field(default="", description="for tests: points at which the process dies, NAME=kill@N")

    @property
    def clickhouse_database(self) -> str:
        """Of a server. Without a name ClickHouse takes its own default."""
        url = self.clickhouse_url.get_secret_value() if self.clickhouse_url else ""
        return urlsplit(url).path.strip("/") or "default"

    @model_validator(mode="after")
    def _cluster_has_an_address(self) -> Self:
        if self.clickhouse_cluster is not None and self.clickhouse_url is None:
            raise ValueError("TURNLOG_CLICKHOUSE_CLUSTER needs TURNLOG_CLICKHOUSE_URL, of one of its nodes")
        if self.clickhouse_sharded and self.clickhouse_cluster is None:
            raise ValueError("TURNLOG_CLICKHOUSE_SHARDED needs TURNLOG_CLICKHOUSE_CLUSTER, whose shards they are")
        return self
