"""`turnlog up`: everything on one machine, started in order, stopped in reverse."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncGenerator
from importlib import resources

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from infra.local.kafka import LocalKafka
from infra.local.model import LOCAL_MODEL_NAME, LocalModel
from schemas.agents import AgentSpec
from schemas.http import ComponentHealth
from schemas.topics import AGENTS
from services.cli.composition import SERVICES, ServiceName, build_service
from services.runtime.errors import ConfigurationError
from services.runtime.health import readiness
from services.runtime.kafka import KafkaClients
from services.runtime.logs import configure_logs
from services.runtime.registry import Registry, apply_spec
from services.runtime.service import Service, wait_for_signal
from services.runtime.settings import RuntimeSettings, load_settings
from services.runtime.topics import apply_topics

console = Console(highlight=False)

READY_SECONDS = 60
WORKER_STOP_SECONDS = 30
RESTART_SECONDS = 1.0


async def run_up(*, workers: int, with_agents: bool) -> None:
    """Runs until SIGINT or SIGTERM. Raises ConfigurationError when something can never start."""
    settings = load_settings(RuntimeSettings)
    configure_logs(settings)
    stopping = asyncio.ensure_future(wait_for_signal())
    running = asyncio.ensure_future(_run_all(settings, workers, with_agents, stopping))
    await asyncio.wait({stopping, running}, return_when=asyncio.FIRST_COMPLETED)
    if not running.done() and not stopping.cancelled():
        console.print("stopping ...")
    try:
        await running
    finally:
        stopping.cancel()


async def _run_all(
    settings: RuntimeSettings, workers: int, with_agents: bool, stopping: "asyncio.Future[signal.Signals]"
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        _make_data_folder(settings)
        if settings.local:
            await stack.enter_async_context(_kafka(settings))
        clients = KafkaClients(settings, client_id="turnlog-up")
        report = await apply_topics(clients, settings)
        if report.problems:
            raise ConfigurationError("; ".join(report.problems))
        model = await stack.enter_async_context(_model(settings))
        names: list[ServiceName] = [name for name in SERVICES if name != "agents" or (with_agents and not workers)]
        services = {name: build_service(name, **(model if name == "agents" else {})) for name in names}
        for service in services.values():
            stack.push_async_callback(service.stop)
            await service.start()
        if workers and with_agents:
            await stack.enter_async_context(_workers(workers, model))
        await _apply_sample(clients, settings)
        if with_agents:
            await _until_ready(services["gateway"], stopping)
        if not stopping.done():
            _greet(settings, model, with_agents)
        await asyncio.wait({stopping})


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

        kafka = LocalKafka(data_dir=settings.data_dir, port=settings.local_kafka_port, on_progress=on_progress)
        await kafka.start()
    try:
        yield
    finally:
        await kafka.stop()


@contextlib.asynccontextmanager
async def _model(settings: RuntimeSettings) -> AsyncGenerator[dict[str, object]]:
    """Overrides that name the model: none when the environment does, else the local model's."""
    if os.environ.get("OPENAI_API_KEY") or _configured("TURNLOG_MODEL_BASE_URL"):
        yield {}
        return
    async with LocalModel(data_dir=settings.data_dir) as model:
        yield {"model_base_url": model.base_url, "model": LOCAL_MODEL_NAME}


def _configured(name: str) -> bool:
    """Whether a setting is in the environment or in `.env`."""
    agents = load_settings(_ModelSettings)
    return bool(os.environ.get(name) or agents.model_base_url)


class _ModelSettings(RuntimeSettings):
    model_base_url: str | None = None


@contextlib.asynccontextmanager
async def _workers(count: int, overrides: dict[str, object]) -> AsyncGenerator[None]:
    """Agent workers as processes, started again when one dies, stopped with their grace time."""
    environment = os.environ | {f"TURNLOG_{name.upper()}": str(value) for name, value in overrides.items()}
    tasks = [asyncio.create_task(_keep_worker(number, environment)) for number in range(count)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _keep_worker(number: int, environment: dict[str, str]) -> None:
    while True:
        worker = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.cli.app", "run", "agents", env=environment, start_new_session=True
        )
        try:
            code = await worker.wait()
        except asyncio.CancelledError:
            worker.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(worker.wait(), WORKER_STOP_SECONDS)
            if worker.returncode is None:
                worker.kill()
            raise
        console.print(f"agents worker {number} ended with {code}; starting it again")
        await asyncio.sleep(RESTART_SECONDS)


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


async def _until_ready(gateway: Service, stopping: "asyncio.Future[signal.Signals]") -> None:
    """Returns when a prompt would be answered. Raises ConfigurationError when that does not come about."""
    components: dict[str, ComponentHealth] = {}
    for _ in range(READY_SECONDS * 10):
        answer = await readiness(gateway.readiness)
        components = answer.components
        if answer.ready or stopping.done():
            return
        await asyncio.sleep(0.1)
    waiting = "; ".join(f"{name}: {each.detail}" for name, each in components.items() if not each.ready)
    raise ConfigurationError(f"not ready after {READY_SECONDS} s: {waiting}")


def _greet(settings: RuntimeSettings, model: dict[str, object], with_agents: bool) -> None:
    base = f"http://{settings.http_host}:{settings.http_port}"
    console.print(f"[bold]Turnlog is up.[/bold]  HTTP {base}  (docs: {base}/docs)   Kafka {settings.bootstrap}")
    if model:
        console.print(
            "The model is SmolLM2 on this machine: it answers in text and calls no tools by itself. "
            "Set OPENAI_API_KEY or TURNLOG_MODEL_BASE_URL for one that does."
        )
    if not with_agents:
        console.print("No agents worker runs: start some with `turnlog run agents`.")
    console.print("\nTry, over HTTP:")
    console.print(
        f"  curl -s '{base}/v1/threads/t-1/prompts?wait=30' -H 'Content-Type: application/json' "
        """-d '{"content": "hello"}'""",
        markup=False,
        soft_wrap=True,
    )
    console.print("or from Kafka:")
    console.print(
        f"""  uv run python -c 'import asyncio, aiokafka
async def main():
    async with aiokafka.AIOKafkaProducer(bootstrap_servers="{settings.bootstrap}") as producer:
        event = b"{{\\"thread_id\\": \\"t-1\\", \\"agent\\": \\"assistant\\", \\"content\\": \\"hello\\"}}"
        await producer.send_and_wait("{settings.topic("prompts")}", event, key=b"t-1")
asyncio.run(main())'""",
        markup=False,
        soft_wrap=True,
    )
    console.print("and watch it: `uv run turnlog tail t-1`. Ctrl-C stops everything; the data stays.")
