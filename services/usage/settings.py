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
    failpoints: str = Field(default="", description="for tests: points at which the process dies, NAME=kill@N")
