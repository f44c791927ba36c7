"""Documents of the HTTP interfaces: what the gateway answers, and what services ask of memory and usage."""

from typing import Annotated, Generic, Literal, Self, TypeVar
from uuid import UUID

from pydantic import ConfigDict, Field, FiniteFloat, model_validator

from schemas.agents import ContextOptions
from schemas.base import (
    DEFAULT_TENANT,
    NO_FIELDS,
    NO_ITEMS,
    Identifier,
    JsonObject,
    Model,
    Name,
    TenantId,
    ThreadId,
    Timestamp,
    TokenCounts,
)
from schemas.journal import ForkedFrom, MessagePosition, MessageStatus, Role, ThreadStatus
from schemas.parts import Content, Part
from schemas.prompts import TurnOptions

Item = TypeVar("Item")


class Page(Model, Generic[Item]):
    """One page of a list; `next_cursor` is null on the last one."""

    items: list[Item]
    next_cursor: str | None = None


class Problem(Model):
    """RFC 9457 problem document. `type` is stable: clients may branch on it."""

    type: str
    title: str
    status: int
    detail: str | None = None
    instance: str | None = None
    errors: list[JsonObject] | None = None


BEHIND = "urn:turnlog:problem:behind"
"""Type of the problem that what a read must reflect has not been read from the log yet: ask again."""


ThreadOrder = Literal["updated", "created"]
"""Which threads of a list come first: those that changed last, or those that were created last."""


ThreadViewStatus = ThreadStatus | Literal["deleting"]
"""A thread that is being deleted is there until all of its messages are gone."""


class ThreadDeletion(Model):
    """How far the deletion of a thread is: so many of its messages are gone, of so many."""

    removed: int
    total: int


class ThreadView(Model):
    """A thread as memory holds it. `user_id` is whose it is; `users` and `agents` all that took part, as they came.

    `title_message_id` is there while the title is the beginning of that message: nobody has given one. `deletion` is
    there while the status is `deleting`.
    """

    thread_id: ThreadId
    tenant_id: TenantId = DEFAULT_TENANT
    user_id: str | None = None
    users: list[str] = NO_ITEMS
    agents: list[str] = NO_ITEMS
    forked_from: ForkedFrom | None = None
    title: str | None = None
    title_message_id: str | None = None
    summary: str | None = None
    status: ThreadViewStatus = "active"
    deletion: ThreadDeletion | None = None
    metadata: JsonObject = NO_FIELDS
    created_at: Timestamp
    updated_at: Timestamp


PageLimit = Annotated[int, Field(ge=1, le=1000)]


class MessageView(Model):
    """A message as memory holds it. `position` orders the messages of a thread.

    An answer that is `pending`, or `streaming` as its text comes, is behind all others until it is written.
    `appended_at` is there where somebody has said what `created_at` is: it says when the message was written.
    """

    message_id: str
    thread_id: ThreadId
    tenant_id: TenantId = DEFAULT_TENANT
    turn_id: str | None = None
    step: int = 0
    position: int
    role: Role
    status: MessageStatus = "success"
    parts: list[Part]
    text: str
    user_id: str | None = None
    agent: str | None = None
    agent_version: str | None = None
    provider: str | None = None
    model: str | None = None
    usage: TokenCounts | None = None
    latency_ms: int | None = None
    finish_reason: str | None = None
    metadata: JsonObject = NO_FIELDS
    created_at: Timestamp
    appended_at: Timestamp | None = None


class AsOf(Model):
    """What of `messages` an answer must reflect: everything before `min_offset` of `partition`. Without both of them it
    is of what has been read by then."""

    partition: int | None = None
    min_offset: int | None = None

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if (self.partition is None) != (self.min_offset is None):
            raise ValueError("give partition and min_offset, or neither: an offset is one of a partition")
        return self


class ContextRequest(AsOf):
    """Asks memory for the past that a model should see. Messages of `turn_id` come whole, tool messages included.

    Without `query` the turn's own prompt is searched for, without a turn the last message of a user. `preview`:
    somebody has a look, and no turn pays for it.
    """

    tenant_id: TenantId = DEFAULT_TENANT
    thread_id: ThreadId
    turn_id: str | None = None
    user_id: str | None = None
    query: str | None = None
    options: ContextOptions = ContextOptions()
    preview: bool = False
    wait_seconds: float = Field(default=5, ge=0, le=60)


FoundBy = Literal["text", "vector"]
"""What a search goes by: the words of a message, or its meaning."""


class ContextMessage(Model):
    """A message and why it is there. `score` and `found_by` are of the search, also where `reason` is another."""

    message: MessageView
    reason: Literal["recent", "hit", "neighbour", "turn"]
    score: float | None = None
    found_by: list[FoundBy] = NO_ITEMS


class ContextResponse(Model):
    """In thread order. `tokens` is an estimate, and `left_out` how many messages were too many for `max_tokens`.

    `without_vector`: why the search went by words alone though meaning was asked for.
    """

    messages: list[ContextMessage]
    tokens: int = 0
    left_out: int = 0
    without_vector: str | None = None


class ThreadContext(ContextResponse):
    """What a model would see: the agent's instructions, if an agent was named, then the messages."""

    instructions: str | None = None


class ContextHandlerRequest(Model):
    """What a context handler gets: the past as memory has found it, and of the turn what there is so far.

    `messages` say why each is there; those of the reason `turn` come behind whatever the handler answers.
    """

    tenant_id: TenantId = DEFAULT_TENANT
    thread_id: ThreadId
    turn_id: str
    user_id: str | None = None
    agent: Name
    agent_version: str
    instructions: str
    messages: list[ContextMessage]


class HandledMessage(Model):
    """A message as a context handler wants the model to see it: one that it got, changed or not, or one of its own."""

    role: Role
    content: Content


class ContextHandlerAnswer(Model):
    """The past that the model sees, in this order, before the turn's own messages."""

    messages: list[HandledMessage] = Field(max_length=10_000)


class SeenPrompt(Model):
    tenant_id: TenantId = DEFAULT_TENANT
    thread_id: ThreadId
    prompt_id: str


MOST_PROMPTS_ASKED = 1000
"""Prompts of one `SeenRequest`."""


class SeenRequest(Model):
    """Which of these prompts already had a turn, as of `min_offset` of `messages` in `partition`."""

    partition: int
    min_offset: int = 0
    prompts: list[SeenPrompt] = Field(max_length=MOST_PROMPTS_ASKED)
    wait_seconds: float = Field(default=5, ge=0, le=60)


class SeenResponse(Model):
    seen: list[SeenPrompt]


class Highlight(Model):
    """A word of the query in the text of a message: where it begins and ends, in characters (Unicode code points)."""

    start: int
    end: int


class SearchHit(Model):
    """`score` says what is better within one answer: BM25, the cosine, or what both ranks come to."""

    message: MessageView
    score: float
    found_by: list[FoundBy] = NO_ITEMS
    highlights: list[Highlight] = NO_ITEMS


SearchMode = Literal["text", "vector", "hybrid"]
"""By words, by meaning, or by both, fused by rank."""


class SearchPage(Page[SearchHit]):
    """`without_vector`: why a hybrid search went by words alone."""

    without_vector: str | None = None


class ThreadListQuery(Model):
    """Which threads, by their fields; with `q` those whose title or summary match, the best first."""

    user_id: str | None = None
    status: ThreadViewStatus | None = None
    q: str | None = None
    order: ThreadOrder = "updated"
    cursor: str | None = None
    limit: PageLimit = 50


class MessageListQuery(Model):
    """Which messages of a thread, in which direction. Both positions are inclusive.

    Answers that are not written yet come where their `status` is asked for: `pending`, or `streaming` of those the
    ones whose text is coming.
    """

    cursor: str | None = None
    limit: PageLimit = 50
    order: Literal["asc", "desc"] = "asc"
    role: Role | None = None
    status: MessageStatus | None = None
    agent: str | None = None
    turn_id: str | None = None
    exclude_tool: bool = False
    from_position: MessagePosition | None = None
    to_position: MessagePosition | None = None


class SearchQuery(Model):
    """Which messages are looked for, and how. `since` is inclusive, `until` is not."""

    q: str = Field(min_length=1)
    mode: SearchMode = "text"
    user_id: str | None = None
    thread_id: str | None = None
    agent: str | None = None
    role: Role | None = None
    since: Timestamp | None = None
    until: Timestamp | None = None
    score_threshold: FiniteFloat | None = None
    cursor: str | None = None
    limit: PageLimit = 20


class RequestBody(Model):
    """A body that a client sends. Events ignore fields that they don't know; here one is a slip of the pen."""

    model_config = ConfigDict(extra="forbid")


class PromptBody(RequestBody):
    """Body of `POST /v1/threads/{id}/prompts`."""

    agent: Name = "assistant"
    content: Content
    user_id: Identifier | None = None
    team_id: Identifier | None = None
    prompt_id: Identifier | None = None
    options: TurnOptions = TurnOptions()
    metadata: JsonObject = NO_FIELDS


class ThreadAccepted(Model):
    """Answer to a change of a thread, when it is on the log and when every read shows it."""

    thread_id: ThreadId


class ForkAccepted(ThreadAccepted):
    """A new thread, where it is from, and how many messages this request has copied."""

    forked_from: ForkedFrom
    messages: int


class MessagesAccepted(ThreadAccepted):
    """Messages that are appended, in order."""

    message_ids: list[Identifier]


class DeletionAccepted(ThreadAccepted):
    """What is deleted, as it was asked."""

    message_ids: list[Identifier] | None = None
    from_position: MessagePosition | None = None
    to_position: MessagePosition | None = None


class PromptAccepted(Model):
    thread_id: str
    prompt_id: str
    turn_id: str
    partition: int
    offset: int


class RebuildStatus(Model):
    """How far the rebuild of a projection is. `done` and `total` are records, transaction markers among them."""

    state: Literal["none", "running", "done", "cancelled", "failed"]
    done: int = 0
    total: int = 0
    started_at: Timestamp | None = None
    ended_at: Timestamp | None = None
    detail: str = ""


class DocumentFingerprints(Model):
    """Documents of one partition of the journal in memory, each with 16 bytes in hexadecimal of what it holds."""

    items: list[tuple[str, str]]


class AuditedIds(Model):
    point_ids: list[UUID] = Field(max_length=1000)


class AuditedDocument(Model):
    """A document of memory as its engine holds it. `partition` null: nothing says where it is from."""

    point_id: str
    partition: int | None = None
    kind: str
    tenant_id: str
    fingerprint: str
    body: str


class AuditedDocuments(Model):
    items: list[AuditedDocument]


class UsageEnds(Model):
    """The offset of each partition of `usage`, from 0 on, up to which rows are compared."""

    ends: list[int] = Field(min_length=1, max_length=10_000)


class UsageDigest(Model):
    """How many rows come from a stretch of a partition, and the exclusive or of their hashes.

    `beyond`: rows from the end of the comparison on, which are new or from nowhere.
    """

    partition: int
    first: int
    beyond: bool
    rows: int
    hash: int


class UsageDigests(Model):
    """Of usage that occurred from `kept_from` on; null: of all."""

    items: list[UsageDigest]
    kept_from: Timestamp | None = None


class AuditedFacts(Model):
    """Usage by tenant and `usage_id`."""

    facts: list[tuple[str, str]] = Field(max_length=1000)


class AuditedRows(Model):
    """Rows of usage, every value as text, in the order of the table's columns; partition and offset are the last."""

    items: list[list[str | None]]


class UsageConflict(Model):
    """Usage whose `usage_id` came again with other values, at `refused_at`; those from `kept_at` count.

    Places are partition and offset of `usage`. Of `fields`, which differ, `kept` and `refused` are the values as text.
    """

    tenant_id: str
    usage_id: str
    kept_at: tuple[int, int]
    refused_at: tuple[int, int]
    fields: list[str]
    kept: list[str | None]
    refused: list[str | None]


class UsageConflicts(Model):
    items: list[UsageConflict]


class UsageImbalance(Model):
    """Sums of usage that are not those of its rows: by how much, more of it above zero. `group` says which sums."""

    table: str
    tenant_id: str
    starts: str
    group: str
    events: int
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    latency_ms: int


class UsageImbalances(Model):
    items: list[UsageImbalance]


class ComponentHealth(Model):
    ready: bool
    detail: str = ""


class Readiness(Model):
    ready: bool
    components: dict[str, ComponentHealth]
