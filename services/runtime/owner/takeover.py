"""Taking a partition. The order is the guarantee; each step has a failpoint.

1. Start the transactional producer: it fences the old owner and settles what that one left open.
2. Only then read the committed offsets: those fetched before could be older than the old owner's last commit.
3. Read the state topic from the floor that the old owner committed to the last stable offset: every open turn with its
   timers, whatever the number of turns that are over.
4. Read the tail of `prompts` before the committed offset: the ids of the prompts that were taken in last.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from schemas.dead_letters import RecordRejected
from schemas.envelope import RecordRejectedError, decode_event, header_map
from schemas.topics import MAX_RECORD_BYTES, MESSAGES, PROMPTS, TOMBSTONE_MS, TOOL_RESULTS, TURNS
from services.runtime.dead_letters import rejected_record
from services.runtime.errors import UnavailableError
from services.runtime.failpoints import Failpoints
from services.runtime.kafka import AIOKafkaConsumer, AIOKafkaProducer, KafkaClients, Record, TopicPartition
from services.runtime.owner.state_log import Written
from services.runtime.settings import RuntimeSettings

log = structlog.get_logger(__name__)

RECENT_PROMPTS = 10_000
"""How many prompts before the committed offset are remembered for duplicates, at most."""

RECENT_BYTES = 16 * 1024 * 1024
"""Of prompts that are read for their ids: where prompts are large, fewer are remembered."""

DECODED_AT_ONCE = 100
"""States that are decoded before the event loop has its turn, and with it the heartbeats of this worker."""

RESTORE_SECONDS = TOMBSTONE_MS / 1000 / 4
"""Longest reading of the state topic: one that takes longer than tombstones are kept may miss that a turn ended."""


@dataclass(frozen=True)
class Taken:
    """A partition in the state in which its last owner left it."""

    partition: int
    producer: AIOKafkaProducer
    prompts_offset: int
    results_offset: int
    """Behind `results`."""
    journal_end: int
    """The end of `messages`: a read that reflects it sees everything the old owner wrote."""
    states: Sequence[Written]
    """What counts on the state topic."""
    rejected: Sequence[RecordRejected]
    """Records of the state topic that are no states. Nobody but an owner should write there."""
    states_end: int
    recent: Sequence[Record]
    """The last prompts that were taken in."""
    results: Sequence[Record]
    """Tool results that nobody has decided yet: they come before any timer that ran out in the meantime."""


async def take_partition(
    partition: int, *, group_id: str, clients: KafkaClients, settings: RuntimeSettings, failpoints: Failpoints
) -> Taken:
    """Takes the partition from whoever owned it. Raises KafkaError or TimeoutError; nothing is held then."""
    prompts, results, turns, messages = (
        TopicPartition(settings.topic(topic.name), partition) for topic in (PROMPTS, TOOL_RESULTS, TURNS, MESSAGES)
    )
    failpoints.hit("takeover.before_fence")
    producer = clients.transactional_producer(f"{group_id}-{partition}")
    await producer.start()
    try:
        failpoints.hit("takeover.after_fence")
        offsets = clients.consumer(group_id=group_id)
        reader = clients.consumer()
        await reader.start()
        try:
            await offsets.start()
            try:
                committed: dict[TopicPartition, int | None] = {
                    tp: await offsets.committed(tp) for tp in (prompts, results, turns)
                }
            finally:
                await offsets.stop()
            failpoints.hit("takeover.after_offsets")
            beginnings: dict[TopicPartition, int] = await reader.beginning_offsets([prompts, results, turns])
            prompts_offset = max(committed[prompts] or 0, beginnings[prompts])
            results_offset = max(committed[results] or 0, beginnings[results])
            ends: dict[TopicPartition, int] = await reader.end_offsets([turns, messages, results])
            floor = max(committed[turns] or 0, beginnings[turns])
            async with asyncio.timeout(RESTORE_SECONDS):
                states = await _read(reader, turns, floor, ends[turns])
            recent = await _read_tail(reader, prompts, beginnings[prompts], prompts_offset)
            waiting = await _read(reader, results, results_offset, ends[results])
            failpoints.hit("takeover.after_restore")
        finally:
            await reader.stop()
        written, rejected = await _latest(states, source=group_id)
        return Taken(
            partition=partition,
            producer=producer,
            prompts_offset=prompts_offset,
            results_offset=max(results_offset, ends[results]),
            journal_end=ends[messages],
            states=written,
            rejected=rejected,
            states_end=ends[turns],
            recent=recent,
            results=waiting,
        )
    except BaseException:
        await producer.stop()
        raise


async def _read(reader: AIOKafkaConsumer, partition: TopicPartition, begin: int, end: int) -> list[Record]:
    """Committed records of [begin, end)."""
    records: list[Record] = []
    if begin >= end:
        return records
    reader.assign([partition])
    reader.seek(partition, begin)
    while await reader.position(partition) < end:
        batches: dict[TopicPartition, list[Record]] = await reader.getmany(timeout_ms=100)
        for batch in batches.values():
            records += [record for record in batch if record.offset < end]
    return records


async def _read_tail(reader: AIOKafkaConsumer, partition: TopicPartition, beginning: int, end: int) -> list[Record]:
    """The last committed records before `end`, backwards in slices that grow, up to a number and a size."""
    tail: list[Record] = []
    size = 0
    begin, step = end, 50
    while begin > max(beginning, end - RECENT_PROMPTS) and size < RECENT_BYTES:
        upper, begin = begin, max(beginning, end - RECENT_PROMPTS, begin - step)
        earlier = await _read(reader, partition, begin, upper)
        tail = [*earlier, *tail]
        size += sum(len(record.value or b"") for record in earlier)
        step *= 4
    return tail


async def _latest(records: Sequence[Record], *, source: str) -> tuple[list[Written], list[RecordRejected]]:
    """The last value of each key, tombstones gone, decoded; and those that are no states of ours.

    Raises UnavailableError for a state of an unknown type: a later release has written it and must go on with it.
    """
    values: dict[bytes, Record] = {}
    for record in records:
        if record.value is None:
            values.pop(record.key or b"", None)
        else:
            values[record.key or b""] = record
    written: list[Written] = []
    rejected: list[RecordRejected] = []

    def reject(record: Record, error: RecordRejectedError) -> None:
        rejected.append(rejected_record(source=source, record=record, error=error, at=datetime.now(UTC)))

    for number, (key, record) in enumerate(values.items()):
        if number % DECODED_AT_ONCE == 0:
            await asyncio.sleep(0)
        try:
            state = decode_event(TURNS, record.value, header_map(record.headers), max_bytes=MAX_RECORD_BYTES)
            written.append(Written(key.decode(), state, record.offset))
        except UnicodeDecodeError as error:
            reject(record, RecordRejectedError("not_an_event", f"the key is not text: {error}"))
        except RecordRejectedError as error:
            if error.reason == "unknown_type":
                place = f"{record.topic}[{record.partition}]@{record.offset}"
                raise UnavailableError(f"{place} is of a type that this release does not know: {error}") from error
            reject(record, error)
    return written, rejected
