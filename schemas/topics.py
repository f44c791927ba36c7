"""The topics of Turnlog: names, types, keys, writers, retention. The one place that says all of this."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter

from schemas import (
    agents,
    budgets,
    completions,
    dead_letters,
    deltas,
    invoices,
    journal,
    plans,
    prices,
    prompts,
    tool_calls,
    tools,
    turns,
    usage,
)

MAX_EVENT_BYTES = 1_048_576
"""The largest value that a consumer accepts from outside: 1 MiB."""

MAX_RECORD_BYTES = 4 * MAX_EVENT_BYTES
"""The largest record that a topic takes: room for an event that carries another one."""

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS

TOMBSTONE_MS = HOUR_MS
"""How long a compacted topic keeps tombstones, at least: longer than any reader takes from its beginning to its end."""


@dataclass(frozen=True)
class Topic:
    """A topic as it is created and checked. `retention_ms` None: kept for ever.

    `incoming` tells whom its schemas bind: an incoming topic is open to writers other than Turnlog's services, so they
    say what is accepted; of any other topic they say what a reader will find.
    """

    name: str
    default_type: str
    event: TypeAdapter[Any]
    examples: Sequence[BaseModel]
    writers: str
    retention_ms: int | None = None
    compacted: bool = False
    incoming: bool = False
    keyed_by: Literal["thread", "name", "tenant", "source"] = "thread"

    def config(self) -> Mapping[str, str]:
        """The broker's settings for the topic (Apache Kafka's documentation, "Topic Configs")."""
        common = {"max.message.bytes": str(MAX_RECORD_BYTES)}
        if self.compacted:
            return common | {
                "cleanup.policy": "compact",
                "segment.ms": str(5 * 60_000),
                "segment.bytes": str(16 * 1024 * 1024),
                "min.cleanable.dirty.ratio": "0.1",
                "max.compaction.lag.ms": str(HOUR_MS),
                "delete.retention.ms": str(TOMBSTONE_MS),
            }
        return common | {"cleanup.policy": "delete", "retention.ms": str(self.retention_ms or -1)}


PROMPTS = Topic(
    name="prompts",
    default_type="prompt.submitted",
    event=TypeAdapter(prompts.PromptsEvent),
    examples=prompts.EXAMPLES,
    writers="anyone allowed",
    incoming=True,
)
MESSAGES = Topic(
    name="messages",
    default_type="message.added",
    event=TypeAdapter(journal.JournalEvent),
    examples=journal.EXAMPLES,
    writers="agents, in a transaction",
)
TOOL_CALLS = Topic(
    name="tool-calls",
    default_type="tool.called",
    event=TypeAdapter(tool_calls.ToolCallEvent),
    examples=tool_calls.CALL_EXAMPLES,
    writers="agents, in a transaction",
    retention_ms=7 * DAY_MS,
)
TOOL_RESULTS = Topic(
    name="tool-results",
    default_type="tool.returned",
    event=TypeAdapter(tool_calls.ToolResultEvent),
    examples=tool_calls.RESULT_EXAMPLES,
    writers="tools, or any client",
    incoming=True,
    retention_ms=7 * DAY_MS,
)
COMPLETIONS = Topic(
    name="completions",
    default_type="turn.completed",
    event=TypeAdapter(completions.CompletionEvent),
    examples=completions.EXAMPLES,
    writers="agents, in a transaction",
)
USAGE = Topic(
    name="usage",
    default_type="usage.recorded",
    event=TypeAdapter(usage.UsageEvent),
    examples=usage.EXAMPLES,
    writers="agents, in a transaction; memory and tools for what they spend",
)
DELTAS = Topic(
    name="deltas",
    default_type="text.delta",
    event=TypeAdapter(deltas.DeltaEvent),
    examples=deltas.EXAMPLES,
    writers="agents, outside transactions",
    retention_ms=HOUR_MS,
)
TURNS = Topic(
    name="turns",
    default_type="turn.state",
    event=TypeAdapter(turns.TurnStateEvent),
    examples=turns.EXAMPLES,
    writers="agents, in a transaction",
    compacted=True,
)
AGENTS = Topic(
    name="agents",
    default_type="agent.applied",
    event=TypeAdapter(agents.AgentEvent),
    examples=agents.EXAMPLES,
    writers="gateway, command line",
    incoming=True,
    compacted=True,
    keyed_by="name",
)
TOOLS = Topic(
    name="tools",
    default_type="tool.applied",
    event=TypeAdapter(tools.ToolRegistryEvent),
    examples=tools.EXAMPLES,
    writers="tool workers, gateway, command line",
    incoming=True,
    compacted=True,
    keyed_by="name",
)
PRICES = Topic(
    name="prices",
    default_type="price.applied",
    event=TypeAdapter(prices.PriceEvent),
    examples=prices.EXAMPLES,
    writers="gateway, command line",
    incoming=True,
    compacted=True,
    keyed_by="name",
)
BUDGETS = Topic(
    name="budgets",
    default_type="budget.applied",
    event=TypeAdapter(budgets.BudgetEvent),
    examples=budgets.EXAMPLES,
    writers="gateway, command line; usage for what is spent",
    incoming=True,
    compacted=True,
    keyed_by="name",
)
PLANS = Topic(
    name="plans",
    default_type="plan.applied",
    event=TypeAdapter(plans.PlanEvent),
    examples=plans.EXAMPLES,
    writers="gateway, command line",
    incoming=True,
    compacted=True,
    keyed_by="name",
)
INVOICES = Topic(
    name="invoices",
    default_type="invoice.finalized",
    event=TypeAdapter(invoices.InvoiceEvent),
    examples=invoices.EXAMPLES,
    writers="usage, in a transaction",
    keyed_by="tenant",
)
DEAD_LETTERS = Topic(
    name="dead-letters",
    default_type="record.rejected",
    event=TypeAdapter(dead_letters.DeadLetterEvent),
    examples=dead_letters.EXAMPLES,
    writers="every consumer",
    retention_ms=30 * DAY_MS,
    keyed_by="source",
)

ALL: tuple[Topic, ...] = (
    PROMPTS,
    MESSAGES,
    TOOL_CALLS,
    TOOL_RESULTS,
    COMPLETIONS,
    USAGE,
    DELTAS,
    TURNS,
    AGENTS,
    TOOLS,
    PRICES,
    BUDGETS,
    PLANS,
    INVOICES,
    DEAD_LETTERS,
)


def tool_queue(queue: str | None) -> str:
    """The topic, without prefix, that the calls of a queue go to."""
    return TOOL_CALLS.name if queue is None else f"{TOOL_CALLS.name}.{queue}"


def state_key(tenant_id: str, thread_id: str) -> str:
    """The key of a thread's state: its id, preceded by its tenant unless that is the default one."""
    return thread_id if tenant_id == "default" else f"{tenant_id}/{thread_id}"
