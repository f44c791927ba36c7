"""Settings of the agents worker."""

from typing import Literal

from pydantic import Field, SecretStr

from services.runtime.settings import RuntimeSettings


class AgentsSettings(RuntimeSettings):
    """How a worker runs turns and which model it asks by default."""

    agents_port: int = Field(default=0, ge=0, le=65535, description="port of health and metrics; 0: any free one")
    model: str = Field(default="gpt-4.1-mini", min_length=1, description="model of agents that name none")
    model_base_url: str | None = Field(default=None, description="OpenAI-compatible base URL of the default provider")
    model_api_key: SecretStr | None = Field(default=None, description="key of the default provider")
    providers: str | None = Field(default=None, description="table of providers, a JSON or YAML list")
    context_handlers: str | None = Field(
        default=None, description="what agents may name as `context_handler`, a JSON or YAML list"
    )
    model_timeout_seconds: float = Field(default=120, gt=0, description="longest wait for one model call, seconds")
    model_concurrency: int = Field(
        default=256, ge=1, description="calls in flight to the default provider at most, a worker"
    )
    model_client: Literal["lean", "openai"] = Field(
        default="lean", description="what carries calls to the default provider: `lean`, or the `openai` package"
    )
    max_open_turns: int = Field(default=5_000, ge=1, description="open turns at which a worker takes no more in")
    session_timeout_ms: int = Field(
        default=10_000, ge=1_000, le=300_000, description="silence after which a worker's partitions go to others, ms"
    )
    instance_id: str | None = Field(default=None, description="static group membership, one name a worker")
    grace_seconds: float = Field(default=20, ge=0, description="time that model calls get to end on SIGTERM, seconds")
    failpoints: str = Field(default="", description="for tests: points at which the process dies, NAME=kill@N")
