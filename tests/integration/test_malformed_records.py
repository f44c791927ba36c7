"""A hundred thousand records that are no events, on every topic that is consumed: each is rejected once, none stops."""

import asyncio
import base64
from collections import Counter
from pathlib import Path
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaProducer

from schemas.topics import (
    AGENTS,
    BUDGETS,
    MESSAGES,
    PLANS,
    PRICES,
    PROMPTS,
    TOOL_CALLS,
    TOOL_RESULTS,
    TOOLS,
    USAGE,
    Topic,
)
from tests.scripted_model.server import ScriptedModel
from tests.support.installation import installation
from tests.support.malformed import Malformed, malformed
from tests.support.waiting import eventually

pytestmark = pytest.mark.broker

CONSUMED: tuple[Topic, ...] = (
    PROMPTS,
    TOOL_CALLS,
    TOOL_RESULTS,
    MESSAGES,
    USAGE,
    AGENTS,
    TOOLS,
    PRICES,
    BUDGETS,
    PLANS,
)
COUNT = 100_000
SEED = 20_261_125

Position = tuple[str, int, int]


@pytest.mark.timeout(400)
async def test_each_malformed_record_is_rejected_once_and_no_consumer_stops(
    kafka: str, prefix: str, model: ScriptedModel, tmp_path: Path
) -> None:
    async with installation(tmp_path, model_url=model.base_url, kafka=kafka, prefix=prefix) as turnlog:
        up = await turnlog.up()
        async with AIOKafkaProducer(bootstrap_servers=kafka, max_request_size=4 * 1024**2) as producer:
            written: dict[Position, Malformed] = {}
            for number, topic in enumerate(CONSUMED):
                valid = [each.model_dump_json(exclude_none=True) for each in topic.examples]
                records = malformed(SEED + number, COUNT // len(CONSUMED) + 1, valid=valid, keyed=topic.compacted)
                records += OVERSIZED
                written |= await _write(producer, f"{prefix}{topic.name}", records)
        assert len(written) >= COUNT

        await turnlog.log.wait_for("dead-letters", lambda _: True, count=len(written), seconds=240)
        thread = f"t-{uuid4().hex}"
        await turnlog.prompt(thread, '[[tool calculate {"expression": "6 * 7"}]] and now?', user_id="ada")
        assert (await turnlog.completion(thread))["text"].endswith("Result: 42")

        letters = await turnlog.log.events("dead-letters")
        found = Counter((each["topic"], each["partition"], each["offset"]) for each in letters)
        assert found == Counter(written.keys()), "each once, and nothing that was written well"
        for letter in letters:
            raw = written[letter["topic"], letter["partition"], letter["offset"]]
            assert letter["message"]
            if not letter.get("cut"):
                assert _bytes(letter.get("value")) == raw.value
                assert _bytes(letter.get("key")) == raw.key

        async def metered() -> bool:
            usage = await turnlog.get("/v1/usage?group_by=user")
            return any(row["group"]["user"] == "ada" for row in usage["items"])

        await eventually(metered, "usage to go on")
        assert len(await turnlog.messages(thread, count=4)) == 4
        assert (await turnlog.run("doctor")).code == 0
        assert await up.interrupt() == 0


MEGABYTE = 1024 * 1024
OVERSIZED = [
    Malformed(b"{" + b"x" * 2 * MEGABYTE, key=b"large-1"),
    Malformed(b"\xff" * (4 * MEGABYTE - 4096), key=b"large-2"),
    Malformed(b"{", key=b"k" * MEGABYTE, headers=(("note", b"h" * 2 * MEGABYTE),)),
]
"""As large as a topic takes them."""


async def _write(producer: AIOKafkaProducer, topic: str, records: list[Malformed]) -> dict[Position, Malformed]:
    written: dict[Position, Malformed] = {}
    for start in range(0, len(records), 2_000):
        chunk = records[start : start + 2_000]
        sent = [
            await producer.send(
                topic,
                each.value,
                key=each.key,
                headers=list(each.headers),
            )
            for each in chunk
        ]
        for record, place in zip(chunk, await asyncio.gather(*sent), strict=True):
            written[place.topic, place.partition, place.offset] = record
    return written


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)
