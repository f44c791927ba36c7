"""A disk that is full: memory and usage wait, Kafka ends, and when there is room again nothing is missing."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError

from infra.local.kafka import LocalKafka
from tests.scripted_model.server import ScriptedModel
from tests.support.disk import filled, small_disk
from tests.support.installation import Installation, installation
from tests.support.waiting import eventually, until

pytestmark = pytest.mark.broker


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", megabytes=600) as folder:
        yield folder


@pytest.fixture
async def turnlog(
    kafka: str, prefix: str, model: ScriptedModel, disk: Path, tmp_path: Path
) -> AsyncIterator[Installation]:
    """Everything in one process, with the stores on the small disk and the broker elsewhere."""
    async with installation(tmp_path, model_url=model.base_url, kafka=kafka, prefix=prefix) as made:
        made.environment["TURNLOG_DATA_DIR"] = str(disk / "data")
        yield made


async def readiness(turnlog: Installation) -> tuple[int, str]:
    async with turnlog.http.get(f"{turnlog.base_url}/readyz") as response:
        return response.status, await response.text()


async def test_memory_and_usage_wait_for_room_and_miss_nothing(turnlog: Installation, disk: Path) -> None:
    up = await turnlog.up()
    before, during = f"t-{uuid4().hex}", f"t-{uuid4().hex}"
    await turnlog.prompt(before, "before")
    await turnlog.completion(before)

    with filled(disk):
        await turnlog.prompt(during, "during")

        async def complains() -> bool:
            status, body = await readiness(turnlog)
            return status == 503 and "make room" in body

        await eventually(complains, "readiness to say that the disk is full", seconds=60)
        await until(lambda: "projection_waits" in up.output, "a line in the log")
        assert up.process.returncode is None

    assert (await turnlog.completion(during))["text"] == "You said: during"
    messages = await turnlog.messages(during, count=2)
    assert [each["text"] for each in messages] == ["during", "You said: during"]

    async def is_ready() -> bool:
        return (await readiness(turnlog))[0] == 200

    async def both_are_metered() -> bool:
        usage = await turnlog.get("/v1/usage?group_by=agent")
        return sum(row["events"] for row in usage["items"]) == 2

    await eventually(is_ready, "readiness")
    await eventually(both_are_metered, "two model calls in usage")
    assert up.output.count("projection_waits") <= 8, "one line for each partition that waits, not one for each try"
    assert await up.interrupt() == 0, up.output


async def test_kafka_ends_on_a_full_disk_and_has_what_it_acknowledged_when_started_again(disk: Path) -> None:
    broker = LocalKafka(data_dir=disk, port=0)
    await broker.start()
    try:
        admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap)
        await admin.start()
        await admin.create_topics([NewTopic("greetings", 1, 1)])
        await admin.close()
        acknowledged = await write(broker.bootstrap, 100)
        with filled(disk):
            acknowledged += await write_until_it_ends(broker)
        assert "No space left on device" in broker.log_file.read_text()

        await broker.start()
        assert await written(broker.bootstrap) >= acknowledged
    finally:
        await broker.stop()


async def write(bootstrap: str, count: int) -> int:
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all") as producer:
        for _ in range(count):
            await producer.send_and_wait("greetings", b"hello")
    return count


async def write_until_it_ends(broker: LocalKafka) -> int:
    """Writes until the broker has ended by itself; how many records it had acknowledged."""
    ended = asyncio.create_task(broker.wait())
    acknowledged = 0
    producer = AIOKafkaProducer(bootstrap_servers=broker.bootstrap, acks="all", request_timeout_ms=5_000)
    await producer.start()
    try:
        while not ended.done():
            try:
                await producer.send_and_wait("greetings", b"hello" * 2_000)
                acknowledged += 1
            except KafkaError:
                await asyncio.sleep(0.1)
    finally:
        await producer.stop()
    assert await ended != 0
    return acknowledged


async def written(bootstrap: str) -> int:
    where = TopicPartition("greetings", 0)
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap) as consumer:
        ends = await consumer.end_offsets([where])
    return ends[where]
