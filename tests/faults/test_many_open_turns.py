"""A worker dies with thousands of turns open on a partition: the next one takes them all, and is not taken for dead."""

import asyncio
import os
import re
import signal
from collections import Counter
from pathlib import Path
from uuid import uuid4

import pytest

from tests.scripted_model.server import ScriptedModel
from tests.support.installation import Installation, Running, installation
from tests.support.waiting import until

pytestmark = [pytest.mark.broker, pytest.mark.timeout(400)]

OPEN = 3_000

THINK_SECONDS = 300
"""Longer than the test: every turn is open until it is cancelled."""

SESSION_MS = 3_000
"""A worker that does not let its heartbeats through for that long loses the partition."""


async def test_the_heir_of_thousands_of_open_turns_keeps_its_partition_and_asks_for_each_once(
    kafka: str, prefix: str, model: ScriptedModel, tmp_path: Path
) -> None:
    async with installation(tmp_path, model_url=model.base_url, kafka=kafka, prefix=prefix) as turnlog:
        turnlog.environment["TURNLOG_TOPIC_PARTITIONS"] = "1"
        await turnlog.up("--no-agents")
        threads = [f"t-{uuid4().hex}" for _ in range(OPEN)]
        dying = await _worker(turnlog)
        await asyncio.gather(*(turnlog.prompt(each, f"[[think {THINK_SECONDS}]]") for each in threads))
        await until(lambda: len(model.requests) == OPEN, "every turn to be open", seconds=120)
        os.kill(dying.process.pid, signal.SIGKILL)
        heir = await _worker(turnlog)
        await until(lambda: len(model.requests) == 2 * OPEN, "every turn to be asked again", seconds=120)
        for thread in threads:
            await turnlog.log.publish("prompts", {"type": "turn.cancel", "thread_id": thread})
        await turnlog.log.wait_for("completions", lambda event: True, count=OPEN, seconds=120)

        assert re.findall(r"partition_taken.*?\bopen=(\d+)", heir.output) == [str(OPEN)]
        assert "partition_lost" not in heir.output
        assert "partition_fenced" not in heir.output
        ended = Counter((each["thread_id"], each["type"]) for each in await turnlog.log.events("completions"))
        assert ended == {(thread, "turn.cancelled"): 1 for thread in threads}
        usage = await turnlog.log.events("usage")
        assert {each["outcome"] for each in usage} == {"lost"}
        attempts = Counter((each["thread_id"], each["attempt"]) for each in usage)
        assert attempts == {(thread, attempt): 1 for thread in threads for attempt in (1, 2)}


async def _worker(turnlog: Installation) -> Running:
    worker = await turnlog.start(
        "run",
        "agents",
        TURNLOG_SESSION_TIMEOUT_MS=str(SESSION_MS),
        TURNLOG_MODEL_CONCURRENCY=str(OPEN),
        TURNLOG_MAX_OPEN_TURNS=str(2 * OPEN),
    )
    await worker.until_says("partition_taken")
    return worker
