"""What usage reads from the log before it answers: until then there is no answer, rather than a wrong one."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from schemas.http import ComponentHealth, Problem
from schemas.topics import DEAD_LETTERS, USAGE, Topic
from services.runtime.connections import RETRY_SECONDS, Repeated
from services.runtime.kafka import KafkaClients
from services.runtime.settings import RuntimeSettings
from services.runtime.topics import check_topics
from services.runtime.web import problem_response

log = structlog.get_logger(__name__)

ALWAYS_ANSWERED = {"/healthz", "/readyz", "/metrics"}


class Opening:
    """Reads topics one after the other.

    Args:
        reads: of each topic that is read whole, what returns when it has been.
    """

    def __init__(
        self,
        clients: KafkaClients,
        settings: RuntimeSettings,
        reads: Sequence[tuple[Topic, Callable[[], Awaitable[None]]]],
    ) -> None:
        self._clients = clients
        self._settings = settings
        self._reads = reads
        self._trouble = "usage has not started yet"

    async def start(self) -> None:
        """Returns when everything has been read; waits for topics that are missing. Raises UnavailableError."""
        await self._until_topics_exist()
        for topic, read in self._reads:
            self._trouble = f"topic {self._settings.topic(topic.name)} is being read"
            await read()
        self._trouble = ""

    def health(self) -> ComponentHealth:
        return ComponentHealth(ready=not self._trouble, detail=self._trouble)

    async def _until_topics_exist(self) -> None:
        """Before anything is assigned: aiokafka looks for the leader of a missing topic without a pause."""
        wanted = [
            self._settings.topic(topic.name) for topic in (USAGE, DEAD_LETTERS, *(topic for topic, _ in self._reads))
        ]
        repeated = Repeated()
        while True:
            existing = (await check_topics(self._clients, self._settings)).existing
            missing = [name for name in wanted if name not in existing]
            if not missing:
                return
            self._trouble = f"there is no topic {', '.join(missing)}: run `turnlog topics apply`"
            if repeated.is_news(self._trouble):
                log.warning("usage_waits", reason=self._trouble)
            await asyncio.sleep(RETRY_SECONDS)


class Gate:
    """ASGI middleware: 503 with Retry-After where an answer would rest on what is not there yet.

    Args:
        awaited: of a path, what it still waits for, if anything.
    """

    def __init__(self, app: ASGIApp, awaited: Callable[[str], str | None]) -> None:
        self._app = app
        self._awaited = awaited

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in ALWAYS_ANSWERED or not (why := self._awaited(scope["path"])):
            await self._app(scope, receive, send)
            return
        document = Problem(type="urn:turnlog:problem:unavailable", title="Not available now", status=503, detail=why)
        await problem_response(document, {"Retry-After": "1"})(scope, receive, send)
