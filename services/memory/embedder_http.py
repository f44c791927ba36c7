"""A model behind any OpenAI-compatible `/v1/embeddings`."""

import asyncio
import math
from collections import Counter
from collections.abc import Sequence

import aiohttp
from pydantic import BaseModel, Field, SecretStr, ValidationError
from yarl import URL

from schemas.tokens import estimated_tokens
from services.memory.embeddings import Embedded, EmbedderBusyError, EmbedderUnavailableError, TextsRefusedError
from services.runtime.retry_after import retry_after_seconds

CALL_SECONDS = 60.0
SHOWN_CHARACTERS = 300

TEXTS_AT_FAULT = frozenset({400, 413, 422})
"""What a server answers when a text is too long for its model, or the texts together for one request."""

TOO_MUCH = 429
"""What it answers until some time has passed. It counts tokens a minute, so a short text may go through meanwhile."""


class _Item(BaseModel):
    """Of one text, whose vector may be missing or hold what is no number without harm to the others."""

    index: int | None = None
    embedding: list[float | None] | None = None

    def vector(self) -> list[float]:
        return [math.nan if number is None else number for number in self.embedding or []]


class _Usage(BaseModel):
    prompt_tokens: int | None = Field(default=None, ge=0)
    total_tokens: int | None = Field(default=None, ge=0)


class _Answer(BaseModel):
    data: list[_Item]
    usage: _Usage | None = None


class HttpEmbedder:
    """Every call is one attempt; whoever calls tries again.

    Args:
        base_url: with the version, as in `https://api.openai.com/v1`.
    """

    batch = 128
    longest = 24_000
    """8,000 tokens of English, of which most models take 8,191. What is still too long is refused by its server."""

    def __init__(self, base_url: str, *, model: str, api_key: SecretStr | None) -> None:
        self._url = URL(base_url.rstrip("/") + "/embeddings")
        self.provider = self._url.host or base_url
        self.model = model
        self._headers = {"Authorization": f"Bearer {api_key.get_secret_value()}"} if api_key else {}
        self._session: aiohttp.ClientSession | None = None

    async def embed(self, texts: Sequence[str]) -> Embedded:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=CALL_SECONDS), headers=self._headers, trust_env=True
            )
        body = {"model": self.model, "input": list(texts), "encoding_format": "float"}
        try:
            async with self._session.post(self._url, json=body) as response:
                content = await response.read()
                status, headers = response.status, response.headers
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise EmbedderUnavailableError(f"{self._url} does not answer: {error!r}") from error
        if status in TEXTS_AT_FAULT:
            raise TextsRefusedError(_said(content))
        if status != 200:
            message = f"{self._url} answered {status}: {_said(content)}"
            kind = EmbedderBusyError if status == TOO_MUCH else EmbedderUnavailableError
            raise kind(message, retry_after_seconds(headers))
        return await asyncio.to_thread(self._read, content, texts)

    def _read(self, content: bytes, texts: Sequence[str]) -> Embedded:
        """Takes 10 ms and more for a hundred vectors of a large model, so not on the event loop."""
        try:
            answer = _Answer.model_validate_json(content)
        except ValidationError as error:
            raise EmbedderUnavailableError(f"{self._url} answered no embeddings: {_said(content)}") from error
        indexes = Counter(each.index for each in answer.data if each.index is not None)
        if not indexes:
            raise EmbedderUnavailableError(f"{self._url} answered no embeddings: {_said(content)}")
        for index, times in indexes.items():
            if times > 1 or not 0 <= index < len(texts):
                raise EmbedderUnavailableError(f"{self._url} answered index {index} {times}x for {len(texts)} texts")
        vectors = {each.index: each.vector() for each in answer.data}
        in_order = [vectors.get(index, []) for index in range(len(texts))]
        counted = answer.usage and (answer.usage.prompt_tokens or answer.usage.total_tokens)
        if counted:
            return Embedded(in_order, counted)
        return Embedded(in_order, estimated_tokens(sum(map(len, texts))), estimated=True)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


def _said(content: bytes) -> str:
    return content[:SHOWN_CHARACTERS].decode(errors="replace").strip()
