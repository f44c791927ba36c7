"""The tools worker on the real broker: answers, refusals, a slow call among fast ones, kills in the middle of one."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer
from aiokafka import AIOKafkaProducer, TopicPartition

from infra.local.kafka import LocalKafka
from schemas.envelope import decode_event, encode_event, header_map
from schemas.ids import new_id
from schemas.tool_calls import ToolCalled, ToolFailed, ToolProgress, ToolReturned
from schemas.topics import DEAD_LETTERS, MAX_RECORD_BYTES, TOOL_CALLS, TOOL_RESULTS, TOOLS, USAGE, Topic
from services.runtime.kafka import KafkaClients
from services.runtime.topics import apply_topics
from services.tools.app import ToolsService
from services.tools.settings import ToolsSettings

pytestmark = [pytest.mark.broker, pytest.mark.asyncio(loop_scope="module")]

WORKER = """
import asyncio
from services.runtime.service import run_service
from services.runtime.settings import load_settings
from services.tools.app import ToolsService
from services.tools.settings import ToolsSettings

asyncio.run(run_service(lambda: ToolsService(load_settings(ToolsSettings))))
"""

TOOLS_MODULE = """
import asyncio
from pathlib import Path
from services.tools.registration import tool
from services.tools.tool import ToolContext

HERE = Path(__file__).parent

@tool
async def gated(gate: str, context: ToolContext) -> str:
    '''Waits for a file, and notes that it ran.'''
    with (HERE / "ran.txt").open("a") as file:
        file.write(context.call_id + "\\n")
    context.progress("waiting", 0.5)
    while not (HERE / gate).exists():
        await asyncio.sleep(0.01)
    return "through " + gate

@tool
def quick(number: int) -> int:
    return number * 2

@tool(queue="heavy")
def heavy(context: ToolContext) -> str:
    return "heavy"
"""

MCP_SERVER = """
from mcp.server.mcpserver import MCPServer

server = MCPServer("child")

@server.tool()
def add(left: int, right: int) -> int:
    return left + right

server.run("stdio")
"""

TOOLS_FILE = """
http:
  - name: stock
    url: {shop}{{item}}
    headers: {{Authorization: none}}
    parameters: {{type: object, properties: {{item: {{type: string}}}}, required: [item]}}
mcp:
  - name: child
    command: {python}
    args: [{folder}/server.py]
    prefix: child_
"""


@dataclass
class Installation:
    """Topics of one test, and a client beside the worker."""

    settings: ToolsSettings
    producer: AIOKafkaProducer
    folder: Path
    sent: list[ToolCalled] = field(default_factory=list)

    async def call(self, name: str, *, thread: str = "t-1", seconds: float = 60, **arguments: Any) -> ToolCalled:
        now = datetime.now(UTC)
        call = ToolCalled(
            thread_id=thread,
            call_id=new_id(now),
            turn_id="turn-1",
            step=1,
            name=name,
            arguments=arguments,
            agent="assistant",
            called_at=now,
            deadline_at=now + timedelta(seconds=seconds),
        )
        queue = TOOL_CALLS.name + (".heavy" if name == "heavy" else "")
        await self.write(queue, thread, encode_event(call))
        return call

    async def write(self, topic: str, key: str, value: bytes) -> None:
        await self.producer.send_and_wait(self.settings.topic(topic), value, key=key.encode(), partition=0)

    async def read(self, topic: Topic) -> list[Any]:
        """Every event that the topic holds now."""
        consumer = KafkaClients(self.settings, client_id="test").consumer()
        await consumer.start()
        try:
            name = self.settings.topic(topic.name)
            partitions = [TopicPartition(name, each) for each in consumer.partitions_for_topic(name) or {0}]
            consumer.assign(partitions)
            await consumer.seek_to_beginning(*partitions)
            ends = await consumer.end_offsets(partitions)
            events: list[Any] = []
            while any([await consumer.position(each) < ends[each] for each in partitions]):
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    events += [
                        decode_event(topic, each.value, header_map(each.headers), max_bytes=MAX_RECORD_BYTES)
                        for each in records
                    ]
            return events
        finally:
            await consumer.stop()

    async def answers(self, *calls: ToolCalled, seconds: float = 30) -> dict[str, ToolReturned | ToolFailed]:
        """Waits for the answers to the calls."""
        deadline = time.monotonic() + seconds
        wanted = {call.call_id for call in calls}
        while True:
            results = [each for each in await self.read(TOOL_RESULTS) if not isinstance(each, ToolProgress)]
            found = {each.call_id: each for each in results}
            if wanted <= found.keys():
                return found
            assert time.monotonic() < deadline, f"no answer to {wanted - found.keys()}"

    async def committed(self) -> int | None:
        consumer = KafkaClients(self.settings, client_id="test").consumer(
            group_id=f"{self.settings.topic_prefix}turnlog-tools"
        )
        await consumer.start()
        try:
            return await consumer.committed(TopicPartition(self.settings.topic(TOOL_CALLS.name), 0))
        finally:
            await consumer.stop()

    async def until_committed(self, offset: int, *, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while (now := await self.committed()) != offset:
            assert time.monotonic() < deadline, f"committed is {now}, not {offset}"

    def ran(self) -> list[str]:
        file = self.folder / "ran.txt"
        return file.read_text().split() if file.exists() else []

    def open_gate(self, name: str) -> None:
        (self.folder / name).touch()


async def until(condition: Callable[[], bool], *, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.02)


async def until_async(condition: Callable[[], Awaitable[bool]], *, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.05)


async def is_unready(service: ToolsService) -> bool:
    return not all(each.ready for each in (await service.readiness()).values())


@pytest_asyncio.fixture(loop_scope="module")
async def installation(kafka: str, tmp_path: Path) -> AsyncIterator[Installation]:
    async with installed(kafka, tmp_path) as made:
        yield made


@contextlib.asynccontextmanager
async def installed(kafka: str, tmp_path: Path) -> AsyncIterator[Installation]:
    module = tmp_path / "shop_tools.py"
    module.write_text(TOOLS_MODULE)
    settings = ToolsSettings(
        _env_file=None,
        kafka_bootstrap=kafka,
        topic_prefix=f"test-{uuid4().hex[:8]}.",
        topic_partitions=2,
        topic_replication=1,
        tools_modules=f"services.tools.sample,{module}",
        tools_session_timeout_ms=6000,
        tools_grace_seconds=5,
    )
    clients = KafkaClients(settings, client_id="test")
    await apply_topics(clients, settings)
    producer = clients.producer()
    await producer.start()
    yield Installation(settings, producer, tmp_path)
    await producer.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def worker(installation: Installation) -> AsyncIterator[ToolsService]:
    service = ToolsService(installation.settings)
    await service.start()
    yield service
    await service.stop()


async def start_process(installation: Installation, **environment: str) -> asyncio.subprocess.Process:
    settings = installation.settings
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        WORKER,
        env=os.environ
        | {
            "TURNLOG_KAFKA_BOOTSTRAP": settings.bootstrap,
            "TURNLOG_TOPIC_PREFIX": settings.topic_prefix,
            "TURNLOG_TOPIC_PARTITIONS": "2",
            "TURNLOG_TOPIC_REPLICATION": "1",
            "TURNLOG_TOOLS_MODULES": settings.tools_modules,
            "TURNLOG_TOOLS_SESSION_TIMEOUT_MS": str(settings.tools_session_timeout_ms),
        }
        | environment,
    )


@pytest.mark.usefixtures("worker")
async def test_calls_are_answered_metered_and_committed(installation: Installation) -> None:
    weather = await installation.call("get_weather", city="Paris", month=7)
    heavy = await installation.call("heavy")
    wrong = await installation.call("get_weather", town="Paris")
    unknown = await installation.call("no_such_tool")
    late = await installation.call("quick", seconds=-1, number=1)
    found = await installation.answers(weather, heavy, wrong, unknown, late)

    returned = found[weather.call_id]
    assert isinstance(returned, ToolReturned)
    assert returned.result == {
        "city": "Paris",
        "month": 7,
        "mean_celsius": 21.0,
        "source": "sample data: monthly climate means, not a measurement",
    }
    assert found[heavy.call_id].result == "heavy"
    codes = {call.name: found[call.call_id].code for call in (wrong, unknown, late)}
    assert codes == {"get_weather": "invalid_arguments", "no_such_tool": "unknown_tool", "quick": "timeout"}
    usage = await installation.read(USAGE)
    assert sorted((each.tool, each.kind, each.outcome) for each in usage) == [
        ("get_weather", "tool", "ok"),
        ("heavy", "tool", "ok"),
    ]
    await installation.until_committed(4)


async def test_the_tools_are_announced_and_the_worker_is_ready(
    installation: Installation, worker: ToolsService
) -> None:
    names = {spec.name: spec.queue for spec in await installation.read(TOOLS)}
    assert names == {"get_weather": None, "calculate": None, "gated": None, "quick": None, "heavy": "heavy"}
    deadline = time.monotonic() + 20
    async with aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"http://127.0.0.1:{worker.port}/readyz") as response:
                if response.status == 200:
                    break
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)


@pytest.mark.usefixtures("worker")
async def test_a_record_that_is_no_call_goes_to_dead_letters_and_the_partition_goes_on(
    installation: Installation,
) -> None:
    await installation.write(TOOL_CALLS.name, "t-1", b"no json")
    call = await installation.call("quick", number=21)
    found = await installation.answers(call)
    assert found[call.call_id].result == 42
    (letter,) = await installation.read(DEAD_LETTERS)
    assert (letter.reason, letter.value, letter.source) == ("not_json", b"no json", "tools")


@pytest.mark.usefixtures("worker")
async def test_one_slow_call_does_not_hold_up_others_and_is_not_committed_past(installation: Installation) -> None:
    slow = await installation.call("gated", gate="open")
    await until(lambda: bool(installation.ran()))
    quick = [await installation.call("quick", number=number) for number in range(100)]
    found = await installation.answers(*quick)
    assert [found[call.call_id].result for call in quick] == [2 * number for number in range(100)]
    assert slow.call_id not in found
    assert await installation.committed() in (None, 0)

    installation.open_gate("open")
    assert (await installation.answers(slow))[slow.call_id].result == "through open"
    await installation.until_committed(101)
    progress = [each for each in await installation.read(TOOL_RESULTS) if isinstance(each, ToolProgress)]
    assert [(each.call_id, each.fraction) for each in progress] == [(slow.call_id, 0.5)]


async def test_a_call_whose_worker_is_killed_is_run_again_with_the_same_id(installation: Installation) -> None:
    first = await start_process(installation)
    call = await installation.call("gated", gate="open")
    await until(lambda: bool(installation.ran()))
    first.send_signal(signal.SIGKILL)
    await first.wait()

    second = await start_process(installation)
    try:
        await until(lambda: len(installation.ran()) == 2, seconds=60)
        installation.open_gate("open")
        found = await installation.answers(call)
        assert found[call.call_id].result == "through open"
        assert installation.ran() == [call.call_id, call.call_id]
    finally:
        second.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(second.wait(), 30) == 0


@pytest.mark.parametrize("point", ["tools.before_result", "tools.after_result"])
async def test_a_kill_around_the_answer_loses_no_call_and_meters_it_once(
    installation: Installation, point: str
) -> None:
    first = await start_process(installation, TURNLOG_FAILPOINTS=f"{point}=kill@1")
    call = await installation.call("quick", number=4)
    assert await asyncio.wait_for(first.wait(), 60) == -signal.SIGKILL

    second = await start_process(installation)
    try:
        after = await installation.call("quick", number=5)
        found = await installation.answers(call, after, seconds=60)
        assert (found[call.call_id].result, found[after.call_id].result) == (8, 10)
        usage = [json.loads(each.model_dump_json()) for each in await installation.read(USAGE)]
        assert len({each["usage_id"] for each in usage}) == 2
        assert len({(each["usage_id"], each["occurred_at"]) for each in usage}) == 2
    finally:
        second.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(second.wait(), 30) == 0


async def test_a_worker_that_slept_while_another_went_on_takes_nothing_back(installation: Installation) -> None:
    first = await start_process(installation)
    slow = await installation.call("gated", gate="open")
    await until(lambda: bool(installation.ran()))
    first.send_signal(signal.SIGSTOP)
    second = await start_process(installation)
    try:
        await until(lambda: len(installation.ran()) == 2, seconds=60)
        installation.open_gate("open")
        quick = [await installation.call("quick", number=number) for number in range(5)]
        await installation.answers(slow, *quick)
        await installation.until_committed(6)
        first.send_signal(signal.SIGCONT)
        # Its call of old ends, its commit is refused or changes nothing, and both workers go on.
        more = [await installation.call("quick", number=number) for number in range(5)]
        await installation.answers(*more)
        await installation.until_committed(11)
        answers = [each.call_id for each in await installation.read(TOOL_RESULTS) if isinstance(each, ToolReturned)]
        assert set(answers) == {call.call_id for call in (slow, *quick, *more)}
    finally:
        for process in (first, second):
            process.send_signal(signal.SIGTERM)
        for process in (first, second):
            assert await asyncio.wait_for(process.wait(), 30) == 0


async def test_more_calls_than_a_worker_runs_at_once_wait_their_turn(installation: Installation) -> None:
    settings = installation.settings.model_copy(update={"tools_concurrency": 2})
    service = ToolsService(settings)
    await service.start()
    try:
        slow = await installation.call("gated", gate="open")
        calls = [await installation.call("quick", number=number) for number in range(300)]
        found = await installation.answers(*calls)
        assert slow.call_id not in found
        installation.open_gate("open")
        await installation.until_committed(301)
        results = [each for each in await installation.read(TOOL_RESULTS) if isinstance(each, ToolReturned)]
        assert len(results) == 301
    finally:
        await service.stop()


async def test_tools_of_the_file_are_announced_and_called(installation: Installation, tmp_path: Path) -> None:
    async def stock(request: web.Request) -> web.Response:
        return web.json_response({"item": request.match_info["item"], "token": request.headers["Authorization"]})

    application = web.Application()
    application.router.add_get("/stock/{item}", stock)
    (tmp_path / "server.py").write_text(MCP_SERVER)
    async with TestServer(application) as shop:
        file = tmp_path / "tools.yaml"
        file.write_text(TOOLS_FILE.format(shop=shop.make_url("/stock/"), python=sys.executable, folder=tmp_path))
        service = ToolsService(installation.settings.model_copy(update={"tools_file": file}))
        await service.start()
        try:
            http = await installation.call("stock", item="tea")
            mcp = await installation.call("child_add", left=2, right=3)
            found = await installation.answers(http, mcp)
            assert found[http.call_id].result == {"item": "tea", "token": "none"}
            assert found[mcp.call_id].result == {"result": 5}
            assert {"stock", "child_add"} <= {spec.name for spec in await installation.read(TOOLS)}
            components = await service.readiness()
            assert components["mcp:child"].ready
        finally:
            await service.stop()


async def test_a_call_that_ends_while_kafka_is_away_is_answered_when_it_is_back(tmp_path: Path) -> None:
    kafka = LocalKafka(data_dir=tmp_path / "data", port=0)
    port = int((await kafka.start()).rpartition(":")[2])
    service: ToolsService | None = None
    try:
        async with installed(kafka.bootstrap, tmp_path) as installation:
            service = ToolsService(installation.settings)
            await service.start()
            call = await installation.call("gated", gate="open")
            await until(lambda: bool(installation.ran()))
            await kafka.stop()
            installation.open_gate("open")
            await until_async(lambda: is_unready(service))
            kafka = LocalKafka(data_dir=tmp_path / "data", port=port)
            await kafka.start()
            found = await installation.answers(call, seconds=60)
            assert found[call.call_id].result == "through open"
            assert installation.ran() == [call.call_id]
            after = await installation.call("quick", number=1)
            await installation.answers(after, seconds=60)
            await installation.until_committed(2, seconds=60)
    finally:
        if service is not None:
            await service.stop()
        await kafka.stop()


async def test_a_stopping_worker_lets_running_calls_end(installation: Installation) -> None:
    service = ToolsService(installation.settings)
    await service.start()
    call = await installation.call("gated", gate="open")
    await until(lambda: bool(installation.ran()))
    stopping = asyncio.create_task(service.stop())
    installation.open_gate("open")
    await asyncio.wait_for(stopping, 30)
    found = await installation.answers(call)
    assert found[call.call_id].result == "through open"
    assert await installation.committed() == 1


async def test_a_second_worker_takes_its_share_while_calls_run_on(installation: Installation) -> None:
    first = ToolsService(installation.settings)
    await first.start()
    slow = await installation.call("gated", gate="open")
    await until(lambda: bool(installation.ran()))
    second = ToolsService(installation.settings)
    await second.start()
    try:
        quick = [await installation.call("quick", number=number) for number in range(20)]
        await installation.answers(*quick)
        installation.open_gate("open")
        found = await installation.answers(slow, *quick)
        assert found[slow.call_id].result == "through open"
        assert len(found) == 21
        assert set(installation.ran()) == {slow.call_id}
    finally:
        await second.stop()
        await first.stop()
