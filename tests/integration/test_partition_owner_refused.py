"""The broker refuses one record of a step: then nothing of the step is there, not even its offsets."""

from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.scripted_model.server import ScriptedModel
from tests.support.installation import installation

pytestmark = pytest.mark.broker


async def test_a_step_whose_completion_is_refused_is_not_committed(
    kafka: str, model: ScriptedModel, prefix: str, tmp_path: Path
) -> None:
    await make_topic(kafka, f"{prefix}completions", largest=2_000)
    async with installation(tmp_path, model_url=model.base_url, kafka=kafka, prefix=prefix) as turnlog:
        running = await turnlog.up()
        thread = await turnlog.prompt("t-1", "[[long 1000]]")
        await running.until_says("transaction_failed")
        await running.until_says("partition_taken", seconds=30)
        await turnlog.log.wait_for("usage", lambda event: event["outcome"] == "lost")

        assert not [each for each in await turnlog.log.events("usage") if each["outcome"] == "ok"]
        journal = [each for each in await turnlog.log.events("messages") if each["thread_id"] == thread]
        assert [each["type"] for each in journal] == ["turn.opened", "message.added"]
        assert await turnlog.log.events("completions") == []


async def make_topic(kafka: str, name: str, *, largest: int) -> None:
    """A topic that takes no batch of more than `largest` bytes."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        topic = NewTopic(
            name, num_partitions=4, replication_factor=1, topic_configs={"max.message.bytes": str(largest)}
        )
        await admin.create_topics([topic])
    finally:
        await admin.close()
