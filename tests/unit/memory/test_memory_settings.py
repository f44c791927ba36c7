"""An address or a key that cannot work stops the start; no key is shown to anybody."""

import pytest

from services.memory.settings import MemorySettings
from services.runtime.errors import ConfigurationError
from services.runtime.settings import load_settings

KEYS = ("embedding_api_key", "embedding_former_api_key", "qdrant_api_key")


@pytest.mark.parametrize("name", ["embedding_base_url", "embedding_former_base_url"])
@pytest.mark.parametrize("url", ["api.openai.com/v1", "http://host:port/v1", "http://[::1", "ftp://host/v1", "http://"])
def test_an_address_that_is_none_of_an_http_server_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, url: str
) -> None:
    monkeypatch.setenv(f"TURNLOG_{name.upper()}", url)
    with pytest.raises(ConfigurationError, match=rf"TURNLOG_{name.upper()}: .*expected http\[s\]://host"):
        load_settings(MemorySettings, _env_file=None)


@pytest.mark.parametrize("name", KEYS)
def test_the_end_of_the_line_that_a_file_of_a_key_has_is_not_of_the_key(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(f"TURNLOG_{name.upper()}", "sk-1\r\n")
    assert getattr(load_settings(MemorySettings, _env_file=None), name).get_secret_value() == "sk-1"


@pytest.mark.parametrize("name", KEYS)
def test_a_key_of_two_lines_is_refused_without_being_repeated(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"TURNLOG_{name.upper()}", "hidden\nhidden")
    with pytest.raises(ConfigurationError, match=f"TURNLOG_{name.upper()}: .*one line") as caught:
        load_settings(MemorySettings, _env_file=None)
    assert "hidden" not in str(caught.value)
