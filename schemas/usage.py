"""Topic `usage`: what was spent, written in the transaction of the work itself."""

from typing import Annotated, Literal

from pydantic import Field

from schemas.base import (
    DEFAULT_TENANT,
    GROWING,
    NO_FIELDS,
    Identifier,
    JsonObject,
    Name,
    TenantId,
    ThreadId,
    Timestamp,
    TokenCounts,
)

Flag = Annotated[bool, Field(strict=True)]
"""True or false as they stand: a text that looks like one decides about nobody's bill."""


class UsageRecorded(TokenCounts):
    """One unit of usage. `usage_id` is the same on every replay of the same fact."""

    type: Literal["usage.recorded"] = "usage.recorded"
    usage_id: Identifier
    tenant_id: TenantId = DEFAULT_TENANT
    thread_id: ThreadId | None = None
    turn_id: Identifier | None = None
    prompt_id: Identifier | None = None
    user_id: Identifier | None = None
    team_id: Identifier | None = None
    """A group of users of the tenant, as whoever prompts names it."""
    agent: Name | None = None
    agent_version: str | None = None
    step: int = 0
    attempt: int = 1
    kind: Annotated[Literal["completion", "embedding", "image", "tool"], GROWING]
    provider: str | None = None
    model: str | None = None
    tool: Name | None = None
    images: int = Field(default=0, ge=0)
    """Those that are paid by their number and not by tokens."""
    latency_ms: int = 0
    first_token_ms: int | None = None
    outcome: Literal["ok", "error", "lost"] = "ok"
    estimated: Flag = False
    """Whether the token counts are ours because the provider gave none."""
    billable: Flag = True
    completes_turn: Flag = False
    """Whether the turn was completed with this step."""
    metadata: JsonObject = NO_FIELDS
    occurred_at: Timestamp


UsageEvent = UsageRecorded
EXAMPLES = [
    UsageRecorded.model_validate(
        {
            "usage_id": "01990000-0000-7000-8000-000000000004",
            "thread_id": "t-1",
            "turn_id": "01990000-0000-7000-8000-000000000001",
            "prompt_id": "order-17",
            "user_id": "u-1",
            "agent": "assistant",
            "agent_version": "0123456789ab",
            "step": 1,
            "kind": "completion",
            "provider": "default",
            "model": "smollm2-135m",
            "input_tokens": 12,
            "output_tokens": 3,
            "latency_ms": 180,
            "occurred_at": "2026-01-01T12:00:02.000000Z",
        }
    )
]
