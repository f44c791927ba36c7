"""Tools that are an HTTP request."""

import email.utils
import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlsplit

import aiohttp
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from pydantic import JsonValue, ValidationError
from yarl import URL

from schemas.base import JsonObject
from schemas.tools import ToolSpec
from services.runtime.errors import ConfigurationError
from services.tools.errors import InvalidArgumentsError, ResultTooLargeError, ToolError, ToolUnavailableError
from services.tools.execution import MAX_RESULT_BYTES
from services.tools.tool import Invocation, RetryPolicy, Tool, ToolContext
from services.tools.tools_file import PLACEHOLDER, HttpToolEntry

CONNECT_SECONDS = 10
"""An unreachable host is reported well before a usual time limit, so that a retry still fits."""

PASSING_STATUSES = frozenset({408, 425, 429, 502, 503, 504})
"""Answers that say: try again."""

SHOWN_CHARACTERS = 500


class HttpTools:
    """The HTTP tools of a worker and the connections that they share."""

    def __init__(self, entries: Sequence[HttpToolEntry], *, secrets: Iterable[str]) -> None:
        """Raises ConfigurationError when an entry's parameters are no JSON Schema of an object."""
        self._session: aiohttp.ClientSession | None = None
        self._secrets = sorted(secrets, key=len, reverse=True)
        self.tools: list[Tool] = [HttpTool(entry, self) for entry in entries]

    async def start(self) -> None:
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def stop(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def request(self, method: str, url: URL, *, headers: dict[str, str], body: JsonObject | None) -> Any:
        """The answer: JSON where it is JSON, else text; None when it is empty.

        Redirects are not followed: the headers may hold secrets for the named host alone.

        Raises:
            ToolUnavailableError: no connection, or an answer that says to try again.
            ToolError: any other answer than 2xx.
            ResultTooLargeError: more than 256 KiB.
        """
        assert self._session is not None, "start() first"
        try:
            async with self._session.request(
                method, url, headers=headers, json=body, allow_redirects=False
            ) as response:
                raw = await _bounded_body(response)
                text = self._redacted(raw.decode(response.charset or "utf-8", errors="replace"))
                self._check(response, method, text)
                if not text:
                    return None
                if response.content_type == "application/json" or response.content_type.endswith("+json"):
                    return json.loads(text)
                return text
        except aiohttp.ClientError as error:
            message = self._redacted(f"{method} {url.host}: {type(error).__name__}: {error}")
            raise ToolUnavailableError(message) from error
        except LookupError as error:
            raise ToolError(f"{method} {url.host} answered in an unknown character set") from error
        except json.JSONDecodeError as error:
            raise ToolError(f"{method} {url.host} said JSON and sent something else: {error}") from error

    def _check(self, response: aiohttp.ClientResponse, method: str, text: str) -> None:
        status = response.status
        if 200 <= status < 300:
            return
        message = f"{method} {response.url.host} answered {status}: {text[:SHOWN_CHARACTERS]}"
        if status in PASSING_STATUSES:
            raise ToolUnavailableError(message, retry_after_seconds=_retry_after(response.headers.get("Retry-After")))
        raise ToolError(message)

    def _redacted(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


class HttpTool:
    """One entry of the file. The call's id is sent as `Idempotency-Key`."""

    def __init__(self, entry: HttpToolEntry, client: HttpTools) -> None:
        self._entry = entry
        self._client = client
        self._in_url = PLACEHOLDER.findall(entry.url)
        self.retry = RetryPolicy(retries=entry.retries)
        try:
            Draft202012Validator.check_schema(entry.parameters)
            self.spec = ToolSpec(
                name=entry.name,
                tenant_id=entry.tenant_id,
                description=entry.description,
                parameters=entry.parameters,
                queue=entry.queue,
                timeout_seconds=entry.timeout_seconds,
                approval=entry.approval,
            )
        except SchemaError as error:
            raise ConfigurationError(f"HTTP tool {entry.name}: parameters: {error.message}") from error
        except ValidationError as error:
            raise ConfigurationError(f"HTTP tool {entry.name}: {error.errors()[0]['msg']}") from error
        self._validator = Draft202012Validator(entry.parameters)

    def bind(self, arguments: JsonObject, context: ToolContext) -> Invocation:
        """Checks the arguments against the schema. Raises InvalidArgumentsError."""
        problems = [
            f"{'.'.join(str(step) for step in error.absolute_path) or 'arguments'}: {error.message}"
            for error in self._validator.iter_errors(arguments)
        ]
        if problems:
            raise InvalidArgumentsError(f"invalid arguments for {self.spec.name}: {'; '.join(problems[:10])}")
        rest = {name: value for name, value in arguments.items() if name not in self._in_url}
        in_body = self._entry.method in ("POST", "PUT", "PATCH")
        url = self._url(arguments, {} if in_body else rest)
        headers = {"Accept": "application/json, text/*;q=0.9", **self._entry.headers}
        headers["Idempotency-Key"] = context.call_id
        body = rest if in_body else None
        return Invocation(lambda: self._client.request(self._entry.method, url, headers=headers, body=body))

    def _url(self, arguments: JsonObject, query: JsonObject) -> URL:
        """The URL with every value escaped: no argument can reach another path or host."""
        for name in self._in_url:
            value = arguments.get(name)
            if value is None or isinstance(value, dict | list) or _text(value) in ("", ".", ".."):
                raise InvalidArgumentsError(f"invalid arguments for {self.spec.name}: {name}: {value!r} is no URL part")
        filled = PLACEHOLDER.sub(lambda found: quote(_text(arguments[found[1]]), safe=""), self._entry.url)
        pairs = [(name, value) for name, value in self._entry.query.items()]
        for name, value in query.items():
            values = value if isinstance(value, list) else [value]
            pairs += [(name, _text(each)) for each in values if each is not None]
        if pairs:
            text = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in pairs)
            filled += ("&" if urlsplit(filled).query else "?") + text
        return URL(filled, encoded=True)


def _text(value: JsonValue) -> str:
    return value if isinstance(value, str) else json.dumps(value)


async def _bounded_body(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_RESULT_BYTES:
            raise ResultTooLargeError(f"expected an answer of at most {MAX_RESULT_BYTES} bytes")
    return bytes(body)


def _retry_after(value: str | None) -> float | None:
    """Seconds from a Retry-After header, which holds seconds or a date (RFC 9110, section 10.2.3)."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        date = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
