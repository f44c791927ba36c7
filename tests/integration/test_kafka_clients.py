"""What our Kafka clients do differently from aiokafka's."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from infra.local.kafka import LocalKafka
from services.runtime.kafka import KafkaClients, ProducerFenced, TopicPartition, telling_what_broke
from services.runtime.settings import RuntimeSettings, load_settings
from services.runtime.topics import apply_topics
from tests.support.waiting import until

pytestmark = pytest.mark.broker


def clients_of(kafka: str, prefix: str = "") -> tuple[KafkaClients, RuntimeSettings]:
    settings = load_settings(RuntimeSettings, kafka_bootstrap=kafka, topic_prefix=prefix, topic_replication=1)
    return KafkaClients(settings, client_id="test"), settings


async def test_a_consumer_that_is_stopped_as_soon_as_it_has_started_cancels_nobody(kafka: str) -> None:
    """aiokafka's own raises CancelledError there, which a task takes for its own end and a request for a crash."""
    clients, _ = clients_of(kafka)
    consumer = clients.consumer()
    await consumer.start()
    await consumer.stop()


async def test_a_consumer_that_is_stopped_after_a_failed_fetch_cancels_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Else whoever begins anew because the broker is away would end there, and read nothing more for ever."""
    async with LocalKafka(data_dir=tmp_path, port=0) as broker:
        clients, settings = clients_of(broker.bootstrap)
        await apply_topics(clients, settings)
        producer = clients.producer()
        await producer.start()
        await producer.send_and_wait(settings.topic("messages"), b"{}", partition=0)
        await producer.stop()
        consumer = clients.consumer(retry_backoff_ms=2_000)
        await consumer.start()
        consumer.assign([TopicPartition("messages", 0)])
        assert await consumer.getmany(timeout_ms=20_000)
        assert broker.pid is not None
        os.kill(broker.pid, signal.SIGSTOP)
        assert not await consumer.getmany(timeout_ms=1_000), "it asks, and nobody answers"
        os.kill(broker.pid, signal.SIGKILL)
        await until(lambda: "Failed fetch messages" in caplog.text, "a fetch to fail")
        await consumer.stop()


async def test_a_producer_that_is_fenced_between_two_sends_says_so(kafka: str, prefix: str) -> None:
    """The first send that it refuses tells of no fence, and its owner would not know that others go on."""
    clients, settings = clients_of(kafka, prefix)
    await apply_topics(clients, settings)
    topic = settings.topic("messages")
    zombie, heir = (clients.transactional_producer(f"{prefix}0") for _ in range(2))
    sent: list[asyncio.Future[Any]] = []
    await zombie.start()
    try:
        await zombie.begin_transaction()
        sent.append(await zombie.send(topic, b"first", partition=0))
        await sent[0]
        await heir.start()
        sent.append(await zombie.send(topic, b"second", partition=1))
        await asyncio.wait(sent)
        with pytest.raises(ProducerFenced), telling_what_broke(sent):
            await zombie.send(topic, b"third", partition=1)
    finally:
        await zombie.stop()
        await heir.stop()
