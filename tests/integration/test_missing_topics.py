"""Whoever reads a topic that is not there yet says so at the start, instead of asking for it without a pause."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from schemas.agents import AgentSpec
from schemas.topics import AGENTS, MESSAGES
from services.runtime.errors import UnavailableError
from services.runtime.failpoints import Failpoints
from services.runtime.kafka import KafkaClients
from services.runtime.projection import Projection
from services.runtime.records import ProjectedRecord
from services.runtime.registry import Registry
from services.runtime.settings import RuntimeSettings, load_settings
from services.runtime.stream import build_broker
from services.runtime.telemetry import traces_of
from services.runtime.topics import apply_topics

pytestmark = pytest.mark.broker


class NoStore:
    """Nothing is in it, and nothing comes."""

    async def positions(self) -> Mapping[int, int]:
        return {}

    async def apply(self, partition: int, records: Sequence[ProjectedRecord], next_offset: int) -> None: ...


@pytest.fixture
def settings(kafka: str, prefix: str, tmp_path: Path) -> RuntimeSettings:
    return load_settings(
        RuntimeSettings, kafka_bootstrap=kafka, topic_prefix=prefix, topic_replication=1, data_dir=tmp_path
    )


async def test_a_registry_says_that_its_topic_is_missing_and_is_read_once_it_is_there(
    settings: RuntimeSettings,
) -> None:
    clients = KafkaClients(settings, client_id="test")
    missing: Registry[AgentSpec] = Registry(clients, settings, AGENTS)
    with pytest.raises(UnavailableError, match=rf"topic {settings.topic('agents')} does not exist"):
        await missing.start()
    await missing.stop()
    await apply_topics(clients, settings)
    there: Registry[AgentSpec] = Registry(clients, settings, AGENTS)
    await there.start()
    assert there.current() == ()
    await there.stop()


async def test_a_projection_says_that_its_topic_is_missing_and_starts_once_it_is_there(
    settings: RuntimeSettings,
) -> None:
    clients, traces = KafkaClients(settings, client_id="test"), traces_of(settings, "test")
    projection = Projection(
        build_broker(settings, client_id="test"),
        settings=settings,
        topic=MESSAGES,
        group="test",
        store=NoStore(),
        clients=clients,
        failpoints=Failpoints(),
        traces=traces,
    )
    try:
        with pytest.raises(
            UnavailableError, match=rf"topic {settings.topic('messages')} does not exist: run `turnlog topics apply`"
        ):
            await projection.start()
        assert not projection.started
        await apply_topics(clients, settings)
        await projection.start()
        assert projection.health().ready
    finally:
        await projection.stop()
        await traces.close()
