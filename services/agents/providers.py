"""The table of model providers, from settings. Pure."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, TypeAdapter, ValidationError

from services.agents.settings import AgentsSettings
from services.runtime.errors import ConfigurationError

OPENAI_BASE_URL = "https://api.openai.com/v1"


class ProviderEntry(BaseModel):
    """One row of `TURNLOG_PROVIDERS`. The key is named, never written there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    base_url: str
    api_key_env: str | None = None
    timeout_seconds: float = Field(default=120, gt=0)
    concurrency: int = Field(default=256, ge=1)
    max_tokens_field: str = "max_completion_tokens"


@dataclass(frozen=True, slots=True)
class Provider:
    """A place that answers chat completions. `concurrency`: calls in flight at most, shared fairly by tenants."""

    name: str
    base_url: str
    api_key: SecretStr
    timeout_seconds: float = 120
    concurrency: int = 256
    max_tokens_field: str = "max_completion_tokens"


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
    """Reads the table. The default provider is `TURNLOG_MODEL_BASE_URL`, or OpenAI with `OPENAI_API_KEY`.

    Raises:
        ConfigurationError: `TURNLOG_PROVIDERS` is not a list of providers.
    """
    openai_key = environment.get("OPENAI_API_KEY", "")
    own_key = settings.model_api_key.get_secret_value() if settings.model_api_key else ""
    if settings.model_base_url:
        default = Provider(
            "default",
            settings.model_base_url,
            SecretStr(own_key or openai_key),
            settings.model_timeout_seconds,
            settings.model_concurrency,
            max_tokens_field="max_tokens",
        )
    else:
        base_url = environment.get("OPENAI_BASE_URL", OPENAI_BASE_URL)
        default = Provider(
            "openai",
            base_url,
            SecretStr(own_key or openai_key),
            settings.model_timeout_seconds,
            settings.model_concurrency,
        )
    others = {
        entry.name: Provider(
            name=entry.name,
            base_url=entry.base_url,
            api_key=SecretStr(environment.get(entry.api_key_env, "") if entry.api_key_env else ""),
            timeout_seconds=entry.timeout_seconds,
            concurrency=entry.concurrency,
            max_tokens_field=entry.max_tokens_field,
        )
        for entry in _entries(settings.providers)
    }
    return Providers(default, others)


def _entries(text: str | None) -> list[ProviderEntry]:
    if not text:
        return []
    try:
        rows = yaml.safe_load(text)
        return TypeAdapter(list[ProviderEntry]).validate_json(json.dumps(rows))
    except (yaml.YAMLError, ValidationError) as error:
        raise ConfigurationError(f"TURNLOG_PROVIDERS: expected a list of providers: {error}") from error
