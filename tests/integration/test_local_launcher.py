"""The local launcher with the real broker and the real model: starts, kills, restarts."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from infra.local.errors import AlreadyRunning, BrokerFailed
from infra.local.kafka import LocalKafka, running_kafka
from infra.local.model import LOCAL_MODEL_NAME, LocalModel

pytestmark = pytest.mark.broker

PARTITION = TopicPartition("greetings", 0)
LAUNCHER = """
import asyncio, sys
from pathlib import Path
from infra.local.kafka import LocalKafka

async def main() -> None:
    kafka = LocalKafka(data_dir=Path(sys.argv[1]), port=0)
    await kafka.start()
    print(kafka.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture(scope="module", autouse=True)
def shared_jars(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One cache of jars for this module, unless the run has one for all."""
    os.environ.setdefault("TURNLOG_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
async def kafka(tmp_path: Path) -> AsyncIterator[LocalKafka]:
    async with LocalKafka(data_dir=tmp_path, port=0) as broker:
        yield broker


async def until(condition: Callable[[], bool], *, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.02)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


async def create_topic(bootstrap: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(PARTITION.topic, 1, 1)])
    await admin.close()


async def write_in_a_transaction(bootstrap: str, *values: bytes) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, transactional_id="writer")
    async with producer, producer.transaction():
        for value in values:
            await producer.send_and_wait(PARTITION.topic, value)


async def read_all(bootstrap: str, *, count: int) -> list[bytes | None]:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap, isolation_level="read_committed", auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        consumer.assign([PARTITION])
        await consumer.seek_to_beginning(PARTITION)
        return [(await asyncio.wait_for(consumer.getone(), 20)).value for _ in range(count)]
    finally:
        await consumer.stop()


async def test_what_was_committed_is_there_after_the_broker_is_killed_and_restarted(
    kafka: LocalKafka,
) -> None:
    await create_topic(kafka.bootstrap)
    await write_in_a_transaction(kafka.bootstrap, b"one", b"two")
    address, pid = kafka.bootstrap, kafka.pid
    assert pid is not None

    os.kill(pid, signal.SIGKILL)
    assert await asyncio.wait_for(kafka.wait(), 10) == 128 + signal.SIGKILL
    assert kafka.pid is None

    assert await kafka.start() == address
    assert await read_all(address, count=2) == [b"one", b"two"]
    await write_in_a_transaction(address, b"three")
    assert await read_all(address, count=3) == [b"one", b"two", b"three"]


async def test_a_commit_that_was_acknowledged_just_before_a_kill_is_visible_after_it(kafka: LocalKafka) -> None:
    # Over many partitions the broker needs a while to write all the markers after it has acknowledged the commit.
    partitions = [TopicPartition("wide", number) for number in range(60)]
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic("wide", len(partitions), 1)])
    await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, transactional_id="wide-writer")
    await producer.start()
    await producer.begin_transaction()
    for where in partitions:
        await producer.send_and_wait(where.topic, b"committed", partition=where.partition)
    await producer.commit_transaction()
    assert kafka.pid is not None
    os.kill(kafka.pid, signal.SIGKILL)
    await kafka.wait()
    await producer.stop()

    await kafka.start()
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap, isolation_level="read_committed")
    async with consumer:
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        seen = {(await asyncio.wait_for(consumer.getone(), 20)).partition for _ in partitions}
    assert seen == set(range(60))


async def test_a_clean_stop_keeps_the_data_and_leaves_no_process(tmp_path: Path) -> None:
    async with LocalKafka(data_dir=tmp_path, port=0) as first:
        await create_topic(first.bootstrap)
        await write_in_a_transaction(first.bootstrap, b"kept")
        pid = first.pid
    assert pid is not None
    assert is_gone(pid)
    # Another object and, as the port is 0, most likely other ports: the data is the same.
    async with LocalKafka(data_dir=tmp_path, port=0) as second:
        assert await read_all(second.bootstrap, count=1) == [b"kept"]


async def test_a_second_launcher_on_the_same_folder_is_refused(kafka: LocalKafka, tmp_path: Path) -> None:
    with pytest.raises(AlreadyRunning, match=str(os.getpid())):
        await LocalKafka(data_dir=tmp_path, port=0).start()
    assert kafka.pid is not None


async def test_the_broker_dies_with_its_launcher_and_the_next_launcher_takes_over(tmp_path: Path) -> None:
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert launcher.stdout is not None
        broker = int(await asyncio.to_thread(launcher.stdout.readline))
        assert not is_gone(broker)
        launcher.kill()
        # At once: the new launcher waits until the orphan has let go of the data.
        async with LocalKafka(data_dir=tmp_path, port=0) as kafka:
            assert is_gone(broker)
            assert kafka.pid != broker
    finally:
        launcher.kill()
        launcher.communicate()


async def test_the_broker_dies_when_its_guard_is_killed(kafka: LocalKafka) -> None:
    broker = kafka.pid
    assert broker is not None
    os.kill(parent_of(broker), signal.SIGKILL)
    await until(lambda: is_gone(broker))
    await kafka.start()


async def test_a_broker_that_cannot_start_says_where_to_look(tmp_path: Path) -> None:
    async with LocalKafka(data_dir=tmp_path, port=0):
        pass
    (tmp_path / "kafka" / "data" / "meta.properties").write_text("version=1\nnode.id=77\ncluster.id=other\n")
    with pytest.raises(BrokerFailed, match=r"server\.log") as caught:
        await LocalKafka(data_dir=tmp_path, port=0).start()
    assert "node id" in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_test_session_without_a_loop_can_hold_a_broker(tmp_path: Path) -> None:
    with running_kafka(data_dir=tmp_path) as kafka:
        pid = kafka.pid
        assert pid is not None
        assert asyncio.run(read_nothing(kafka.bootstrap)) == set()
    assert is_gone(pid)


async def read_nothing(bootstrap: str) -> set[str]:
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap) as consumer:
        return await consumer.topics()


def parent_of(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[1])


async def test_the_local_model_streams_and_counts_tokens(tmp_path: Path) -> None:
    async with LocalModel(data_dir=tmp_path) as model, aiohttp.ClientSession() as session:
        pid = model.pid
        request = {
            "model": LOCAL_MODEL_NAME,
            "messages": [{"role": "user", "content": "Tell me a long story."}],
            "max_tokens": 12,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        async with session.post(f"{model.base_url}/chat/completions", json=request) as response:
            assert response.status == 200
            body = (await response.text()).strip()
        chunks = [line.removeprefix("data: ") for line in body.split("\n\n") if line.startswith("data: ")]
    assert chunks[-1] == "[DONE]"
    assert len(chunks) > 5
    assert '"completion_tokens":12' in chunks[-2].replace(" ", "")
    assert pid is not None
    assert is_gone(pid)
