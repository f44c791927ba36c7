"""`turnlog rebuild` and `turnlog audit` on services that run: while records arrive, killed, tampered with."""

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import clickhouse_connect
import pytest

from schemas.envelope import encode_event
from schemas.journal import JournalEvent
from services.memory.app import MemoryService
from services.memory.projector import message_point, thread_point
from services.memory.qdrant_edge import EdgeMemoryStore
from services.memory.qdrant_shard import MemoryShard
from services.memory.settings import MemorySettings
from services.memory.store import Changes
from services.runtime.settings import load_settings
from services.usage.clickhouse import ClickHouseUsageStore
from tests.support.installation import Finished, Installation, Running, installation
from tests.support.log import Log
from tests.support.waiting import eventually
from tests.unit.memory.journal import added, asks, closed, created, deleted, opened, removed, updated

pytestmark = [pytest.mark.broker, pytest.mark.timeout(400)]

NOBODY = "http://127.0.0.1:9"


def turn(number: int, *, thread: str | None = None) -> list[JournalEvent]:
    """The journal of a turn that calls a tool."""
    given: dict[str, Any] = {"thread_id": thread or f"t-{number % 23}", "tenant_id": f"tenant-{number % 2}"}
    turn_id = f"turn-{number}"
    return [
        opened(turn_id, seconds=number, user_id=f"u-{number % 3}", **given),
        added(f"m-{number}-1", f"question {number}", turn_id=turn_id, seconds=number, **given),
        asks(f"m-{number}-2", f"call-{number}", seconds=number, **{**given, "turn_id": turn_id}),
        added(f"m-{number}-3", "an answer", role="assistant", turn_id=turn_id, seconds=number, **given),
        closed(turn_id, seconds=number + 1, **given),
    ]


def spent(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "usage_id": f"u-{number}",
        "thread_id": f"t-{number % 23}",
        "tenant_id": f"tenant-{number % 2}",
        "kind": "completion",
        "input_tokens": number,
        "occurred_at": f"2026-01-{number % 28 + 1:02d}T00:00:00.{number:06d}Z",
    } | fields


@dataclass
class Projected:
    """Memory and usage as processes, and a client that writes what they project."""

    made: Installation
    log: Log

    @property
    def folder(self) -> Path:
        return Path(self.made.environment["TURNLOG_DATA_DIR"])

    def url(self, service: str) -> str:
        port = int(self.made.environment["TURNLOG_HTTP_PORT"]) + {"memory": 1, "usage": 2}[service]
        return f"http://127.0.0.1:{port}"

    async def start(self, service: str, **extra: str) -> Running:
        running = await self.made.start("run", service, **extra)

        async def ready() -> bool:
            with contextlib.suppress(aiohttp.ClientConnectionError):
                return (await self.http("GET", service, "/readyz"))[0] == 200
            return False

        await eventually(ready, f"{service} to be ready", seconds=60)
        return running

    async def http(self, method: str, service: str, path: str) -> tuple[int, Any]:
        async with self.made.http.request(method, self.url(service) + path) as response:
            return response.status, await response.json(content_type=None)

    async def write(self, first: int, count: int) -> None:
        """The journal and the usage of so many turns."""
        events = [event for number in range(first, first + count) for event in turn(number)]
        journal = [self.log.publish("messages", encode_event(each), key=each.thread_id) for each in events]
        usage = [self.log.publish("usage", spent(number)) for number in range(first, first + count)]
        await asyncio.gather(*journal, *usage)

    async def tell(self, *events: JournalEvent) -> None:
        for event in events:
            await self.log.publish("messages", encode_event(event), key=event.thread_id)

    async def audit(self) -> dict[str, Any]:
        """What the audit says of each store. Fails when it says that it could not."""
        finished = await self.made.run("audit", "--json", seconds=120)
        assert finished.code in (0, 1), finished.errors
        document = json.loads(finished.output)
        assert document["equal"] == (finished.code == 0)
        return {each["store"]: each for each in document["stores"]}

    async def equal(self) -> dict[str, Any]:
        found = await self.audit()
        assert [each["differences"] for each in found.values()] == [[], []]
        assert all(each["equal"] for each in found.values())
        return found

    async def rebuild(self, service: str) -> Finished:
        finished = await self.made.run("rebuild", service, seconds=120)
        assert finished.code == 0, finished.output + finished.errors
        return finished


@pytest.fixture
async def projected(kafka: str, prefix: str, tmp_path: Path) -> AsyncIterator[Projected]:
    async with installation(tmp_path, model_url=NOBODY, kafka=kafka, prefix=prefix) as made:
        assert (await made.run("topics", "apply")).code == 0
        yield Projected(made, made.log)


async def test_stores_are_rebuilt_while_records_arrive_and_are_read_throughout(projected: Projected) -> None:
    await projected.write(0, 400)
    await projected.tell(created("t-new", title="Plans"), updated("t-new", summary="of a journey"))
    await projected.tell(added("m-slip", thread_id="t-new"), removed("m-slip", thread_id="t-new"))
    await projected.tell(added("m-gone", thread_id="t-gone"), deleted("t-gone"), added("m-back", thread_id="t-gone"))
    await projected.log.publish("messages", b"no event", key="t-1")
    await projected.log.publish("usage", {"kind": "completion"}, key="t-1")
    await projected.log.publish("usage", spent(3))
    memory, usage = await projected.start("memory"), await projected.start("usage")
    found = await projected.equal()
    assert (found["memory"]["events"], found["memory"]["rejected"]) == (400 * 5 + 7, 1)
    assert (found["usage"]["events"], found["usage"]["rejected"]) == (401, 1)
    letters = await projected.log.wait_for("dead-letters", lambda _: True, count=2)

    stop = asyncio.Event()
    reads = 0

    async def keep_writing() -> None:
        """And reads what it has written, which the live store must have whatever is built beside it."""
        number = 1000
        while not stop.is_set():
            await projected.write(number, 10)
            last = await projected.log.publish("messages", encode_event(turn(number)[1]), key=f"t-{number % 23}")
            path = f"/threads/t-{number % 23}?tenant_id=tenant-{number % 2}"
            path += f"&partition={last.partition}&min_offset={last.offset + 1}"
            status, body = await projected.http("GET", "memory", path)
            assert status == 200, body
            number += 10

    async def keep_reading() -> None:
        nonlocal reads
        while not stop.is_set():
            for service, path in (
                ("memory", "/threads/t-0?tenant_id=tenant-0"),
                ("memory", "/search?q=question&tenant_id=tenant-1"),
                ("usage", "/usage?tenant_id=tenant-0"),
            ):
                status, body = await projected.http("GET", service, path)
                assert status == 200, body
                if service == "usage":
                    assert body["items"][0]["events"] >= 200
                reads += 1

    tasks = [asyncio.create_task(keep_writing()), asyncio.create_task(keep_reading())]
    try:
        for service in ("memory", "usage"):
            before = reads
            finished = await projected.rebuild(service)
            assert f"{service} is rebuilt: " in finished.output
            assert reads > before
        await projected.equal()
    finally:
        stop.set()
        await asyncio.gather(*tasks)
    last = await projected.equal()
    assert last["memory"]["events"] > 400 * 5 + 7 + 50 + 1
    assert await projected.log.wait_for("dead-letters", lambda _: True, count=2) == letters
    for running in (memory, usage):
        assert await running.interrupt() == 0
    await asyncio.gather(projected.start("memory"), projected.start("usage"))
    await projected.equal()


@pytest.mark.parametrize("point", ["rebuild.after_batch", "rebuild.before_switch", "rebuild.after_switch"])
async def test_services_that_are_killed_leave_whole_stores(projected: Projected, point: str) -> None:
    await projected.write(0, 100)
    services = ("memory", "usage")
    started = [await projected.start(each, TURNLOG_FAILPOINTS=f"{point}=kill@1") for each in services]
    for service, running in zip(services, started, strict=True):
        finished = await projected.made.run("rebuild", service)
        assert finished.code == 2, finished.output
        assert len(finished.errors.splitlines()) == 1
        assert await asyncio.wait_for(running.process.wait(), 30) == -signal.SIGKILL
        await projected.start(service)
        assert (await projected.http("GET", service, "/rebuild"))[1]["state"] == "none"
    assert len([*(projected.folder / "memory").glob("shard*")]) == 1
    await projected.write(100, 10)
    await projected.equal()
    for service in services:
        await projected.rebuild(service)
    await projected.equal()


class Waiting(EdgeMemoryStore):
    """What is built in it waits to be told to go on."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.go_on = asyncio.Event()

    async def begin_build(self) -> MemoryShard:
        build = await super().begin_build()
        write = build.write

        async def wait_and_write(partition: int, changes: Changes, next_offset: int) -> None:
            await self.go_on.wait()
            await write(partition, changes, next_offset)

        build.write = wait_and_write
        return build


async def test_ctrl_c_cancels_and_a_second_rebuild_is_refused(projected: Projected) -> None:
    await projected.write(0, 100)
    names = ("KAFKA_BOOTSTRAP", "TOPIC_PREFIX", "DATA_DIR")
    given = {name.lower(): projected.made.environment[f"TURNLOG_{name}"] for name in names}
    store = Waiting(projected.folder / "memory")
    service = MemoryService(load_settings(MemorySettings, http_port=0, **given), store=store)
    await service.start()
    memory = {"TURNLOG_MEMORY_URL": f"http://127.0.0.1:{service.port}"}
    await projected.start("usage")

    async def state() -> Any:
        async with projected.made.http.get(memory["TURNLOG_MEMORY_URL"] + "/rebuild") as response:
            return (await response.json())["state"]

    async def begun() -> bool:
        return await state() == "running"

    try:
        assert (await projected.made.run("audit", **memory)).code == 0
        running = await projected.made.start("rebuild", "memory", **memory)
        await eventually(begun, "the rebuild to begin")
        second = await projected.made.run("rebuild", "memory", **memory)
        assert second.code == 2
        assert "409 it is being rebuilt since" in second.errors
        assert (await projected.made.run("audit", **memory)).code == 0
        assert await running.interrupt() == 1
        assert "memory was not rebuilt: cancelled before the switch" in running.output
        assert await state() == "cancelled"
        async with projected.made.http.delete(memory["TURNLOG_MEMORY_URL"] + "/rebuild") as response:
            assert (response.status, (await response.json())["type"]) == (409, "urn:turnlog:problem:no-rebuild")
        assert [each.name for each in (projected.folder / "memory").glob("shard*")] == ["shard-1"]

        again = await projected.made.start("rebuild", "memory", **memory)
        await eventually(begun, "the rebuild to begin again")
        store.go_on.set()
        assert await asyncio.wait_for(again.process.wait(), 60) == 0, again.output
        assert [each.name for each in (projected.folder / "memory").glob("shard*")] == ["shard-2"]
        assert (await projected.made.run("audit", **memory)).code == 0
    finally:
        await service.stop()


def problems(findings: dict[str, Any]) -> set[tuple[str, str]]:
    return {(each["problem"], each["what"]) for each in findings["differences"]}


async def test_a_memory_that_was_tampered_with_is_found_out_and_mended(projected: Projected) -> None:
    await projected.write(0, 50)
    running = await projected.start("memory")
    await projected.start("usage")
    await projected.equal()
    assert await running.interrupt() == 0

    store = EdgeMemoryStore(projected.folder / "memory")
    await store.open()
    (thread,) = await store.get([thread_point("tenant-0", "t-4")])
    (message, role) = await store.get(
        [message_point("tenant-1", "t-7", "m-7-1"), message_point("tenant-1", "t-9", "m-9-1")]
    )
    positions = await store.positions()
    for document, changes in (
        (thread, Changes([thread._replace(body=json.dumps(json.loads(thread.body) | {"title": "another"}))])),
        (role, Changes([role._replace(fields={**role.fields, "role": "assistant"})])),
        (message, Changes(deletes=[message.point_id])),
        (thread, Changes([thread._replace(point_id=thread_point("tenant-0", "fake"), body='{"thread_id": "fake"}')])),
    ):
        assert document.partition is not None
        await store.write(document.partition, changes, positions[document.partition])
    await store.close()

    await projected.start("memory")
    found = await projected.audit()
    assert found["usage"]["equal"]
    assert problems(found["memory"]) == {
        ("different", "thread t-4"),
        ("different", f"message {json.loads(role.body)['message_id']}"),
        ("missing", f"message {json.loads(message.body)['message_id']}"),
        ("unexpected", "thread fake"),
    }
    by_problem = {each["problem"]: each for each in found["memory"]["differences"]}
    assert by_problem["missing"]["tenant_id"] == "tenant-1"
    topic = projected.made.environment["TURNLOG_TOPIC_PREFIX"] + "messages"
    position = f"{topic}[{message.partition}]@{message.fields['position']}"
    assert (by_problem["missing"]["thread_id"], by_problem["missing"]["record"]) == (
        message.fields["thread_id"],
        position,
    )
    told = await projected.made.run("audit")
    assert told.code == 1
    assert f"memory: missing {by_problem['missing']['what']} of thread" in told.output
    assert "different thread t-4 of thread t-4 (tenant tenant-0)" in told.output
    assert "title differ" in told.output
    assert "memory: 4 differ from the log" in told.output
    await projected.rebuild("memory")
    await projected.equal()


async def test_a_usage_that_was_tampered_with_is_found_out_and_mended(projected: Projected) -> None:
    await projected.start("memory")
    running = await projected.start("usage")
    for begin in (0, 40):  # two blocks at least: a start sends the last one again, which mends it
        for number in range(begin, begin + 40):
            await projected.log.publish("usage", spent(number), key="one partition")
        await projected.equal()
    assert await running.interrupt() == 0

    store = ClickHouseUsageStore(url=None, folder=projected.folder / "usage")
    await store.open()
    (row,) = await store.facts([("tenant-0", "u-8")])
    partition, offset = int(row[-2] or 0), int(row[-1] or 0)
    await store.close()
    with clickhouse_connect.get_client(interface="chdb", path=str(projected.folder / "usage" / "chdb")) as client:
        for fake, where in (("u-900", 2), ("x", 10**6)):
            client.command(
                "INSERT INTO usage_events_a "
                f"SELECT * REPLACE('{fake}' AS usage_id, toUInt64({where}) AS source_offset) "
                "FROM (SELECT * FROM usage_events_a WHERE usage_id = 'u-8')"
            )
        client.command(
            "ALTER TABLE usage_events_a UPDATE input_tokens = 80000 WHERE usage_id = 'u-8' SETTINGS mutations_sync = 1"
        )
        client.command("DELETE FROM usage_events_a WHERE usage_id = 'u-9'")

    await projected.start("usage")
    found = await projected.audit()
    assert found["memory"]["equal"]
    assert problems(found["usage"]) == {
        ("different", "usage u-8"),
        ("missing", "usage u-9"),
        ("unexpected", "usage u-900"),
        ("unexpected", "usage x"),
        *(
            ("unbalanced", f"{table} 2026-01-{day} 00:00:00")
            for table in ("usage_minutes", "usage_hours", "usage_days")
            for day in ("09", "10")
        ),
    }
    by_what = {each["what"]: each for each in found["usage"]["differences"]}
    assert by_what["usage u-8"]["detail"] == "input_tokens: the log has '8', usage '80000'"
    assert by_what["usage u-8"]["record"].endswith(f"usage[{partition}]@{offset}")
    assert by_what["usage u-9"]["tenant_id"] == "tenant-1"
    told = await projected.made.run("audit")
    assert told.code == 1
    assert "usage: missing usage u-9 of thread t-9 (tenant tenant-1) at" in told.output
    assert "`turnlog rebuild usage` makes it equal" in told.output
    await projected.rebuild("usage")
    await projected.equal()


async def test_a_usage_that_came_again_with_other_numbers_is_told_and_is_no_difference(projected: Projected) -> None:
    await projected.start("memory")
    await projected.start("usage")
    await projected.log.publish("usage", spent(1), key="one partition")
    await projected.log.publish("usage", spent(1), key="one partition")
    await projected.log.publish("usage", spent(1, input_tokens=7, model="m"), key="one partition")
    await projected.equal()
    (conflict,) = (await projected.audit())["usage"]["conflicts"]
    assert (conflict["usage_id"], conflict["recorded"]) == ("u-1", True)
    assert conflict["detail"] == "model None, not 'm', input_tokens '1', not '7'"
    told = await projected.made.run("audit")
    assert told.code == 0
    assert "usage: conflict of usage u-1 (tenant tenant-1): " in told.output
    await projected.rebuild("usage")
    await projected.equal()
    assert (await projected.audit())["usage"]["conflicts"] == [conflict]


async def test_what_does_not_answer_is_one_line_and_exit_code_2(projected: Projected) -> None:
    for arguments in (("audit",), ("rebuild", "memory"), ("rebuild", "usage")):
        finished = await projected.made.run(*arguments)
        assert finished.code == 2
        assert finished.errors.startswith("turnlog: nothing answers at http://127.0.0.1:")
        assert len(finished.errors.splitlines()) == 1
    nowhere = await projected.made.run("audit", TURNLOG_KAFKA_BOOTSTRAP="127.0.0.1:9")
    assert nowhere.code == 2
    assert len(nowhere.errors.splitlines()) == 1, nowhere.errors
