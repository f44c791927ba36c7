"""Records of `prompts` and `tool-results` on their way to `decide`: decoded, routed, deduplicated."""

from collections.abc import Sequence
from datetime import UTC, datetime

from schemas.agents import AgentSpec
from schemas.envelope import RecordRejectedError, decode_event, header_map
from schemas.ids import record_id, turn_id_of
from schemas.incoming import decode_prompts_event
from schemas.prompts import (
    HumanReply,
    MessagesAppend,
    MessagesDelete,
    PromptSubmitted,
    ThreadCreate,
    ThreadDelete,
    ThreadUpdate,
    ToolApproval,
    TurnCancel,
)
from schemas.tool_calls import ToolFailed, ToolProgress, ToolReturned
from schemas.tools import ToolSpec
from schemas.topics import DEAD_LETTERS, PROMPTS, TOOL_RESULTS, state_key
from services.agents.memory import MemoryClient
from services.agents.recent import PromptKey, RecentPrompts, seen_prompt
from services.agents.turn.inputs import CommandArrived, PromptArrived
from services.runtime import metrics
from services.runtime.dead_letters import rejected_record
from services.runtime.kafka import Record, partition_of
from services.runtime.owner.actor import Emit, Prepared
from services.runtime.registry import Registry
from services.runtime.telemetry import traceparent_in

SOURCE = "agents"

PromptsEvent = (
    PromptSubmitted
    | TurnCancel
    | ToolApproval
    | HumanReply
    | ThreadCreate
    | ThreadUpdate
    | ThreadDelete
    | MessagesAppend
    | MessagesDelete
)


class Intake:
    """Prepares the records of the partitions that this worker owns."""

    def __init__(
        self, *, memory: MemoryClient, agents: Registry[AgentSpec], tools: Registry[ToolSpec], partitions: int
    ) -> None:
        self._memory = memory
        self._agents = agents
        self._tools = tools
        self._partitions = partitions
        self._recent: dict[int, RecentPrompts] = {}

    def taken(self, partition: int, recent: Sequence[Record], journal_end: int) -> None:
        """A partition begins: what its last owner took in is seen."""
        window = RecentPrompts()
        window.fill(self._keys(recent), journal_end)
        self._recent[partition] = window

    def partition_of(self, thread_id: str) -> int:
        return partition_of(thread_id, self._partitions)

    async def prepare(self, topic: str, records: Sequence[Record], journal_end: int) -> list[Prepared]:
        """One result a record, in order. Raises UnavailableError while memory or a registry is out of reach."""
        if topic == TOOL_RESULTS.name:
            return [self._tool_result(record) for record in records]
        decoded = [self._decode(record) for record in records]
        await self._know_agents(decoded)
        seen = await self._seen_before(records, decoded)
        recent = self._recent[records[0].partition]
        return [
            event if isinstance(event, Prepared) else self._prompt(record, event, seen, recent, journal_end)
            for record, event in zip(records, decoded, strict=True)
        ]

    def _decode(self, record: Record) -> PromptsEvent | Prepared:
        """The event, or what becomes of a record that is none or that another partition must decide."""
        try:
            event: PromptsEvent = decode_prompts_event(record.value, header_map(record.headers), datetime.now(UTC))
        except RecordRejectedError as error:
            return _rejected(record, error)
        target = partition_of(event.thread_id, self._partitions)
        if target == record.partition:
            return event
        identity = header_map(record.headers).get("ce_id") or _record_id(record)
        if isinstance(event, PromptSubmitted):
            event = event.model_copy(update={"prompt_id": event.prompt_id or _record_id(record)})
        moved = Emit(PROMPTS.name, event, identity, event.thread_id, target)
        return Prepared(record.offset + 1, emits=(moved,), traceparent=_traceparent(record))

    def _prompt(
        self,
        record: Record,
        event: PromptsEvent,
        seen: set[PromptKey],
        recent: RecentPrompts,
        journal_end: int,
    ) -> Prepared:
        following = record.offset + 1
        key = state_key(event.tenant_id, event.thread_id)
        traceparent = _traceparent(record)
        match event:
            case PromptSubmitted():
                identity = _prompt_key(event, record)
                if identity in seen or identity in recent:
                    return Prepared(following)
                recent.add(identity, journal_end)
                prompt_id = identity[2]
                turn_id = turn_id_of(event.tenant_id, event.thread_id, prompt_id)
                arrived = PromptArrived(event, prompt_id, turn_id, record.offset, traceparent)
                return Prepared(following, key, arrived, self._unknown_agent(record, event), traceparent)
            case ThreadCreate() | ThreadUpdate() | ThreadDelete() | MessagesAppend() | MessagesDelete():
                command = CommandArrived(event, _record_id(record))
                return Prepared(following, key, command, traceparent=traceparent)
            case TurnCancel() | ToolApproval() | HumanReply():
                return Prepared(following, key, event)

    def _tool_result(self, record: Record) -> Prepared:
        try:
            event: ToolReturned | ToolFailed | ToolProgress = decode_event(
                TOOL_RESULTS, record.value, header_map(record.headers)
            )
        except RecordRejectedError as error:
            return _rejected(record, error)
        target = partition_of(event.thread_id, self._partitions)
        if target != record.partition:
            identity = header_map(record.headers).get("ce_id") or _record_id(record)
            moved = Emit(TOOL_RESULTS.name, event, identity, event.thread_id, target)
            return Prepared(record.offset + 1, emits=(moved,), traceparent=_traceparent(record))
        return Prepared(record.offset + 1, state_key(event.tenant_id, event.thread_id), event)

    async def _know_agents(self, decoded: Sequence[PromptsEvent | Prepared]) -> None:
        """A prompt may overtake the agent or the tool it names: reads the registries to their ends before judging."""
        unknown_agent = unknown_tool = False
        for event in decoded:
            if isinstance(event, PromptSubmitted):
                spec = self._agents.get(event.agent, tenant_id=event.tenant_id)
                unknown_agent |= spec is None
                names = event.options.tools or (spec.tools if spec else [])
                unknown_tool |= any(self._tools.get(name, tenant_id=event.tenant_id) is None for name in names)
        if unknown_agent:
            await self._agents.catch_up()
        if unknown_agent or unknown_tool:
            await self._tools.catch_up()

    async def _seen_before(
        self, records: Sequence[Record], decoded: Sequence[PromptsEvent | Prepared]
    ) -> set[PromptKey]:
        """Prompts with an id of the sender's own that had a turn longer ago than this worker remembers."""
        partition = records[0].partition
        recent = self._recent[partition]
        asked = [
            key
            for record, event in zip(records, decoded, strict=True)
            if isinstance(event, PromptSubmitted) and event.prompt_id and event.prompt_id != _record_id(record)
            if (key := _prompt_key(event, record)) not in recent
        ]
        if not asked:
            return set()
        seen = await self._memory.seen(partition, recent.asks_since, [seen_prompt(key) for key in asked])
        return {(prompt.tenant_id, prompt.thread_id, prompt.prompt_id) for prompt in seen}

    def _unknown_agent(self, record: Record, event: PromptSubmitted) -> tuple[Emit, ...]:
        if self._agents.get(event.agent, tenant_id=event.tenant_id) is not None:
            return ()
        return _rejected(record, RecordRejectedError("unknown_agent", f"no agent {event.agent!r} is known")).emits

    def _keys(self, records: Sequence[Record]) -> list[PromptKey]:
        keys: list[PromptKey] = []
        for record in records:
            try:
                event: PromptsEvent = decode_prompts_event(record.value, header_map(record.headers), datetime.now(UTC))
            except RecordRejectedError:
                continue
            if isinstance(event, PromptSubmitted):
                keys.append(_prompt_key(event, record))
        return keys


def _prompt_key(event: PromptSubmitted, record: Record) -> PromptKey:
    return event.tenant_id, event.thread_id, event.prompt_id or _record_id(record)


def _record_id(record: Record) -> str:
    return record_id(record.topic, record.partition, record.offset)


def _rejected(record: Record, error: RecordRejectedError) -> Prepared:
    metrics.RECORDS_REJECTED.labels(SOURCE, error.reason).inc()
    letter = rejected_record(source=SOURCE, record=record, error=error, at=datetime.now(UTC))
    emit = Emit(DEAD_LETTERS.name, letter, letter.rejection_id, key=SOURCE, partition=0)
    return Prepared(record.offset + 1, emits=(emit,), traceparent=_traceparent(record))


def _traceparent(record: Record) -> str | None:
    return traceparent_in(header_map(record.headers))
