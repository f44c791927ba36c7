"""Chat completions through the `openai` client on its aiohttp transport.

Streams are read as raw bytes: parsing each chunk into the client's models costs three times the CPU.
"""

from collections.abc import AsyncGenerator, Mapping
from typing import Any

import openai

from services.agents.failures import CallFailed, refused, stream_cut, unreachable
from services.agents.providers import IDLE_SECONDS, PROBE_CONNECTIONS, Provider

Limits = type(openai.DEFAULT_CONNECTION_LIMITS)
"""The client's own: it allows 1,000 connections unless it is told otherwise, whatever the provider's concurrency."""


class OpenAIConnection:
    """The client neither retries nor limits time: both are decided elsewhere."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._client: openai.AsyncOpenAI | None = None

    async def start(self) -> None:
        connections = self._provider.concurrency + PROBE_CONNECTIONS
        self._client = openai.AsyncOpenAI(
            base_url=self._provider.base_url,
            api_key=self._provider.api_key.get_secret_value() or "none",
            max_retries=0,
            timeout=None,
            default_headers=self._provider.headers,
            http_client=openai.DefaultAioHttpClient(
                timeout=None,
                limits=Limits(
                    max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=IDLE_SECONDS
                ),
            ),
        )

    async def stop(self) -> None:
        if self._client is not None:
            await self._client.close()

    async def stream(self, body: Mapping[str, Any]) -> AsyncGenerator[bytes]:
        """The bytes of a streamed answer as they arrive. Raises CallFailed."""
        assert self._client is not None
        create: Any = self._client.chat.completions.with_streaming_response.create
        answering = False
        try:
            async with create(
                model=body["model"], messages=body["messages"], stream=True, extra_body=dict(body)
            ) as response:
                answering = True
                async for piece in response.iter_bytes():
                    yield piece
        except Exception as error:
            if answering and _of_the_client(error):
                raise stream_cut(_cause(error)) from error
            raise self._unanswered(error) from error

    async def probe(self) -> int:
        """The HTTP status of the list of models. Raises CallFailed."""
        assert self._client is not None
        try:
            return (await self._client.models.with_raw_response.list()).status_code
        except openai.APIStatusError as error:
            return error.status_code
        except Exception as error:
            raise self._unanswered(error) from error

    def _unanswered(self, error: Exception) -> Exception:
        """What an error before the answer means. Without a time limit of its own the client's time-outs are no such."""
        if isinstance(error, openai.APIStatusError):
            return refused(error.status_code, error.response.headers, error.response.content)
        if _of_the_client(error):
            return unreachable(self._provider.base_url, _cause(error))
        if isinstance(error, ValueError | TypeError):
            return CallFailed("bad_request", f"the request can't be written as JSON: {error}", retryable=False)
        return error


def _of_the_client(error: BaseException) -> bool:
    return isinstance(error, OSError) or type(error).__module__.startswith(("aiohttp", "httpx", "openai"))


def _cause(error: BaseException) -> BaseException:
    """The transport's own error, which says more than "Connection error."."""
    if error.__cause__ is None or type(error).__module__.startswith("aiohttp"):
        return error
    return _cause(error.__cause__)
