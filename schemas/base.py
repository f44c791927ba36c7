"""What every event has in common: strictness, identifiers, times, counts of tokens."""

import hashlib
import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, NewType

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    StringConstraints,
)

DEFAULT_TENANT = "default"

TenantId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
"""A customer. Tenants never see each other's threads, messages or usage."""

ThreadId = Annotated[str, StringConstraints(pattern=r"^[^\s/?#\x00-\x1f\x7f]{1,200}$")]
"""A conversation of a tenant; the key of every record about it."""

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
"""The name of an agent, a tool or a queue."""

Identifier = Annotated[str, StringConstraints(min_length=1, max_length=200)]
"""An identifier given by whoever writes the event; Turnlog's own are UUIDv7 text."""

TurnId = NewType("TurnId", str)
MessageId = NewType("MessageId", str)
CallId = NewType("CallId", str)
PromptId = NewType("PromptId", str)


def _utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("expected a time of the years 1 to 9999 in UTC") from error


def format_time(value: datetime) -> str:
    """RFC 3339 in UTC with microseconds, as every time on the log is written."""
    of_utc = value if value.tzinfo is UTC else value.astimezone(UTC)
    return of_utc.isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


Timestamp = Annotated[
    AwareDatetime,
    AfterValidator(_utc),
    PlainSerializer(format_time, return_type=str, when_used="json"),
]
"""An aware time in UTC; RFC 3339 with microseconds in JSON."""


def format_amount(value: Decimal) -> str:
    """Digits and a point, whatever the size: `1E-7` is no number to many readers."""
    return format(value, "f")


Money = Annotated[Decimal, PlainSerializer(format_amount, return_type=str, when_used="json")]
"""An exact amount; text in JSON, never a float."""

JsonObject = dict[str, JsonValue]

NO_FIELDS: Any = Field(default_factory=dict, json_schema_extra={"default": {}})
"""A default, as `{}`: of that pydantic makes a deep copy for every event, which takes as long as six other fields."""

NO_ITEMS: Any = Field(default_factory=list, json_schema_extra={"default": []})
"""A default, as `[]`."""

GROWING = Field(json_schema_extra={"x-growing": True})
"""Marks a vocabulary to which words may be added: a reader must do something sensible with one it does not know."""


class Model(BaseModel):
    """A frozen document that ignores fields it does not know, so that an old reader survives a new writer."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="null", use_attribute_docstrings=True)


class ThreadEvent(Model):
    """An event of one thread; `thread_id` is also the key of its record."""

    tenant_id: TenantId = DEFAULT_TENANT
    thread_id: ThreadId


class Spec(Model):
    """A named definition on a registry topic. Several versions of a name may exist; the last one applied counts."""

    name: Name
    tenant_id: TenantId | None = None
    """The only tenant that may use it; none means every tenant."""

    @property
    def version(self) -> str:
        """Twelve hex digits of the SHA-256 of the content: the same definition has the same version anywhere."""
        content = self.model_dump(mode="json", exclude={"type"}, exclude_defaults=True)
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


class TokenCounts(Model):
    """Tokens as the provider counts them; cached ones are part of the input, reasoning part of the output."""

    input_tokens: int = Field(default=0, ge=0)
    cached_input_tokens: int = Field(default=0, ge=0)
    output_tokens: int = Field(default=0, ge=0)
    reasoning_tokens: int = Field(default=0, ge=0)

    def __add__(self, other: "TokenCounts") -> "TokenCounts":
        return TokenCounts(
            input_tokens=self.input_tokens + other.input_tokens,
            cached_input_tokens=self.cached_input_tokens + other.cached_input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            reasoning_tokens=self.reasoning_tokens + other.reasoning_tokens,
        )
