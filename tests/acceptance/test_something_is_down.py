"""A part that is down makes readiness fail and the log wait; when it is back, the work goes on."""

from pathlib import Path

import pytest

from infra.local.kafka import LocalKafka
from tests.scripted_model.server import ScriptedModel
from tests.support.installation import Installation, free_ports, installation
from tests.support.waiting import eventually

pytestmark = [pytest.mark.broker, pytest.mark.asyncio(loop_scope="session")]


async def until_ready(turnlog: Installation, ready: bool) -> None:
    async def probe() -> bool:
        async with turnlog.http.get(f"{turnlog.base_url}/readyz") as response:
            return (response.status == 200) == ready

    await eventually(probe, f"readiness to be {ready}", seconds=60)


async def test_a_prompt_waits_for_the_model_to_come_back(kafka: str, prefix: str, tmp_path: Path, thread: str) -> None:
    port = free_ports(1)
    url = f"http://127.0.0.1:{port}/v1"
    async with installation(tmp_path, model_url=url, kafka=kafka, prefix=prefix) as turnlog:
        async with ScriptedModel(port=port):
            await turnlog.up()
        await until_ready(turnlog, False)

        await turnlog.prompt(thread, "are you there?")
        await turnlog.log.wait_for("usage", lambda event: event["outcome"] == "error")
        async with ScriptedModel(port=port):
            assert (await turnlog.completion(thread))["text"] == "You said: are you there?"
            await until_ready(turnlog, True)


async def test_a_prompt_waits_for_memory_to_come_back(fresh: Installation, thread: str) -> None:
    services = {}
    await fresh.run("topics", "apply")
    for name in ("memory", "usage", "tools", "agents", "gateway"):
        services[name] = await fresh.start("run", name)
    file = fresh.folder / "agent.yaml"
    file.write_text("name: assistant\n")
    assert (await fresh.run("agents", "apply", str(file))).code == 0

    async def answers() -> bool:
        return (await fresh.run("doctor")).code == 0

    await eventually(answers, "all services to be ready", seconds=60)
    await services["memory"].kill()
    await until_ready(fresh, False)

    await fresh.prompt(thread, "do you remember?")
    await fresh.start("run", "memory")

    assert (await fresh.completion(thread))["text"] == "You said: do you remember?"
    await until_ready(fresh, True)


async def test_everything_goes_on_when_kafka_is_back(shared_model: ScriptedModel, tmp_path: Path) -> None:
    port = free_ports(1)
    broker = LocalKafka(data_dir=tmp_path / "kafka", port=port)
    await broker.start()
    try:
        url = shared_model.base_url
        async with installation(tmp_path, model_url=url, kafka=broker.bootstrap, prefix="") as turnlog:
            up = await turnlog.up()
            for number in range(3):
                await turnlog.prompt(f"t-{number}", f"before {number}")
            await turnlog.log.wait_for("completions", lambda event: True, count=3)

            await broker.stop()
            await until_ready(turnlog, False)
            again = {"Idempotency-Key": "sent until accepted"}
            for headers in (again, again | {"Accept": "text/event-stream"}):
                refused = await turnlog.post("/v1/threads/t-0/prompts", {"content": "now"}, headers=headers, status=503)
                assert refused["type"] == "urn:turnlog:problem:unavailable"
            await broker.start()
            await until_ready(turnlog, True)

            await turnlog.post("/v1/threads/t-0/prompts?wait=60", {"content": "now"}, headers=again, status=200)
            await turnlog.post("/v1/threads/t-0/prompts?wait=60", {"content": "after"}, status=200)
            ended = [each["text"] for each in await turnlog.log.events("completions")]
            assert sorted(ended) == ["You said: after", *(f"You said: before {n}" for n in range(3)), "You said: now"]
            assert await up.interrupt() == 0, up.output
    finally:
        await broker.stop()


async def test_services_that_start_before_kafka_wait_for_it(
    shared_model: ScriptedModel, tmp_path: Path, thread: str
) -> None:
    broker = LocalKafka(data_dir=tmp_path / "kafka", port=free_ports(1))
    await broker.start()
    try:
        url = shared_model.base_url
        async with installation(tmp_path, model_url=url, kafka=broker.bootstrap, prefix="") as turnlog:
            assert (await turnlog.run("topics", "apply")).code == 0
            file = tmp_path / "agent.yaml"
            file.write_text("name: assistant\n")
            assert (await turnlog.run("agents", "apply", str(file))).code == 0
            await broker.stop()

            services = [await turnlog.start("run", name) for name in ("memory", "usage", "tools", "agents", "gateway")]
            for service in services:
                await service.until_says("_waits")
            await broker.start()
            await turnlog.prompt(thread, "are you all there?")
            assert (await turnlog.completion(thread))["text"] == "You said: are you all there?"
            await until_ready(turnlog, True)
            for service in reversed(services):
                assert await service.interrupt() == 0, service.output
    finally:
        await broker.stop()
