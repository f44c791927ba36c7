"""Sends the last block again, as it was: what a process that was killed has left half there becomes whole.

A projection cuts blocks by time, so what it would read next has other bounds. The log is read between the bounds that
the block has on record, and gives the same rows for them each time.
"""

import asyncio

from schemas.envelope import RecordRejectedError
from schemas.topics import USAGE
from services.runtime.errors import ConfigurationError, UnavailableError
from services.runtime.kafka import KafkaClients, KafkaError, Record, TopicPartition
from services.runtime.records import decode_record
from services.runtime.settings import RuntimeSettings
from services.usage.rows import row_of
from services.usage.store import Block, Bounds, Row, UsageStore

READ_SECONDS = 30.0
POLL_MS = 100


async def settle(store: UsageStore, clients: KafkaClients, settings: RuntimeSettings) -> None:
    """Call before anything else is inserted. Of a block that is whole it changes nothing.

    Raises:
        ConfigurationError: The log does not have the records: the table was filled from another one.
        UnavailableError: Kafka or ClickHouse does not answer.
    """
    bounds = await store.unsettled()
    if bounds is None:
        return
    try:
        async with asyncio.timeout(READ_SECONDS):
            rows = await _rows_between(bounds, clients, settings)
    except (TimeoutError, KafkaError) as error:
        raise UnavailableError(f"{settings.topic(USAGE.name)} does not answer for {bounds}: {error}") from error
    await store.insert(Block(bounds.partition, bounds.first, bounds.last, rows))


async def _rows_between(bounds: Bounds, clients: KafkaClients, settings: RuntimeSettings) -> list[tuple[int, Row]]:
    """What the projection made of the records; those that it rejected are on `dead-letters` since then."""
    partition = TopicPartition(settings.topic(USAGE.name), bounds.partition)
    rows: list[tuple[int, Row]] = []
    consumer = clients.consumer()
    try:
        await consumer.start()
        begin = (await consumer.beginning_offsets([partition]))[partition]
        end = (await consumer.end_offsets([partition]))[partition]
        if begin > bounds.first or end <= bounds.last:
            raise ConfigurationError(
                f"{partition.topic}[{partition.partition}] has the offsets {begin} to {end}, and usage's last block "
                f"was read from {bounds.first} to {bounds.last}: it was fed from another Kafka. Set "
                "TURNLOG_KAFKA_BOOTSTRAP to that one, or remove usage's data so that it is rebuilt from this one"
            )
        consumer.assign([partition])
        consumer.seek(partition, bounds.first)
        while await consumer.position(partition) <= bounds.last:
            batches: dict[TopicPartition, list[Record]] = await consumer.getmany(partition, timeout_ms=POLL_MS)
            rows += [
                (record.offset, row)
                for record in batches.get(partition, [])
                if record.offset <= bounds.last and (row := _row_of(record)) is not None
            ]
    finally:
        await consumer.stop()
    return rows


def _row_of(record: Record) -> Row | None:
    try:
        return decode_record(USAGE, record, row_of).event
    except RecordRejectedError:
        return None
