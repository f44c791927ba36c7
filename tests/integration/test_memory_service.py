"""Memory on the real broker: the journal goes in, conversations come out, whatever fails in between."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from infra.local.kafka import LocalKafka
from schemas.dead_letters import RecordRejected
from schemas.envelope import encode_event
from schemas.journal import JournalEvent
from services.memory.app import MemoryService
from services.memory.qdrant_edge import EdgeMemoryStore
from services.memory.settings import MemorySettings
from services.memory.store import Changes
from services.runtime.errors import ConfigurationError, UnavailableError
from services.runtime.groups import MEMORY_GROUP, instance_of
from services.runtime.kafka import KafkaClients
from services.runtime.settings import load_settings
from services.runtime.topics import apply_topics
from tests.support.installation import free_ports
from tests.support.log import Log
from tests.support.waiting import eventually, until
from tests.unit.memory.journal import added, asks, closed, created, deleted, opened, removed, updated, waiting

pytestmark = pytest.mark.broker

ROOT = Path(__file__).parents[2]

WORKER = """
import asyncio
from services.memory.app import MemoryService
from services.memory.settings import MemorySettings
from services.runtime.service import run_service
from services.runtime.settings import load_settings

asyncio.run(run_service(lambda: MemoryService(load_settings(MemorySettings))))
"""


def memory_settings(folder: Path, kafka: str, prefix: str, **given: Any) -> MemorySettings:
    options = {
        "data_dir": folder,
        "http_port": 0,
        "kafka_bootstrap": kafka,
        "topic_prefix": prefix,
        "topic_partitions": 4,
        "topic_replication": 1,
    }
    return load_settings(MemorySettings, **(options | given))


@dataclass
class Journal:
    """The topic that memory reads, and a client that writes to it."""

    settings: MemorySettings
    log: Log

    async def tell(self, *events: JournalEvent) -> None:
        for event in events:
            await self.log.publish("messages", encode_event(event), key=event.thread_id)

    async def position(self, thread_id: str) -> dict[str, int]:
        """Partition and offset behind everything that a thread's partition holds now, as parameters of a read."""
        last = await self.log.publish("messages", encode_event(closed("nobody's", thread_id=thread_id)), key=thread_id)
        return {"partition": last.partition, "min_offset": last.offset + 1}


@pytest.fixture
async def journal(kafka: str, prefix: str, tmp_path: Path) -> AsyncIterator[Journal]:
    settings = memory_settings(tmp_path / "data", kafka, prefix)
    await apply_topics(KafkaClients(settings, client_id="test"), settings)
    async with Log(kafka, prefix=prefix) as log:
        yield Journal(settings, log)


class Memory:
    """HTTP to a memory service."""

    def __init__(self, http: aiohttp.ClientSession, port: int) -> None:
        self._http = http
        self._url = f"http://127.0.0.1:{port}"

    async def get(self, path: str, *, status: int = 200, **parameters: Any) -> Any:
        async with self._http.get(self._url + path, params=parameters) as response:
            body = await response.json(content_type=None)
            assert response.status == status, body
            return body

    async def rebuild(self) -> None:
        async with self._http.post(self._url + "/rebuild") as response:
            assert response.status == 202, await response.text()

    async def messages(self, thread_id: str, **parameters: Any) -> list[str]:
        page = await self.get(f"/threads/{thread_id}/messages", limit=1000, **parameters)
        return [each["message_id"] for each in page["items"]]

    async def readiness(self) -> dict[str, Any]:
        async with self._http.get(self._url + "/readyz") as response:
            body = await response.json()
            assert (response.status == 200) == body["ready"]
            return body

    async def until_ready(self) -> None:
        async def ready() -> bool:
            return (await self.readiness())["ready"]

        await eventually(ready, "memory to be ready", seconds=60)

    async def until_holds(self, thread_id: str, count: int) -> None:
        wanted = [f"m-{number}" for number in range(count)]

        async def holds() -> bool:
            async with self._http.get(f"{self._url}/threads/{thread_id}/messages", params={"limit": 1000}) as response:
                page = await response.json()
                return [each["message_id"] for each in page.get("items", [])] == wanted

        await eventually(holds, f"{count} messages of {thread_id}", seconds=60)

    async def until_at(self, position: Mapping[str, int]) -> None:
        """Waits for a position longer than a read does."""

        async def reached() -> bool:
            body = {"thread_id": "any", "wait_seconds": 1, **position}
            async with self._http.post(self._url + "/context", json=body) as response:
                return response.status == 200

        await eventually(reached, f"memory to be at {position}", seconds=60)


@contextlib.asynccontextmanager
async def running(settings: MemorySettings, **options: Any) -> AsyncIterator[Memory]:
    service = MemoryService(settings, **options)
    await service.start()
    try:
        async with aiohttp.ClientSession() as http:
            yield Memory(http, service.port)
    finally:
        await service.stop()


HISTORY: Sequence[JournalEvent] = (
    created("t-1", title="Plans", user_id="u-1"),
    opened("turn-1", thread_id="t-1"),
    added("m-1", "Where is the lighthouse?", thread_id="t-1", turn_id="turn-1", user_id="u-1", seconds=1),
    asks("m-2", "c-1", thread_id="t-1"),
    waiting("turn-1", thread_id="t-1"),
    added("m-3", "On the hill.", thread_id="t-1", role="assistant", turn_id="turn-1", seconds=2),
    closed("turn-1", thread_id="t-1"),
    updated("t-1", summary="About a lighthouse", seconds=5),
    added("m-4", "a slip", thread_id="t-1"),
    removed("m-4", thread_id="t-1"),
    added("m-5", "forget me", thread_id="t-2"),
    deleted("t-2"),
    added("m-6", "another tenant's lighthouse", thread_id="t-1", tenant_id="acme"),
)


async def everything(memory: Memory) -> dict[str, Any]:
    """All that can be read of the history, but for scores: BM25 also counts documents that were deleted since."""
    paths = (
        "/threads",
        "/threads?tenant_id=acme",
        "/threads/t-1",
        "/threads/t-1/messages",
        "/threads/t-1/messages?tenant_id=acme",
        "/turns/turn-1",
        "/tool-calls/c-1",
        "/search?q=lighthouse",
    )
    read = {path: await memory.get(path) for path in paths}
    read["/search?q=lighthouse"] = [hit["message"] for hit in read["/search?q=lighthouse"]["items"]]
    return read


async def test_what_is_on_the_journal_can_be_read(journal: Journal) -> None:
    async with running(journal.settings) as memory:
        await journal.tell(*HISTORY)
        position = await journal.position("t-1")
        assert await memory.messages("t-1", **position) == ["m-1", "m-2", "m-3"]
        thread = await memory.get("/threads/t-1")
        assert (thread["title"], thread["summary"], thread["user_id"]) == ("Plans", "About a lighthouse", "u-1")
        assert (await memory.get("/turns/turn-1"))["status"] == "completed"
        assert (await memory.get("/tool-calls/c-1"))["turn_id"] == "turn-1"
        assert [hit["message"]["message_id"] for hit in (await memory.get("/search", q="lighthouse"))["items"]] == [
            "m-1"
        ]
        assert await memory.messages("t-1", tenant_id="acme") == ["m-6"]
        await memory.get("/threads/t-2", status=404, **await journal.position("t-2"))
        assert (await memory.readiness())["ready"]


async def test_a_record_that_is_no_event_goes_to_dead_letters_and_its_partition_goes_on(journal: Journal) -> None:
    bad = [b"no json", b"\xff\xfe", b'{"type":"message.added"}', b'{"type":"no.such.event","thread_id":"t-1"}', b"[]"]
    async with running(journal.settings) as memory:
        await journal.tell(added("m-1", "before"))
        for value in bad:
            await journal.log.publish("messages", value, key="t-1")
        await journal.tell(added("m-2", "after"))
        assert await memory.messages("t-1", **await journal.position("t-1")) == ["m-1", "m-2"]
        assert (await memory.readiness())["ready"]
        letters = await journal.log.wait_for("dead-letters", lambda _: True, count=len(bad))
    rejected = [RecordRejected.model_validate(letter | {"headers": []}) for letter in letters]
    assert [each.value for each in rejected] == bad
    assert {(each.source, each.topic, each.key) for each in rejected} == {
        ("turnlog-memory", journal.settings.topic("messages"), b"t-1")
    }
    assert len({each.offset for each in rejected}) == len(bad)


class Failing(EdgeMemoryStore):
    """Fails as long as it is told to, and notes what was written."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.fails = False
        self.failures = 0
        self.written: list[str] = []

    async def write(self, partition: int, changes: Changes, next_offset: int) -> None:
        if self.fails:
            self.failures += 1
            raise UnavailableError("the disk is full")
        await super().write(partition, changes, next_offset)
        self.written += [each.body for each in changes.upserts if each.kind == "message"]


async def test_while_the_store_fails_the_journal_waits_and_readiness_says_why(journal: Journal) -> None:
    store = Failing(journal.settings.data_dir / "memory")
    async with running(journal.settings, store=store) as memory:
        await journal.tell(added("m-0", "before"))
        await memory.until_holds("t-1", 1)
        store.fails = True
        await journal.tell(*(added(f"m-{number}") for number in range(1, 10)))
        await until(lambda: store.failures >= 2, "a second attempt")
        ready = await memory.readiness()
        assert not ready["ready"]
        assert "the disk is full" in ready["components"]["projection"]["detail"]
        position = await journal.position("t-1")
        behind = await memory.get("/threads/t-1", status=503, **position)
        assert behind["type"] == "urn:turnlog:problem:behind"
        assert await memory.messages("t-1") == ["m-0"]
        store.fails = False
        await memory.until_holds("t-1", 10)
        await memory.until_ready()
        assert await memory.messages("t-1", **position) == [f"m-{number}" for number in range(10)]
    assert await journal.log.events("dead-letters") == []


async def test_a_restart_goes_on_where_it_was(journal: Journal) -> None:
    written: list[int] = []
    for first in (0, 50, 100):
        store = Failing(journal.settings.data_dir / "memory")
        async with running(journal.settings, store=store) as memory:
            await journal.tell(*(added(f"m-{number}") for number in range(first, first + 50)))
            await memory.until_holds("t-1", first + 50)
        written.append(len(store.written))
    assert written == [50, 50, 50]


@pytest.mark.parametrize("failpoint", ["projection.before_store=kill@2", "projection.after_store=kill@2"])
async def test_a_memory_that_is_killed_loses_nothing_and_doubles_nothing(journal: Journal, failpoint: str) -> None:
    port = free_ports(2)
    settings = journal.settings
    environment = {
        "TURNLOG_KAFKA_BOOTSTRAP": settings.bootstrap,
        "TURNLOG_TOPIC_PREFIX": settings.topic_prefix,
        "TURNLOG_DATA_DIR": str(settings.data_dir),
        "TURNLOG_HTTP_PORT": str(port),
        "TURNLOG_FAILPOINTS": failpoint,
    }
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", WORKER, cwd=ROOT, env=os.environ | environment)
    try:
        for number in range(200):
            await journal.tell(added(f"m-{number}", f"number {number}"))
            if process.returncode is not None:
                break
        async with asyncio.timeout(60):
            while process.returncode is None:
                await journal.tell(closed("nobody's"))
            assert await process.wait() == -9
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    async with running(settings) as memory:
        await memory.until_holds("t-1", number + 1)
        (member,) = await members_of(settings)
        assert member.startswith(instance_of(settings.data_dir)), "it took the place of the dead one"


async def members_of(settings: MemorySettings) -> list[str]:
    """The members of memory's group; a static one is called by its name and a number that changes."""
    admin = KafkaClients(settings, client_id="test").admin()
    await admin.start()
    try:
        (response,) = await admin.describe_consumer_groups([f"{settings.topic_prefix}{MEMORY_GROUP}"])
    finally:
        await admin.close()
    groups: list[Any] = response.to_object()["groups"]
    return [member["member_id"] for group in groups for member in group["members"]]


async def test_memory_that_is_rebuilt_from_the_journal_is_the_same(journal: Journal, tmp_path: Path) -> None:
    async with running(journal.settings) as memory:
        await journal.tell(*HISTORY)
        for thread_id in ("t-1", "t-2"):
            await memory.until_at(await journal.position(thread_id))
        before = await everything(memory)
    async with running(journal.settings.model_copy(update={"data_dir": tmp_path / "new"})) as memory:
        for thread_id in ("t-1", "t-2"):
            await memory.until_at(await journal.position(thread_id))
        assert await everything(memory) == before


async def test_memory_that_was_fed_from_another_log_does_not_start(journal: Journal, prefix: str) -> None:
    async with running(journal.settings) as memory:
        await journal.tell(*HISTORY)
        await memory.until_at(await journal.position("t-1"))
    other = journal.settings.model_copy(update={"topic_prefix": f"other.{prefix}"})
    await apply_topics(KafkaClients(other, client_id="test"), other)
    service = MemoryService(other)
    with pytest.raises(ConfigurationError, match="it was fed from another Kafka"):
        await service.start()
    await service.stop()


async def test_what_a_transaction_took_back_is_not_read_and_its_markers_are_passed(journal: Journal) -> None:
    settings = journal.settings
    producer = KafkaClients(settings, client_id="test").transactional_producer(f"{settings.topic_prefix}writer")
    await producer.start()
    topic = settings.topic("messages")

    async def write(*message_ids: str, commit: bool) -> Any:
        await producer.begin_transaction()
        for message_id in message_ids:
            last = await producer.send_and_wait(topic, encode_event(added(message_id)), key=b"t-1")
        await (producer.commit_transaction() if commit else producer.abort_transaction())
        return last

    try:
        async with running(settings) as memory:
            await write("m-0", "m-1", commit=True)
            await memory.until_holds("t-1", 2)
            last = await write("lost-1", "lost-2", commit=False)
            position = {"partition": last.partition, "min_offset": last.offset + 2}
            assert await memory.messages("t-1", **position) == ["m-0", "m-1"]
            last = await write("m-2", commit=True)
            position = {"partition": last.partition, "min_offset": last.offset + 2}
            assert await memory.messages("t-1", **position) == ["m-0", "m-1", "m-2"]
    finally:
        await producer.stop()


async def test_hundreds_that_wait_for_one_marker_are_served_by_one_reader(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = journal.settings
    producer = KafkaClients(settings, client_id="test").transactional_producer(f"{settings.topic_prefix}writer")
    await producer.start()
    try:
        async with running(settings) as memory:
            await producer.begin_transaction()
            topic = settings.topic("messages")
            last = await producer.send_and_wait(topic, encode_event(added("m-0")), key=b"t-1")
            await producer.commit_transaction()
            await memory.until_holds("t-1", 1)
            made: list[str] = []
            make = KafkaClients.consumer
            monkeypatch.setattr(KafkaClients, "consumer", lambda *_, **__: made.append("one more") or make(*_, **__))
            position = {"partition": last.partition, "min_offset": last.offset + 2}
            answers = await asyncio.gather(*(memory.messages("t-1", **position) for _ in range(300)))
            assert answers == [["m-0"]] * 300
            assert not made
    finally:
        await producer.stop()


async def test_memory_waits_for_kafka_at_its_start_and_while_it_is_away(tmp_path: Path, prefix: str) -> None:
    port = free_ports(1)
    settings = memory_settings(tmp_path / "data", f"127.0.0.1:{port}", prefix)
    broker = LocalKafka(data_dir=tmp_path / "kafka", port=port)
    async with running(settings) as memory:
        assert f"127.0.0.1:{port}" in (await memory.readiness())["components"]["connections"]["detail"]
        await broker.start()
        try:
            await apply_topics(KafkaClients(settings, client_id="test"), settings)
            async with Log(broker.bootstrap, prefix=prefix) as log:
                await Journal(settings, log).tell(added("m-0"))
            await memory.until_holds("t-1", 1)
            await broker.stop()
            assert await memory.messages("t-1") == ["m-0"]
            await broker.start()
            async with Log(broker.bootstrap, prefix=prefix) as log:
                await Journal(settings, log).tell(added("m-1"))
            await memory.until_holds("t-1", 2)
        finally:
            await broker.stop()
