"""The life of a service: start, ready, serve until told to stop, stop in order."""

import asyncio
import signal
from collections.abc import Callable
from typing import Protocol

import structlog

from schemas.http import ComponentHealth
from services.runtime.connections import Repeated
from services.runtime.errors import UnavailableError
from services.runtime.garbage import collect_rarely
from services.runtime.kafka import KafkaError

log = structlog.get_logger(__name__)

START_RETRY_SECONDS = 1.0

ONE_SIGNAL_SECONDS = 1.0
"""Ctrl-C reaches every process of a terminal, and `uv run` hands its own on: what follows within is no second one."""


class Service(Protocol):
    """What `turnlog up` and `turnlog run` need of a service.

    `start` returns when the service takes work and raises ConfigurationError when it never can; a dependency that is
    down only makes `readiness` fail. `stop` finishes what is in hand, commits, and releases everything.
    """

    name: str

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def readiness(self) -> dict[str, ComponentHealth]: ...


async def wait_for_signal() -> signal.Signals:
    """Returns with the first SIGINT or SIGTERM. One that comes after ONE_SIGNAL_SECONDS ends the process at once."""
    loop = asyncio.get_running_loop()
    received: asyncio.Future[signal.Signals] = loop.create_future()

    def receive(number: signal.Signals) -> None:
        if not received.done():
            received.set_result(number)
            loop.call_later(ONE_SIGNAL_SECONDS, leave_to_the_system)

    def leave_to_the_system() -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, receive, number)
    return await received


async def run_service(build: Callable[[], Service]) -> None:
    """Builds one service inside the event loop and runs it in the foreground until SIGINT or SIGTERM.

    While Kafka is away at the start it is built and started again, until it is there.
    """
    stopping, repeated = asyncio.ensure_future(wait_for_signal()), Repeated()
    try:
        while not stopping.done() and not await _run(build(), stopping, repeated):
            await asyncio.wait({stopping}, timeout=START_RETRY_SECONDS)
    finally:
        stopping.cancel()


async def _run(service: Service, stopping: asyncio.Future[signal.Signals], repeated: Repeated) -> bool:
    """Runs a service until it is told to stop. False when something that it needs was away at the start."""
    starting = asyncio.ensure_future(service.start())
    try:
        await asyncio.wait({stopping, starting}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            collect_rarely()
            log.info("service_started", service=service.name)
        await asyncio.wait({stopping})
    except (UnavailableError, KafkaError) as error:
        if repeated.is_news(str(error)):
            log.warning("service_waits", service=service.name, reason=str(error))
        return False
    finally:
        starting.cancel()
        await service.stop()
    log.info("service_stopped", service=service.name)
    return True
