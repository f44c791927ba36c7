"""`turnlog up`: everything on one machine, started in order, stopped in reverse."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from importlib import resources

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from infra.local.kafka import LocalKafka
from infra.local.model import LOCAL_MODEL_NAME, LocalModel
from schemas.agents import AgentSpec
from schemas.http import ComponentHealth
from schemas.topics import AGENTS
from services.agents.providers import names_a_provider
from services.agents.settings import AgentsSettings
from services.cli.composition import SERVICES, build_gateway, build_service
from services.cli.greeting import greet
from services.cli.workers import kept_workers
from services.runtime.errors import ConfigurationError
from services.runtime.garbage import collect_rarely
from services.runtime.health import readiness
from services.runtime.kafka import KafkaClients
from services.runtime.logs import configure_logs
from services.runtime.registry import Registry, apply_spec
from services.runtime.service import Service, wait_for_signal
from services.runtime.settings import RuntimeSettings, load_settings
from services.runtime.topics import apply_topics

console = Console(highlight=False)

READY_SECONDS = 20

Overrides = Mapping[str, object]
"""Settings that win over the environment."""


async def run_up(*, workers: int, with_agents: bool) -> None:
    """Runs until SIGINT or SIGTERM. Raises ConfigurationError or LocalError when something can never start."""
    settings = load_settings(RuntimeSettings)
    configure_logs(settings)
    stopping = asyncio.ensure_future(wait_for_signal())
    async with contextlib.AsyncExitStack() as stack:
        starting = asyncio.ensure_future(_start_all(settings, stack, workers=workers, with_agents=with_agents))
        await asyncio.wait({stopping, starting}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            collect_rarely()
            await stopping
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        console.print("stopping ...")


async def _start_all(
    settings: RuntimeSettings, stack: contextlib.AsyncExitStack, *, workers: int, with_agents: bool
) -> None:
    """Starts everything, and puts on the stack how it is stopped."""
    _make_data_folder(settings)
    if settings.local:
        await stack.enter_async_context(_kafka(settings))
    clients = KafkaClients(settings, client_id="turnlog-up")
    report = await apply_topics(clients, settings)
    if report.problems:
        raise ConfigurationError("; ".join(report.problems))
    model = await stack.enter_async_context(_model(settings))
    beside: list[Service] = []
    for name in SERVICES:
        if name == "gateway" or (name == "agents" and (workers or not with_agents)):
            continue
        service = build_service(name, **(model if name == "agents" else {}))
        beside.append(await _started(service, stack))
    gateway = await _started(build_gateway(beside), stack)
    if workers and with_agents:
        await stack.enter_async_context(kept_workers(workers, data_dir=settings.data_dir, overrides=model))
    await _apply_sample(clients, settings)
    waiting = await _until_ready(gateway) if with_agents else ""
    greet(settings, local_model=bool(model), with_agents=with_agents, waiting=waiting)


async def _started(service: Service, stack: contextlib.AsyncExitStack) -> Service:
    stack.push_async_callback(service.stop)
    await service.start()
    return service


def _make_data_folder(settings: RuntimeSettings) -> None:
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        probe = settings.data_dir / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigurationError(
            f"cannot write to the data folder {settings.data_dir}: {error.strerror}; set TURNLOG_DATA_DIR"
        ) from error


@contextlib.asynccontextmanager
async def _kafka(settings: RuntimeSettings) -> AsyncGenerator[None]:
    """The local broker, with a bar while its jars are fetched for the first time."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("fetching Apache Kafka", total=None, visible=False)

        def on_progress(done: int, total: int, name: str) -> None:
            progress.update(task, completed=done, total=total, visible=True)

        kafka = LocalKafka(
            data_dir=settings.data_dir,
            port=settings.local_kafka_port,
            nodes=settings.local_kafka_nodes,
            on_progress=on_progress,
        )
        await kafka.start()
    try:
        yield
    finally:
        await kafka.stop()


@contextlib.asynccontextmanager
async def _model(settings: RuntimeSettings) -> AsyncGenerator[Overrides]:
    """Settings that name the local model, which runs meanwhile; none when somebody has named another."""
    if names_a_provider(load_settings(AgentsSettings)):
        yield {}
        return
    async with LocalModel(data_dir=settings.data_dir) as model:
        yield {"model_base_url": model.base_url, "model": LOCAL_MODEL_NAME}


async def _apply_sample(clients: KafkaClients, settings: RuntimeSettings) -> None:
    """The sample agent, unless somebody has applied one of its name."""
    text = resources.files("infra.samples").joinpath("assistant.yaml").read_text()
    sample = AgentSpec.model_validate(yaml.safe_load(text))
    registry: Registry[AgentSpec] = Registry(clients, settings, AGENTS)
    await registry.start()
    try:
        if registry.get(sample.name, tenant_id="default") is not None:
            return
    finally:
        await registry.stop()
    producer = clients.producer()
    await producer.start()
    try:
        await apply_spec(producer, clients, settings, AGENTS, sample)
    finally:
        await producer.stop()


async def _until_ready(gateway: Service) -> str:
    """Empty when a prompt would be answered; what is still waited for when that takes long."""
    components: dict[str, ComponentHealth] = {}
    for _ in range(READY_SECONDS * 10):
        answer = await readiness(gateway.readiness)
        components = answer.components
        if answer.ready:
            return ""
        await asyncio.sleep(0.1)
    return "; ".join(f"{name}: {each.detail}" for name, each in components.items() if not each.ready)
