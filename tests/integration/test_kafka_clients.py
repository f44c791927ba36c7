"""What our Kafka clients do differently from aiokafka's."""

import pytest

from services.runtime.kafka import KafkaClients
from services.runtime.settings import RuntimeSettings, load_settings

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
