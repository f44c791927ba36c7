"""Topic `agents`: who can answer. An agent is data; every version of it is kept."""

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from schemas.base import NO_FIELDS, NO_ITEMS, JsonObject, Model, Money, Name, Spec


class MessageRange(Model):
    """How many messages around each hit come along."""

    before: int = Field(default=2, ge=0, le=20)
    after: int = Field(default=1, ge=0, le=20)


class SearchOptions(Model):
    """What else of the thread is looked up for a prompt: by its words, by its meaning, or by both, fused by rank."""

    limit: int = Field(default=10, ge=0, le=100)
    text: bool = True
    vector: bool = False
    message_range: MessageRange = MessageRange()
    other_threads: bool = False
    score_threshold: FiniteFloat | None = None
    """Least score of a hit: of meaning, the cosine from -1 to 1, where `vector` is on; else of text, BM25."""


class ContextOptions(Model):
    """What the model sees of the past."""

    recent_messages: int = Field(default=100, ge=0, le=1000)
    exclude_tool_messages: bool = True
    search: SearchOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of all messages, estimated. First go neighbours, then hits, then recent ones, never the turn's."""


class StopConditions(Model):
    """When a turn ends though the model would go on. Seconds count from the opening of the turn, cost is in USD."""

    max_steps: int = Field(default=10, ge=1, le=1000)
    max_seconds: float = Field(default=600, gt=0)
    max_cost: Money | None = None


class StreamOptions(Model):
    """How deltas are grouped: at most one a `throttle_ms`, cut at words, lines or sentences."""

    throttle_ms: int = Field(default=100, ge=0, le=10_000)
    chunking: Literal["word", "line", "sentence"] = "word"


class RetryPolicy(Model):
    """How often a failed model call is tried again. Backoff doubles from `backoff_seconds`; Retry-After wins."""

    max_attempts: int = Field(default=4, ge=1, le=20)
    backoff_seconds: float = Field(default=0.5, gt=0)
    max_backoff_seconds: float = Field(default=30, gt=0)


class Limits(Model):
    """Limits of one turn that override those of the agent."""

    max_steps: int | None = Field(default=None, ge=1, le=1000)
    max_seconds: float | None = Field(default=None, gt=0)
    max_cost: Money | None = None


ModelRef = Annotated[str, Field(min_length=1, max_length=200)]
"""`provider/model`, or a model of the default provider."""


class AgentSpec(Spec):
    """An agent: instructions, a model, tools, and how its turns run."""

    type: Literal["agent.applied"] = "agent.applied"
    description: str = ""
    kind: Literal["model", "human"] = "model"
    model: ModelRef | None = None
    """None means `TURNLOG_MODEL`, the default of the worker."""
    instructions: str = ""
    tools: list[Name] = NO_ITEMS
    handoffs: list[Name] = NO_ITEMS
    context: ContextOptions = ContextOptions()
    context_handler: Name | None = None
    """What gets the past that was found and says what the model sees of it: one of `TURNLOG_CONTEXT_HANDLERS`."""
    stop: StopConditions = StopConditions()
    call: JsonObject = NO_FIELDS
    """`temperature`, `max_output_tokens` and anything else that the provider takes."""
    retries: RetryPolicy = RetryPolicy()
    fallbacks: list[ModelRef] = NO_ITEMS
    stream: StreamOptions = StreamOptions()
    store: Literal["all", "prompt_and_output", "none"] = "all"
    on_busy: Literal["queue", "reject", "interrupt"] = "queue"
    approval: list[Name] | Literal["all"] = NO_ITEMS
    """Tools whose calls wait for a person."""
    knowledge: list[Name] = NO_ITEMS
    response_schema: JsonObject | None = None


AgentEvent = AgentSpec
EXAMPLES = [AgentSpec(name="assistant", instructions="Answer briefly.", tools=["get_weather"])]
