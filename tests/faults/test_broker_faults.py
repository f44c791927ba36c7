"""Brokers that die, freeze and stutter under load: turns wait, and none is lost or doubled."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from infra.local.kafka import LocalKafka
from tests.scripted_model.server import ScriptedModel
from tests.support.installation import Installation, installation
from tests.support.traffic import traffic
from tests.support.waiting import eventually

pytestmark = pytest.mark.broker

FROZEN_SECONDS = 8
"""Longer than the session time-out that the test sets: the group, the transactions and the clients all notice."""


@asynccontextmanager
async def turnlog_on(broker: LocalKafka, model: ScriptedModel, folder: Path) -> AsyncIterator[Installation]:
    """Everything in one process, ready."""
    async with installation(folder, model_url=model.base_url, kafka=broker.bootstrap, prefix="") as made:
        made.environment["TURNLOG_TOPIC_REPLICATION"] = str(len(broker.nodes))
        made.environment["TURNLOG_SESSION_TIMEOUT_MS"] = "4000"
        await made.up()
        yield made


async def leader_of(bootstrap: str, topic: str, partition: int) -> int:
    """Node id of a partition's leader, -1 while it has none or nobody tells."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        await admin.start()
        (described,) = await admin.describe_topics([topic])
    except KafkaError:
        return -1
    finally:
        await admin.close()
    return next(each["leader"] for each in described["partitions"] if each["partition"] == partition)


async def test_a_leader_that_is_killed_under_load_loses_and_doubles_nothing(
    model: ScriptedModel, tmp_path: Path
) -> None:
    async with (
        LocalKafka(data_dir=tmp_path / "kafka", port=0, nodes=3) as cluster,
        turnlog_on(cluster, model, tmp_path) as turnlog,
        traffic(turnlog) as prompts,
    ):
        await prompts.goes_on()
        led = await leader_of(cluster.bootstrap, "prompts", 0)
        pid = cluster.nodes[led - 1].pid
        assert pid is not None

        os.kill(pid, signal.SIGKILL)
        survivors = ",".join(node.config.bootstrap for node in cluster.nodes if node.pid != pid)

        async def has_another_leader() -> bool:
            return await leader_of(survivors, "prompts", 0) not in (-1, led)

        await eventually(has_another_leader, "another leader", seconds=60)
        await prompts.goes_on()


async def test_all_turns_go_on_after_the_broker_was_frozen(model: ScriptedModel, tmp_path: Path) -> None:
    async with (
        LocalKafka(data_dir=tmp_path / "kafka", port=0) as broker,
        turnlog_on(broker, model, tmp_path) as turnlog,
        traffic(turnlog) as prompts,
    ):
        await prompts.goes_on()
        async with frozen(broker):
            await asyncio.sleep(FROZEN_SECONDS)
        await prompts.goes_on()


async def test_a_broker_that_stutters_makes_turns_slow_and_loses_none(model: ScriptedModel, tmp_path: Path) -> None:
    async with (
        LocalKafka(data_dir=tmp_path / "kafka", port=0) as broker,
        turnlog_on(broker, model, tmp_path) as turnlog,
        traffic(turnlog) as prompts,
    ):
        for _ in range(20):
            async with frozen(broker):
                await asyncio.sleep(0.4)
            await asyncio.sleep(0.1)
        await prompts.goes_on()


@asynccontextmanager
async def frozen(broker: LocalKafka) -> AsyncIterator[None]:
    """The broker's process stands still: connections stay open and nobody answers."""
    pid = broker.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
