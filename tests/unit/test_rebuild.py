"""What cancels a rebuild, and when."""

import asyncio
from typing import Any

import pytest

from schemas.topics import MESSAGES
from services.runtime.failpoints import Failpoints
from services.runtime.kafka import KafkaClients
from services.runtime.rebuild import Rebuild
from services.runtime.settings import RuntimeSettings
from tests.support.installation import free_ports


class Running:
    """A projection that has started."""

    started = True

    def position(self, partition: int) -> int:
        return partition


class SlowToClean:
    """Builds that take their time to be removed."""

    def __init__(self) -> None:
        self.begun, self.go_on, self.cleaned = asyncio.Event(), asyncio.Event(), False

    async def clean(self) -> None:
        self.begun.set()
        await self.go_on.wait()
        self.cleaned = True


@pytest.mark.parametrize("times", [1, 2])
async def test_a_rebuild_that_is_cancelled_while_it_cleans_up_ends_as_it_would_have(times: int) -> None:
    """It has failed, as there is no Kafka."""
    settings = RuntimeSettings(kafka_bootstrap=f"127.0.0.1:{free_ports(1)}")
    builds, running = SlowToClean(), Running()
    clients: dict[str, Any] = {"settings": settings, "clients": KafkaClients(settings, client_id="test")}
    rebuild = Rebuild(running, builds, topic=MESSAGES, failpoints=Failpoints(), batch=1, **clients)  # pyright: ignore
    await rebuild.start()
    async with asyncio.timeout(30):
        await builds.begun.wait()
        cancelling = [asyncio.create_task(rebuild.cancel()) for _ in range(times)]
        await asyncio.sleep(0)
        builds.go_on.set()
        for status in await asyncio.gather(*cancelling):
            assert (status.state, builds.cleaned) == ("failed", True)
            assert "KafkaConnectionError" in status.detail
