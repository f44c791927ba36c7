"""What the owner asks of the thing that it runs. Agents and workflows are actors."""

from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel

from services.runtime.kafka import Record

S = TypeVar("S")
S_co = TypeVar("S_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Emit:
    """An event for a topic; `event_id` is the same whenever the same decision is made again.

    Without `key` the record is keyed by the event's thread; without `partition` it goes to the owner's own.
    """

    topic: str
    event: BaseModel
    event_id: str
    key: str | None = None
    partition: int | None = None
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A record that is ready to be decided: an input for an actor, or events that go out as they are, or neither."""

    next_offset: int
    key: str | None = None
    input: Any = None
    emits: tuple[Emit, ...] = ()
    traceparent: str | None = None
    """The record's own trace, for the events it leads to that name no other."""


class Outcome(Protocol[S_co]):
    """What `decide` gives: the next state (None: idle) and the events to write."""

    @property
    def state(self) -> S_co | None: ...

    @property
    def emits(self) -> tuple[Emit, ...]: ...


StateRecord = tuple[str, BaseModel | None]
"""Key and value on the state topic; None is the tombstone."""

JournalPosition = Callable[[], Awaitable[int]]
"""The offset of `messages` that a read must reflect to see all of the thread; waits for a commit in progress."""


class Actor(Protocol[S]):
    """A kind of state machine, one instance a key. All methods but the coroutines are pure and quick."""

    async def taken(self, partition: int, recent: Sequence[Record], journal_end: int) -> None:
        """A partition was taken: its last prompts, and the end of its journal at that moment."""
        ...

    async def prepare(self, topic: str, records: Sequence[Record], journal_end: int) -> list[Prepared]:
        """Decodes records of one partition, in order, one result a record; looks up what deciding needs.

        `journal_end` is the offset behind the last journal record that this owner has committed.

        Raises UnavailableError while something it asks is down; the owner tries again, the log waits.
        """
        ...

    def decide(self, state: S | None, happened: Any, at: datetime) -> Outcome[S]: ...

    def state_records(self, before: S | None, after: S | None) -> Sequence[StateRecord]:
        """What to write so that a restore gives `after`."""
        ...

    def restore(self, values: Sequence[Any]) -> dict[str, S]:
        """States by key from the decoded values of the state topic, all of one partition."""
        ...

    def wanted_call(self, state: S | None) -> Hashable | None:
        """Names the call that should be in flight for this state; another name is another call."""
        ...

    def next_due(self, state: S | None) -> datetime | None:
        """When the state wants `tick`."""
        ...

    def decided(self, key: str, outcome: Outcome[S]) -> None:
        """Told of every outcome before its call starts, in order, whether or not its commit succeeds."""
        ...

    def forgotten(self, key: str) -> None:
        """The partition of `key` has gone to another worker."""
        ...

    async def call(self, state: S, journal_position: JournalPosition) -> Any:
        """Makes the wanted call and returns its input for `decide`. Never raises; may be cancelled at any time."""
        ...

    def clock_jumped(self, by: timedelta) -> Any:
        """The input that says that the clock went forward without that time having passed."""
        ...

    @property
    def tick(self) -> Any: ...

    @property
    def recovered(self) -> Any: ...
