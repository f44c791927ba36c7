"""Context handlers over HTTP."""

from typing import Any

import aiohttp
from pydantic_core import from_json

MAX_ANSWER_BYTES = 8 * 2**20
"""More than any model takes."""

PASSING_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that say: try again."""

SHOWN_CHARACTERS = 500


class HookFailed(Exception):
    """There is no answer. `retryable`: the same request may get one later."""

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.message = message
        self.retryable = retryable


class ContextHooks:
    """The connections of all hooks of a worker. Whoever asks limits the time."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        self._session = aiohttp.ClientSession(
            cookie_jar=aiohttp.DummyCookieJar(), timeout=aiohttp.ClientTimeout(total=None)
        )

    async def stop(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def ask(self, url: str, body: str, *, turn_id: str, key: str) -> Any:
        """The JSON of the answer. Redirects are not followed: the key is for the named host alone.

        Raises HookFailed.
        """
        assert self._session is not None, "start() first"
        headers = {"Content-Type": "application/json", "Idempotency-Key": turn_id}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        try:
            async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                said = await _bounded_body(response)
        except aiohttp.ClientError as error:
            raise HookFailed(f"{type(error).__name__}: {error}", retryable=True) from error
        if response.status != 200:
            shown = said[:SHOWN_CHARACTERS].decode(errors="replace")
            raise HookFailed(f"it answered {response.status}: {shown}", retryable=response.status in PASSING_STATUSES)
        try:
            return from_json(said, allow_inf_nan=False)
        except ValueError as error:
            raise HookFailed(f"the answer is not JSON: {error}", retryable=False) from error


async def _bounded_body(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise HookFailed(f"the answer has more than {MAX_ANSWER_BYTES} bytes", retryable=False)
    return bytes(body)
