"""`turnlog dead-letters`."""

from collections.abc import AsyncIterator

from rich.console import Console
from rich.table import Table

from schemas.dead_letters import RecordRejected
from schemas.envelope import RecordRejectedError, decode_event, header_map
from schemas.topics import DEAD_LETTERS, MAX_RECORD_BYTES
from services.runtime.errors import ConfigurationError, UnavailableError
from services.runtime.kafka import KafkaClients, KafkaError, Record, TopicPartition
from services.runtime.settings import RuntimeSettings, load_settings

console = Console(highlight=False)


async def show(limit: int) -> None:
    settings = load_settings(RuntimeSettings)
    letters = [letter async for letter in _letters(settings)][-limit:]
    table = Table("id", "when", "by", "record", "reason", "message")
    for letter in letters:
        table.add_row(
            letter.rejection_id,
            letter.rejected_at.isoformat(timespec="seconds"),
            letter.source,
            f"{letter.topic}[{letter.partition}]@{letter.offset}",
            letter.reason,
            letter.message[:80],
        )
    console.print(table)


async def replay(rejection_id: str) -> None:
    """Writes the raw record back, with its key and headers. Raises ConfigurationError when there is no such letter."""
    settings = load_settings(RuntimeSettings)
    found = [letter async for letter in _letters(settings) if letter.rejection_id == rejection_id]
    if not found:
        raise ConfigurationError(f"there is no dead letter {rejection_id!r}: see `turnlog dead-letters list`")
    letter = found[-1]
    producer = KafkaClients(settings, client_id="turnlog-cli").producer()
    await producer.start()
    try:
        written = await producer.send_and_wait(
            letter.topic,
            value=letter.value,
            key=letter.key,
            headers=[(name, value.encode()) for name, value in letter.headers],
        )
    finally:
        await producer.stop()
    console.print(f"written to {letter.topic}[{written.partition}] at offset {written.offset}")


async def _letters(settings: RuntimeSettings) -> AsyncIterator[RecordRejected]:
    consumer = KafkaClients(settings, client_id="turnlog-cli").consumer()
    partition = TopicPartition(settings.topic(DEAD_LETTERS.name), 0)
    try:
        await consumer.start()
    except KafkaError as error:
        await consumer.stop()
        raise UnavailableError(f"no Kafka answers at {settings.bootstrap}") from error
    try:
        consumer.assign([partition])
        await consumer.seek_to_beginning(partition)
        ends: dict[TopicPartition, int] = await consumer.end_offsets([partition])
        while await consumer.position(partition) < ends[partition]:
            batches: dict[TopicPartition, list[Record]] = await consumer.getmany(timeout_ms=200)
            for record in batches.get(partition, []):
                try:
                    yield decode_event(
                        DEAD_LETTERS, record.value, header_map(record.headers), max_bytes=2 * MAX_RECORD_BYTES
                    )
                except RecordRejectedError:
                    continue
    finally:
        await consumer.stop()
