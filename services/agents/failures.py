"""What a call that gave no answer means: its code, whether a later one may succeed, and when. Pure."""

import json
from collections.abc import Mapping
from typing import cast

from schemas.completions import ErrorCode
from services.runtime.retry_after import retry_after_seconds

SHOWN_CHARACTERS = 500


class CallFailed(Exception):
    """A call gave no answer. `retry_after_seconds`: the provider's wish."""

    def __init__(
        self, code: ErrorCode, message: str, *, retryable: bool = True, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message)
        self.code: ErrorCode = code
        self.message = message
        self.retryable = retryable
        self.retry_after_seconds = retry_after_seconds


def unreachable(base_url: str, error: BaseException) -> CallFailed:
    """No answer has begun: nobody listens, or whoever listened has left without a word."""
    return CallFailed("unreachable", f"{base_url} does not answer: {type(error).__name__}: {error}")


def stream_cut(error: BaseException) -> CallFailed:
    """An answer has begun and its connection has failed."""
    return CallFailed("stream_cut", f"the stream broke off: {error!r}")


def refused(status: int, headers: Mapping[str, str], body: bytes) -> CallFailed:
    """An answer other than 2xx. The body may be anything; the names of `headers` must match in any case."""
    message = f"{status}: {_said(body)}"
    match status:
        case 401 | 403:
            return CallFailed("auth", message, retryable=False)
        case 404:
            return CallFailed("model_not_found", message, retryable=False)
        case 429:
            return CallFailed("rate_limited", message, retry_after_seconds=retry_after_seconds(headers))
        case _ if status in (408, 409) or status >= 500:
            return CallFailed("provider_error", message, retry_after_seconds=retry_after_seconds(headers))
        case _ if status == 413 or "context_length" in message or "maximum context" in message:
            return CallFailed("context_length", message, retryable=False)
        case _:
            return CallFailed("bad_request", message, retryable=False)


def message_of(error: object) -> str:
    """What the provider says in an error object, short."""
    for field in ("error", "message"):
        if isinstance(error, dict):
            error = cast("dict[str, object]", error).get(field, cast("object", error))
    return str(error)[:SHOWN_CHARACTERS]


def _said(body: bytes) -> str:
    text = body.decode(errors="replace").strip()
    try:
        return message_of(json.loads(text))
    except ValueError:
        return text[:SHOWN_CHARACTERS]
