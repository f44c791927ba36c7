"""Memory over HTTP: the past of a thread, and prompts that were seen before."""

import asyncio
from collections.abc import Sequence

import aiohttp
from pydantic import BaseModel

from schemas.http import (
    MOST_PROMPTS_ASKED,
    ContextRequest,
    ContextResponse,
    SeenPrompt,
    SeenRequest,
    SeenResponse,
)
from services.runtime.errors import UnavailableError

SILENCE_SECONDS = 15
"""Longer than memory itself waits for an offset, so that its own answer arrives. Waiting for a connection is not meant:
thousands of turns may begin at once."""

PROBE_SECONDS, PROBE_AGAIN_SECONDS = 2, 0.5
"""Wait for the answer to a probe, and pause between two while memory is away."""


class MemoryClient:
    """Asks the memory service. Every failure is an UnavailableError: the log waits until memory is back."""

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url
        self._session: aiohttp.ClientSession | None = None
        self._probing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._session = aiohttp.ClientSession(
            base_url=self._base_url + "/",
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=SILENCE_SECONDS, sock_read=SILENCE_SECONDS),
            connector=aiohttp.TCPConnector(limit=256),
        )

    async def stop(self) -> None:
        if self._probing is not None:
            self._probing.cancel()
        if self._session is not None:
            await self._session.close()

    async def context(self, request: ContextRequest) -> ContextResponse:
        return ContextResponse.model_validate_json(await self._post("context", request))

    async def seen(self, partition: int, min_offset: int, prompts: Sequence[SeenPrompt]) -> list[SeenPrompt]:
        """Those that had a turn, as of an offset of the partition's journal."""
        seen: list[SeenPrompt] = []
        for first in range(0, len(prompts), MOST_PROMPTS_ASKED):
            asked = list(prompts[first : first + MOST_PROMPTS_ASKED])
            request = SeenRequest(partition=partition, min_offset=min_offset, prompts=asked)
            seen += SeenResponse.model_validate_json(await self._post("prompts/seen", request)).seen
        return seen

    async def until_reachable(self) -> None:
        """Returns when memory answers anything. One asks, for however many turns wait: they would be thousands."""
        if self._probing is None or self._probing.done():
            self._probing = asyncio.create_task(self._probe())
        await asyncio.shield(self._probing)

    async def _probe(self) -> None:
        while True:
            if await self._status("healthz") is not None:
                return
            await asyncio.sleep(PROBE_AGAIN_SECONDS)

    async def ready(self) -> bool:
        return await self._status("readyz") == 200

    async def _status(self, path: str) -> int | None:
        """None: it does not answer."""
        assert self._session is not None
        try:
            async with self._session.get(path, timeout=aiohttp.ClientTimeout(total=PROBE_SECONDS)) as response:
                return response.status
        except (aiohttp.ClientError, TimeoutError):
            return None

    async def _post(self, path: str, body: BaseModel) -> bytes:
        assert self._session is not None
        try:
            async with self._session.post(
                path, data=body.model_dump_json(), headers={"Content-Type": "application/json"}
            ) as response:
                answer = await response.read()
                if response.status != 200:
                    text = answer[:500].decode(errors="replace")
                    raise UnavailableError(f"memory at {self._base_url} answered {response.status}: {text}")
                return answer
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UnavailableError(f"memory at {self._base_url} does not answer: {error!r}") from error
