"""`/healthz`, `/readyz` and `/metrics` for a service that has no HTTP interface of its own."""

from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from schemas.http import ComponentHealth, Readiness
from services.runtime.errors import ConfigurationError

ReadinessCheck = Callable[[], Awaitable[dict[str, ComponentHealth]]]
"""Asks a service for the health of each thing it depends on. Must answer within 2 s."""


async def readiness(check: ReadinessCheck) -> Readiness:
    """Ready when every component is."""
    components = await check()
    return Readiness(ready=all(component.ready for component in components.values()), components=components)


class HealthServer:
    """Serves the three endpoints. Port 0 takes any free port; `port` tells which."""

    def __init__(self, check: ReadinessCheck, *, host: str, port: int) -> None:
        self._check = check
        self._host = host
        self.port = port
        application = web.Application()
        application.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics),
            ]
        )
        self._runner = web.AppRunner(application, access_log=None)

    async def start(self) -> None:
        """Raises ConfigurationError when the port is in use."""
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self.port).start()
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on {self._host}:{self.port}: {error.strerror}; choose another port"
            ) from error
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _readyz(self, request: web.Request) -> web.Response:
        answer = await readiness(self._check)
        return web.Response(
            text=answer.model_dump_json(), status=200 if answer.ready else 503, content_type="application/json"
        )

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST})
