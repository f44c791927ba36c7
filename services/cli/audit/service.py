"""A service as an audit asks it."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel

from services.cli.gateway import request
from services.runtime.errors import BehindError, UnavailableError
from services.runtime.settings import RuntimeSettings

Answer = TypeVar("Answer", bound=BaseModel)

BEHIND_SECONDS = 60.0
"""How long a projection may take to reach what was on the log when the audit began."""


class AuditedService:
    """Asks one service, and waits while it is behind. Raises UnavailableError."""

    def __init__(self, settings: RuntimeSettings, name: Literal["memory", "usage"]) -> None:
        self._settings = settings
        self._name: Literal["memory", "usage"] = name

    async def ask(
        self, kind: type[Answer], method: str, path: str, body: BaseModel | None = None, **parameters: Any
    ) -> Answer:
        sent: Mapping[str, Any] = {} if body is None else {"json": body.model_dump(mode="json")}
        deadline = time.monotonic() + BEHIND_SECONDS
        while True:
            try:
                async with request(
                    self._settings, method, path, service=self._name, params=parameters, **sent
                ) as response:
                    return kind.model_validate_json(await response.read())
            except BehindError as error:
                if time.monotonic() > deadline:
                    raise UnavailableError(
                        f"{self._name} has not reached the end of the log within {BEHIND_SECONDS:g} s: {error}"
                    ) from error
            await asyncio.sleep(0.1)
