"""Context handlers: what an installation lets say what a model sees of the past, over HTTP or as a Python function.

An agent only names one. Where it is and what code it runs stands in the worker's settings, so that whoever may write
agents can neither reach other hosts nor run other code by it.
"""

import asyncio
import importlib
import inspect
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Self, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, HttpUrl, TypeAdapter, ValidationError, model_validator

from schemas.base import Name
from schemas.http import ContextHandlerAnswer, ContextHandlerRequest, MessageView
from schemas.ids import EPOCH
from schemas.parts import parts_of, text_of
from services.agents.context_hook import SHOWN_CHARACTERS, ContextHooks, HookFailed
from services.agents.failures import CallFailed
from services.runtime.errors import ConfigurationError

Handler = Callable[[ContextHandlerRequest], Any]
"""What an entry point names: a function, or any object that is called as one, `async` or not.

It answers a ContextHandlerAnswer, or the JSON of one, at once or when it is awaited.
"""


class ContextHandlerEntry(BaseModel):
    """One row of `TURNLOG_CONTEXT_HANDLERS`: either a URL, with its key named, or `package.module:function`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    url: HttpUrl | None = None
    api_key_env: str | None = None
    entry_point: str | None = Field(default=None, pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    timeout_seconds: float = Field(default=10, gt=0, le=300)

    @model_validator(mode="after")
    def _url_or_entry_point(self) -> Self:
        if (self.url is None) == (self.entry_point is None):
            raise ValueError("give a url or an entry_point")
        return self


class ContextHandlers:
    """The handlers of a worker.

    Raises:
        ConfigurationError: the table is none, or an entry point cannot be imported.
    """

    def __init__(self, table: str | None, environment: Mapping[str, str] = os.environ) -> None:
        self._entries = {entry.name: entry for entry in _entries(table)}
        self._functions = {
            entry.name: _function(entry.entry_point) for entry in self._entries.values() if entry.entry_point
        }
        self._environment = environment
        self._hooks = ContextHooks()

    async def start(self) -> None:
        await self._hooks.start()

    async def stop(self) -> None:
        await self._hooks.stop()

    async def handle(self, name: str, request: ContextHandlerRequest) -> list[MessageView]:
        """The past that the model is to see. A worker that takes the turn over asks again.

        Raises:
            CallFailed: `context_handler`, whatever is wrong. Nothing takes the handler's place: it may be there to keep
                something from the model.
        """
        entry = self._entries.get(name)
        if entry is None:
            known = ", ".join(self._entries) or "none"
            raise _failed(name, f"TURNLOG_CONTEXT_HANDLERS does not have it; it has: {known}", retryable=False)
        try:
            async with asyncio.timeout(entry.timeout_seconds):
                said = await (self._ask(entry, request) if entry.url else self._call(entry, request))
            answer = ContextHandlerAnswer.model_validate(said)
        except TimeoutError as error:
            raise _failed(name, f"no answer within {entry.timeout_seconds:g} s") from error
        except ValidationError as error:
            shown = str(error)[:SHOWN_CHARACTERS]
            raise _failed(name, f"expected messages with role and content: {shown}", retryable=False) from error
        return _as_past(request, answer)

    async def _ask(self, entry: ContextHandlerEntry, request: ContextHandlerRequest) -> Any:
        key = self._environment.get(entry.api_key_env, "").strip() if entry.api_key_env else ""
        try:
            return await self._hooks.ask(str(entry.url), request.model_dump_json(), turn_id=request.turn_id, key=key)
        except HookFailed as failure:
            raise _failed(entry.name, failure.message, retryable=failure.retryable) from failure

    async def _call(self, entry: ContextHandlerEntry, request: ContextHandlerRequest) -> Any:
        """What is not `async` runs in a thread, which a time-out leaves behind; what it gives is awaited here."""
        function = self._functions[entry.name]
        try:
            if inspect.iscoroutinefunction(function):
                return await cast("Awaitable[Any]", function(request))
            said = await asyncio.to_thread(_called, function, request)
            return await said if inspect.isawaitable(said) else said
        except Exception as error:
            raise _failed(entry.name, f"it raised {error!r}"[:SHOWN_CHARACTERS]) from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise _failed(entry.name, "it was cancelled by itself") from error  # else nobody would go on with the turn


def _called(function: Handler, request: ContextHandlerRequest) -> Any:
    """In a thread, of which no future brings a StopIteration back: whoever awaits it waits for ever."""
    try:
        return function(request)
    except StopIteration as error:
        raise RuntimeError(repr(error)) from error


def _failed(name: str, what: str, *, retryable: bool = True) -> CallFailed:
    return CallFailed("context_handler", f"context handler {name!r}: {what}", retryable=retryable)


def _as_past(request: ContextHandlerRequest, answer: ContextHandlerAnswer) -> list[MessageView]:
    past: list[MessageView] = []
    for position, message in enumerate(answer.messages):
        parts = parts_of(message.content)
        past.append(
            MessageView(
                message_id=f"handled-{position}",
                thread_id=request.thread_id,
                tenant_id=request.tenant_id,
                position=position,
                role=message.role,
                parts=parts,
                text=text_of(parts),
                created_at=EPOCH,
            )
        )
    return past


def _entries(table: str | None) -> list[ContextHandlerEntry]:
    if not table:
        return []
    try:
        rows = yaml.safe_load(table)
        return TypeAdapter(list[ContextHandlerEntry]).validate_json(json.dumps(rows))
    except (yaml.YAMLError, ValidationError) as error:
        raise ConfigurationError(f"TURNLOG_CONTEXT_HANDLERS: expected a list of handlers: {error}") from error


def _function(entry_point: str) -> Handler:
    module, _, name = entry_point.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise ConfigurationError(f"TURNLOG_CONTEXT_HANDLERS: cannot import {entry_point}: {error!r}") from error
    if not callable(function):
        raise ConfigurationError(f"TURNLOG_CONTEXT_HANDLERS: {entry_point} is no function")
    return function
