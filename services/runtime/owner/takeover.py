"""Taking a partition. The order is the guarantee; each step has a failpoint.

1. Start the transactional producer: it fences the old owner and settles what that one left open.
2. Only then read the committed offsets: those fetched before could be older than the old owner's last commit.
3. Read the state topic to the last stable offset: every open turn with its timers.
4. Read the tail of `prompts` before the committed offset: the ids of the prompts that were taken in last.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from schemas.envelope import decode_event, header_map
from schemas.topics import MAX_RECORD_BYTES, MESSAGES, PROMPTS, TOOL_RESULTS, TURNS
from services.runtime.failpoints import Failpoints
from services.runtime.kafka import AIOKafkaConsumer, AIOKafkaProducer, KafkaClients, Record, TopicPartition
from services.runtime.settings import RuntimeSettings

log = structlog.get_logger(__name__)

RECENT_PROMPTS = 10_000
"""How many prompts before the committed offset are remembered for duplicates."""


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
    states: Sequence[Any]
    """Decoded values of the state topic."""
    recent: Sequence[Record]
    """The last prompts that were taken in."""
    results: Sequence[Record]
    """Tool results that nobody has decided yet: they come before any timer that ran out in the meantime."""


async def take_partition(
    partition: int, *, group_id: str, clients: KafkaClients, settings: RuntimeSettings, failpoints: Failpoints
) -> Taken:
    """Takes the partition from whoever owned it. Raises KafkaError; nothing is held then."""
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
                    tp: await offsets.committed(tp) for tp in (prompts, results)
                }
            finally:
                await offsets.stop()
            failpoints.hit("takeover.after_offsets")
            beginnings: dict[TopicPartition, int] = await reader.beginning_offsets([prompts, results])
            prompts_offset = max(committed[prompts] or 0, beginnings[prompts])
            results_offset = max(committed[results] or 0, beginnings[results])
            ends: dict[TopicPartition, int] = await reader.end_offsets([turns, messages, results])
            states = await _read(reader, turns, 0, ends[turns])
            recent = await _read(
                reader, prompts, max(beginnings[prompts], prompts_offset - RECENT_PROMPTS), prompts_offset
            )
            waiting = await _read(reader, results, results_offset, ends[results])
            failpoints.hit("takeover.after_restore")
        finally:
            await reader.stop()
        return Taken(
            partition=partition,
            producer=producer,
            prompts_offset=prompts_offset,
            results_offset=max(results_offset, ends[results]),
            journal_end=ends[messages],
            states=_latest(states),
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


def _latest(records: Sequence[Record]) -> list[Any]:
    """The last value of each key, tombstones gone, decoded. The topic is ours: what it holds is valid."""
    values: dict[bytes, Record] = {}
    for record in records:
        if record.value is None:
            values.pop(record.key or b"", None)
        else:
            values[record.key or b""] = record
    return [
        decode_event(TURNS, record.value, header_map(record.headers), max_bytes=MAX_RECORD_BYTES)
        for record in values.values()
    ]
