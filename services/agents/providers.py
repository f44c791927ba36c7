"""The table of model providers, from settings. Pure."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, TypeAdapter, ValidationError

from services.agents.settings import AgentsSettings
from services.runtime.errors import ConfigurationError
from services.runtime.settings import is_http_url

OPENAI_BASE_URL = "https://api.openai.com/v1"

OPENAI_HEADERS = {"OPENAI_ORG_ID": "OpenAI-Organization", "OPENAI_PROJECT_ID": "OpenAI-Project"}
"""Who pays, where one key may spend for several."""

Client = Literal["lean", "openai"]
"""What carries the calls to a provider. `lean`: an aiohttp session by hand; `openai`: the package, at several times the
CPU. A suite holds them equal."""

IDLE_SECONDS = 4.0
"""How long a connection waits for its next call. Common servers (uvicorn, Node.js) close one that was idle for 5 s; a
request that is on its way at that moment would be lost."""

PROBE_CONNECTIONS = 1
"""Beyond those of a provider's calls, so that the question whether it answers waits for none of them."""


class ProviderEntry(BaseModel):
    """One row of `TURNLOG_PROVIDERS`. The key is named, never written there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    base_url: str
    api_key_env: str | None = None
    timeout_seconds: float = Field(default=120, gt=0)
    concurrency: int = Field(default=256, ge=1)
    max_tokens_field: str = "max_completion_tokens"
    client: Client = "lean"


@dataclass(frozen=True, slots=True)
class Provider:
    """A place that answers chat completions. `concurrency`: calls in flight at most, shared fairly by tenants."""

    name: str
    base_url: str
    api_key: SecretStr
    timeout_seconds: float = 120
    concurrency: int = 256
    max_tokens_field: str = "max_completion_tokens"
    client: Client = "lean"
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    """Beyond those that every call has."""


class Providers:
    """Providers by name. `provider/model` picks one; any other model goes, whole, to the default provider."""

    def __init__(self, default: Provider, others: Mapping[str, Provider]) -> None:
        self.default = default
        self._others = {default.name: default, **others}

    def resolve(self, model: str) -> tuple[Provider, str]:
        """The provider of a model and the name it knows the model by."""
        name, separator, rest = model.partition("/")
        provider = self._others.get(name) if separator else None
        return (provider, rest) if provider is not None else (self.default, model)

    def __iter__(self):
        return iter(self._others.values())


def names_a_provider(settings: AgentsSettings, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether somebody has said which default provider to ask, or left it open."""
    return bool(settings.model_base_url or settings.model_api_key or environment.get("OPENAI_API_KEY"))


def providers_from(settings: AgentsSettings, environment: Mapping[str, str] = os.environ) -> Providers:
    """Reads the table. The default provider is `TURNLOG_MODEL_BASE_URL`, or OpenAI with `OPENAI_API_KEY`,
    `OPENAI_ORG_ID` and `OPENAI_PROJECT_ID`.

    Raises:
        ConfigurationError: `TURNLOG_PROVIDERS` is not a list of providers, a base URL is none, or a key can't be sent.
    """
    openai_key = environment.get("OPENAI_API_KEY", "")
    own_key = settings.model_api_key.get_secret_value() if settings.model_api_key else ""
    if settings.model_base_url:
        default = Provider(
            "default",
            _base_url(settings.model_base_url),
            _key("default", own_key or openai_key),
            settings.model_timeout_seconds,
            settings.model_concurrency,
            max_tokens_field="max_tokens",
            client=settings.model_client,
        )
    else:
        default = Provider(
            "openai",
            _base_url(environment.get("OPENAI_BASE_URL", OPENAI_BASE_URL)),
            _key("openai", own_key or openai_key),
            settings.model_timeout_seconds,
            settings.model_concurrency,
            client=settings.model_client,
            headers={
                header: value for name, header in OPENAI_HEADERS.items() if (value := environment.get(name, "").strip())
            },
        )
    others = {
        entry.name: Provider(
            name=entry.name,
            base_url=_base_url(entry.base_url),
            api_key=_key(entry.name, environment.get(entry.api_key_env, "") if entry.api_key_env else ""),
            timeout_seconds=entry.timeout_seconds,
            concurrency=entry.concurrency,
            max_tokens_field=entry.max_tokens_field,
            client=entry.client,
        )
        for entry in _entries(settings.providers)
    }
    return Providers(default, others)


def _base_url(text: str) -> str:
    if not is_http_url(text) or "@" in urlsplit(text).netloc or "?" in text or "#" in text:
        raise ConfigurationError(f"base URL of a provider: expected http(s)://host[:port][/path], got {text!r}")
    return text


def _key(provider: str, text: str) -> SecretStr:
    """A key out of a file often has a line end."""
    key = text.strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigurationError(f"key of provider {provider}: expected printable ASCII, got something else")
    return SecretStr(key)


def _entries(text: str | None) -> list[ProviderEntry]:
    if not text:
        return []
    try:
        rows = yaml.safe_load(text)
        return TypeAdapter(list[ProviderEntry]).validate_json(json.dumps(rows))
    except (yaml.YAMLError, ValidationError) as error:
        raise ConfigurationError(f"TURNLOG_PROVIDERS: expected a list of providers: {error}") from error
