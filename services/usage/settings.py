"""Settings of usage."""

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr

from services.runtime.settings import RuntimeSettings


def _http_url(value: SecretStr) -> SecretStr:
    """The client takes any text for a server on localhost, so a wrong one is found here. Empty is unset."""
    try:
        if not value.get_secret_value():
            return value
        parts = urlsplit(value.get_secret_value())
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound:
        raise ValueError("expected http[s]://user:password@host:port/database")
    return value


class UsageSettings(RuntimeSettings):
    """Which ClickHouse holds what was used."""

    clickhouse_url: Annotated[SecretStr, AfterValidator(_http_url)] | None = Field(
        default=None, description="http[s]://user:password@host:port/database of ClickHouse; unset: chDB in process"
    )
    usage_read_seconds: int = Field(
        default=20, ge=1, le=50, description="seconds that one question of usage may take; then it is refused"
    )
    usage_read_rows: int = Field(
        default=1_000_000_000, ge=1, description="rows that one question of usage may read; then it is refused"
    )
    failpoints: str = Field(default="", description="for tests: points at which the process dies, NAME=kill@N")
