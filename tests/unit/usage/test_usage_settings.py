"""A ClickHouse address that cannot work stops the start; its password is shown to nobody."""

import pytest

from services.runtime.errors import ConfigurationError
from services.runtime.settings import load_settings
from services.usage.settings import UsageSettings


@pytest.mark.parametrize("url", ["http://user:hidden@host:8123/db", "https://host", "http://[::1]:8123/db"])
def test_an_http_address_is_taken(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("TURNLOG_CLICKHOUSE_URL", url)
    settings = load_settings(UsageSettings, _env_file=None)
    assert settings.clickhouse_url is not None
    assert settings.clickhouse_url.get_secret_value() == url
    assert "hidden" not in repr(settings)


@pytest.mark.parametrize("url", ["secret", "host:8123", "clickhouse://u:secret@host/db", "http://", "http://h:secret/"])
def test_another_address_is_refused_without_being_repeated(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("TURNLOG_CLICKHOUSE_URL", url)
    with pytest.raises(ConfigurationError, match=r"TURNLOG_CLICKHOUSE_URL: .*expected http\[s\]://user") as caught:
        load_settings(UsageSettings, _env_file=None)
    assert "secret" not in str(caught.value)
