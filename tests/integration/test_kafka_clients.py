"""What our Kafka clients do differently from aiokafka's."""

import asyncio
from typing import Any

import pytest

from services.runtime.kafka import KafkaClients, ProducerFenced, telling_what_broke
from services.runtime.settings import RuntimeSettings, load_settings
from services.runtime.topics import apply_topics

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
