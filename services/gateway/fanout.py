"""One tail of the log, many listeners: each hears one thread, with a position from which any gateway resumes."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from services.runtime.errors import TurnlogError

LISTENER_BUFFER = 2_000
"""Events that a slow listener may be behind; then it is cut off and resumes by its last event id."""


class SlowListenerError(TurnlogError):
    """The listener did not keep up. Its last event id says where to go on."""

    code = "slow_listener"
    retryable = True


class BadPositionError(TurnlogError):
    """A Last-Event-ID that no gateway gave out."""

    code = "bad_position"


@dataclass(frozen=True, slots=True)
class LogEvent:
    """A record as listeners get it; `data` is its JSON as it is on the log."""

    topic: str
    offset: int
    timestamp_ms: int
    type: str
    tenant_id: str
    thread_id: str
    body: Mapping[str, Any]
    data: str


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


@dataclass(slots=True, eq=False)
class Listener:
    """Hears a thread from `began` on."""

    key: tuple[str, str]
    partition: int
    began: Position
    _queue: asyncio.Queue[LogEvent] = field(default_factory=lambda: asyncio.Queue[LogEvent](maxsize=LISTENER_BUFFER))
    _cut: bool = False

    def offer(self, event: LogEvent) -> None:
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
        self._listeners: dict[tuple[str, str], set[Listener]] = {}
        self._positions: dict[int, Position] = {}

    def listen(self, tenant_id: str, thread_id: str, partition: int) -> Listener:
        """Hears everything that the tail reads from now on. Close it with `leave`."""
        listener = Listener((tenant_id, thread_id), partition, self.position(partition).copy())
        self._listeners.setdefault(listener.key, set()).add(listener)
        return listener

    def leave(self, listener: Listener) -> None:
        others = self._listeners.get(listener.key, set())
        others.discard(listener)
        if not others:
            self._listeners.pop(listener.key, None)

    def position(self, partition: int) -> Position:
        return self._positions.setdefault(partition, Position({}))

    def publish(self, partition: int, event: LogEvent) -> None:
        self.position(partition).passed(event.topic, event.offset)
        for listener in self._listeners.get((event.tenant_id, event.thread_id), ()):
            listener.offer(event)
