"""A projection whose topic is not there yet says so at its start, instead of asking for it without a pause."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from schemas.topics import MESSAGES
from services.runtime.errors import UnavailableError
from services.runtime.failpoints import Failpoints
from services.runtime.kafka import KafkaClients
from services.runtime.projection import Projection
from services.runtime.records import ProjectedRecord
from services.runtime.settings import RuntimeSettings
from services.runtime.stream import build_broker
from services.runtime.telemetry import traces_of
from services.runtime.topics import apply_topics

pytestmark = pytest.mark.broker


class NoStore:
    """Nothing is in it, and nothing comes."""

    async def positions(self) -> Mapping[int, int]:
        return {}

    async def apply(self, partition: int, records: Sequence[ProjectedRecord], next_offset: int) -> None: ...


async def test_a_start_says_which_topic_is_missing_and_succeeds_once_it_is_there(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    settings = RuntimeSettings(
        _env_file=None,  # pyright: ignore
        kafka_bootstrap=kafka,
        topic_prefix=prefix,
        topic_replication=1,
        data_dir=tmp_path,
    )
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
            UnavailableError, match=rf"topic {prefix}messages does not exist: run `turnlog topics apply`"
        ):
            await projection.start()
        assert not projection.started
        await apply_topics(clients, settings)
        await projection.start()
        assert projection.health().ready
    finally:
        await projection.stop()
        await traces.close()
