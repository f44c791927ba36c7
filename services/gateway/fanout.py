"""One tail of the log, many listeners: each hears one thread, with a position from which any gateway resumes."""

import asyncio
import json
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pydantic_core

from schemas.topics import COMPLETIONS, Topic
from services.runtime.errors import TurnlogError

LISTENER_BUFFER = 2_000
"""Events that a slow listener may be behind; then it is cut off and resumes by its last event id."""

REMEMBERED_ENDS = 10_000
"""Turns whose end is remembered: memory knows of those that ended before."""


class SlowListenerError(TurnlogError):
    """The listener did not keep up. Its last event id says where to go on."""

    code = "slow_listener"
    retryable = True


class BadPositionError(TurnlogError):
    """A Last-Event-ID that no gateway gave out."""

    code = "bad_position"


@dataclass(frozen=True, slots=True)
class LogEvent:
    """A record as listeners get it; `data` is its JSON on one line, and but for line breaks as it is on the log.

    `event_id` is empty where the record does not name it.
    """

    topic: str
    offset: int
    timestamp_ms: int
    type: str
    tenant_id: str
    thread_id: str
    body: Mapping[str, Any]
    data: str
    event_id: str = ""

    @classmethod
    def read(
        cls, topic: Topic, *, value: bytes, headers: Mapping[str, str], offset: int, timestamp_ms: int
    ) -> "LogEvent | None":
        """The event of a record, or None for one that belongs to no thread: anybody may write to some topics."""
        try:
            body: Any = pydantic_core.from_json(value)
            kind = headers.get("ce_type") or body.get("type") or topic.default_type
            thread_id, tenant_id = body["thread_id"], body.get("tenant_id") or "default"
            data = value.decode()
        except (ValueError, AttributeError, KeyError, TypeError):
            return None
        if not all(isinstance(each, str) for each in (kind, thread_id, tenant_id)) or not kind.isprintable():
            return None
        if "\n" in data or "\r" in data:
            data = json.dumps(body, separators=(",", ":"))
        return cls(topic.name, offset, timestamp_ms, kind, tenant_id, thread_id, body, data, headers.get("ce_id", ""))


class Position:
    """The next offset of each topic in one partition, written as `messages:12,completions:3`."""

    def __init__(self, offsets: Mapping[str, int]) -> None:
        self._offsets = dict(offsets)

    @classmethod
    def parse(cls, text: str) -> "Position":
        """Raises BadPositionError."""
        try:
            pairs = [item.rsplit(":", 1) for item in text.split(",")]
            return cls({topic: int(offset) for topic, offset in pairs})
        except ValueError as error:
            raise BadPositionError(f"expected a Last-Event-ID that a gateway gave out, got {text!r}") from error

    def passed(self, topic: str, offset: int) -> None:
        self._offsets[topic] = max(self._offsets.get(topic, 0), offset + 1)

    def next(self, topic: str) -> int | None:
        return self._offsets.get(topic)

    def beginning(self) -> "Position":
        """The first position of the same topics."""
        return Position(dict.fromkeys(self._offsets, 0))

    def copy(self) -> "Position":
        return Position(self._offsets)

    def __str__(self) -> str:
        return ",".join(f"{topic}:{offset}" for topic, offset in sorted(self._offsets.items()))


Wanted = Callable[[LogEvent], bool]


@dataclass(slots=True, eq=False)
class Listener:
    """Hears a thread from `began` on; see `Fanout.listen`."""

    key: tuple[str, str]
    partition: int
    began: Position
    _awaited: Wanted | None = None
    _queue: asyncio.Queue[LogEvent] = field(init=False)
    _cut: bool = False

    def __post_init__(self) -> None:
        self._queue = asyncio.Queue(maxsize=LISTENER_BUFFER if self._awaited is None else 0)

    def offer(self, event: LogEvent) -> None:
        if self._awaited is not None and not self._awaited(event):
            return
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:
            self._cut = True

    async def next(self) -> LogEvent:
        """The next event. Raises SlowListenerError when events had to be left out."""
        if self._cut and self._queue.empty():
            raise SlowListenerError("this client did not keep up; resume with Last-Event-ID")
        return await self._queue.get()


class Fanout:
    """Listeners by thread, and how far the tail is in every partition."""

    def __init__(self) -> None:
        self.somebody = asyncio.Event()
        """Whether anybody listens."""
        self._listeners: dict[tuple[str, str], set[Listener]] = {}
        self._heard: Counter[int] = Counter()
        self._positions: dict[int, Position] = {}
        self._ended: OrderedDict[tuple[str, str], None] = OrderedDict()

    def listen(self, tenant_id: str, thread_id: str, partition: int, *, awaited: Wanted | None = None) -> Listener:
        """Hears everything that the tail reads from now on. Close it with `leave`.

        With `awaited` it hears those events alone and is never cut off, however busy the thread is: let them be few.
        """
        listener = Listener((tenant_id, thread_id), partition, self.position(partition).copy(), awaited)
        self._listeners.setdefault(listener.key, set()).add(listener)
        self._heard[partition] += 1
        self.somebody.set()
        return listener

    def leave(self, listener: Listener) -> None:
        others = self._listeners.get(listener.key, set())
        if listener not in others:
            return
        others.remove(listener)
        self._heard[listener.partition] -= 1
        if not others:
            del self._listeners[listener.key]
        if not self._listeners:
            self.somebody.clear()

    def hears(self, partition: int) -> bool:
        """Whether anybody listens to a thread of the partition."""
        return self._heard[partition] > 0

    def position(self, partition: int) -> Position:
        return self._positions.setdefault(partition, Position({}))

    def ended_lately(self, tenant_id: str, turn_id: str) -> bool:
        """Whether the turn is among the last ones whose terminal event was published."""
        return (tenant_id, turn_id) in self._ended

    def publish(self, partition: int, event: LogEvent) -> None:
        self.position(partition).passed(event.topic, event.offset)
        if event.topic == COMPLETIONS.name:
            self._ended[event.tenant_id, str(event.body.get("turn_id"))] = None
            if len(self._ended) > REMEMBERED_ENDS:
                self._ended.popitem(last=False)
        for listener in self._listeners.get((event.tenant_id, event.thread_id), ()):
            listener.offer(event)
