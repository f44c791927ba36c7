"""`turnlog dead-letters`."""

from collections.abc import AsyncIterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from schemas.dead_letters import RecordRejected
from schemas.envelope import RecordRejectedError, decode_event, header_map
from schemas.topics import DEAD_LETTERS, MAX_RECORD_BYTES
from services.runtime.errors import ConfigurationError, UnavailableError
from services.runtime.kafka import KafkaClients, KafkaError, Record, TopicPartition
from services.runtime.settings import RuntimeSettings, load_settings

console = Console(highlight=False, soft_wrap=True)


SHOWN_BYTES = 4_000


async def listing(limit: int, *, topic: str | None, reason: str | None, as_json: bool) -> None:
    """The latest ones, each once however often it was written."""
    settings = load_settings(RuntimeSettings)
    wanted = [
        letter
        async for letter in _letters(settings)
        if topic in (None, letter.topic) and reason in (None, letter.reason)
    ]
    letters = list({letter.rejection_id: letter for letter in wanted}.values())
    if as_json:
        for letter in letters[-limit:]:
            console.out(letter.model_dump_json(exclude_none=True), highlight=False)
        return
    table = Table("id", "when", "by", "record", "reason", "message")
    for letter in letters[-limit:]:
        table.add_row(
            letter.rejection_id,
            letter.rejected_at.isoformat(timespec="seconds"),
            letter.source,
            _place(letter),
            letter.reason,
            Text(letter.message[:80]),
        )
    console.print(table)
    if len(letters) > limit:
        console.print(f"the latest {limit} of {len(letters)}; --limit shows more")


async def show(rejection_id: str) -> None:
    """Everything about one, its raw bytes too. Raises ConfigurationError when there is no such letter."""
    letter = await _letter(load_settings(RuntimeSettings), rejection_id)
    rows = {
        "rejected": f"{letter.rejected_at.isoformat()} by {letter.source}",
        "record": _place(letter),
        "reason": letter.reason,
        "message": letter.message,
        "key": _readable(letter.key),
        **{f"header {name}": value for name, value in letter.headers},
        "value": _readable(letter.value),
    }
    if letter.cut:
        rows["cut"] = "too large to be carried whole: this is its beginning, all of it is at its position"
    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        table.add_row(name, Text(value))
    console.print(table)


async def replay(rejection_ids: Sequence[str]) -> None:
    """Writes the raw records back, each with its key and headers.

    Raises ConfigurationError when there is no such letter, and then writes none.
    """
    settings = load_settings(RuntimeSettings)
    clients = KafkaClients(settings, client_id="turnlog-cli")
    letters = [await _letter(settings, each) for each in rejection_ids]
    for letter in letters:
        if letter.cut:
            raise ConfigurationError(
                f"dead letter {letter.rejection_id} holds the beginning of its record alone: read the record at "
                f"{_place(letter)} and publish it in parts that a consumer takes"
            )
    async with clients.producer() as producer:
        for letter in letters:
            written = await producer.send_and_wait(
                letter.topic,
                value=letter.value,
                key=letter.key,
                headers=[(name, value.encode()) for name, value in letter.headers],
            )
            console.print(f"written to {letter.topic}[{written.partition}]@{written.offset}", markup=False)


def _place(letter: RecordRejected) -> str:
    return f"{letter.topic}[{letter.partition}]@{letter.offset}"


def _readable(raw: bytes | None) -> str:
    """Text where it is text, else Python's notation of the bytes; the beginning of what is long."""
    if raw is None:
        return "none"
    shown = raw[:SHOWN_BYTES]
    try:
        text = shown.decode()
    except UnicodeDecodeError:
        text = str(shown)
    text = text if text.isprintable() else repr(text)
    return f"{text} ... {len(raw)} bytes" if len(raw) > len(shown) else text


async def _letter(settings: RuntimeSettings, rejection_id: str) -> RecordRejected:
    found = [letter async for letter in _letters(settings) if letter.rejection_id == rejection_id]
    if not found:
        raise ConfigurationError(f"there is no dead letter {rejection_id!r}: see `turnlog dead-letters list`")
    return found[-1]


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
