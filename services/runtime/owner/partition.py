"""One owned partition: inputs are decided in groups, and each group is one transaction."""

import asyncio
import contextlib
import heapq
from collections import OrderedDict, deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Generic, TypeVar, cast

import structlog
from pydantic import BaseModel

from schemas.base import ThreadEvent
from schemas.ids import new_id
from schemas.topics import DEAD_LETTERS, MESSAGES, PROMPTS, TOOL_RESULTS, TURNS, state_key
from services.runtime import metrics
from services.runtime.errors import UnavailableError
from services.runtime.failpoints import Failpoints
from services.runtime.kafka import (
    AIOKafkaProducer,
    KafkaClients,
    KafkaError,
    Record,
    TopicPartition,
    telling_what_broke,
)
from services.runtime.owner.actor import Actor, Emit, Prepared, StateRecord
from services.runtime.owner.clock import Clock
from services.runtime.owner.horizon import Handed, Horizon, Inputs
from services.runtime.owner.state_log import StateLog
from services.runtime.owner.takeover import Taken
from services.runtime.settings import RuntimeSettings

log = structlog.get_logger(__name__)

S = TypeVar("S")

MAX_GROUP = 200
"""Inputs of a transaction, and records that are prepared at once: enough to spread the cost, few enough to let the
heartbeats through in between."""

SETTLE_SECONDS = 0.002
"""What an idle broker needs after a commit before it lets the next transaction of the id begin."""

GATHER_SECONDS, MOST_GATHER_SECONDS = 0.0005, 0.02
"""What a group waits from the last commit on for each open actor, and at most: what the others have ready by then goes
along. A transaction costs worker and broker much the same for one input as for a hundred; a model takes a second."""

RETRY_SECONDS = 0.5
"""Between two tries of what a record's preparation found unavailable."""

REMEMBERED_THREADS = 20_000
"""Threads whose last journal offset is remembered, so that a read need not wait for the whole partition."""


@dataclass(slots=True)
class _Call:
    wanted: Hashable
    task: asyncio.Task[None]


@dataclass(slots=True)
class _Group:
    """What one transaction will write."""

    committed: asyncio.Future[None]
    emits: list[Emit] = field(default_factory=list[Emit])
    states: list[StateRecord] = field(default_factory=list[StateRecord])
    offsets: dict[TopicPartition, int] = field(default_factory=dict[TopicPartition, int])


class PartitionOwner(Generic[S]):
    """Runs the actors of a partition until it is closed or lost.

    While a group commits the next one forms. A call starts with the commit of the decision that wanted it; its result
    is an input of a later group and so becomes visible only after that commit. When the process dies at any moment the
    next owner finds the last committed group, whole.
    """

    def __init__(
        self,
        taken: Taken,
        *,
        inputs: Inputs,
        actor: Actor[S],
        group_id: str,
        clients: KafkaClients,
        settings: RuntimeSettings,
        failpoints: Failpoints,
        clock: Clock,
    ) -> None:
        self.partition = taken.partition
        self.next_offsets = {PROMPTS.name: taken.prompts_offset, TOOL_RESULTS.name: taken.results_offset}
        self.unavailable: str | None = None
        """What preparing waits for now, in words."""
        self._actor = actor
        self._group_id = group_id
        self._clients = clients
        self._settings = settings
        self._failpoints = failpoints
        self._clock = clock
        self._producer: AIOKafkaProducer = taken.producer
        self._states: dict[str, S] = actor.restore([each.value for each in taken.states])
        self._state_log = StateLog(taken.states, end=taken.states_end)
        self._journal_floor = taken.journal_end
        self._journal_end = taken.journal_end
        self._journal_ends: OrderedDict[str, int] = OrderedDict()
        self._arrivals: dict[str, asyncio.Queue[Sequence[Record]]] = {
            PROMPTS.name: asyncio.Queue(),
            TOOL_RESULTS.name: asyncio.Queue(),
        }
        self._ready = dict(self.next_offsets)
        self._waiting: set[str] = set()
        self._inbox: deque[tuple[str, Prepared]] = deque()
        self._backlog = 0
        self._wake = asyncio.Event()
        self._calls: dict[str, _Call] = {}
        self._due: dict[str, datetime] = {}
        self._timers: list[tuple[datetime, str]] = []
        self._alarm: asyncio.TimerHandle | None = None
        self._horizon = Horizon(taken.partition, inputs, handed=self._handed, moved=self._wake.set)
        self._begin_at = 0.0
        self._committing = False
        self._idle = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        for key in self._states:
            self._inbox.append(("", Prepared(next_offset=0, key=key, input=actor.recovered)))
        for letter in taken.rejected:
            emit = Emit(DEAD_LETTERS.name, letter, letter.rejection_id, key=letter.source, partition=0)
            self._inbox.append(("", Prepared(next_offset=0, emits=(emit,))))
        self._unread_results = taken.results
        self._wake.set()

    @property
    def open_count(self) -> int:
        """Actors with work left."""
        return len(self._states)

    @property
    def backlog(self) -> int:
        """Records that were consumed and are not decided yet."""
        return self._backlog

    @property
    def calls_in_flight(self) -> int:
        return len(self._calls)

    def feed(self, topic: str, records: Sequence[Record]) -> None:
        """Takes records of the partition; those that were fed before are dropped."""
        fresh = [record for record in records if record.offset >= self.next_offsets[topic]]
        if not fresh:
            return
        self._failpoints.hit("intake.after_consume")
        self.next_offsets[topic] = fresh[-1].offset + 1
        self._backlog += len(fresh)
        for first in range(0, len(fresh), MAX_GROUP):
            self._arrivals[topic].put_nowait(fresh[first : first + MAX_GROUP])

    async def run(self) -> None:
        """Runs until cancelled. Raises KafkaError when a commit fails: the partition is lost then.

        What came before a timer was due is in the inbox before the timer rings.
        """
        try:
            self._backlog += len(self._unread_results)
            for first in range(0, len(self._unread_results), MAX_GROUP):
                await self._prepare_records(TOOL_RESULTS.name, self._unread_results[first : first + MAX_GROUP])
            async with asyncio.TaskGroup() as group:
                self._tasks = [group.create_task(self._prepare(topic)) for topic in self._arrivals]
                self._tasks += [group.create_task(self._commit_groups()), group.create_task(self._horizon.run())]
        except* KafkaError as errors:
            raise errors.exceptions[0] from None
        finally:
            self._release()
            with contextlib.suppress(Exception):
                await self._producer.stop()

    def stop_intake(self) -> None:
        """From now on nothing new is prepared; calls in flight may still end and be committed."""
        for task in self._tasks[:2]:
            task.cancel()

    async def drain(self) -> None:
        """Waits until no call is in flight and all that was decided is committed. Bound it from outside."""
        while self._calls or self._inbox or self._committing:
            self._idle.clear()
            await self._idle.wait()

    def _release(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        for call in self._calls.values():
            call.task.cancel()
        self._calls.clear()
        for key in self._states:
            self._actor.forgotten(key)

    async def _prepare(self, topic: str) -> None:
        arrivals = self._arrivals[topic]
        while True:
            await self._prepare_records(topic, await arrivals.get())

    async def _prepare_records(self, topic: str, records: Sequence[Record]) -> None:
        """Puts records into the inbox, as soon as what preparing them asks is available."""
        while True:
            try:
                prepared = await self._actor.prepare(topic, records, self._journal_end)
                break
            except UnavailableError as error:
                self.unavailable = str(error)
                self._waiting.add(topic)
                log.warning("intake_waits", partition=self.partition, reason=str(error))
                await asyncio.sleep(RETRY_SECONDS)
        self.unavailable = None
        self._waiting.discard(topic)
        self._inbox.extend((topic, each) for each in prepared)
        self._ready[topic] = max(self._ready[topic], records[-1].offset + 1)
        self._wake.set()

    def _handed(self, topic: str) -> Handed:
        return Handed(fed=self.next_offsets[topic], ready=self._ready[topic], stuck=topic in self._waiting)

    async def _commit_groups(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            at = self._look()
            self._ring()
            self._committing = True
            while self._inbox:
                await self._gather()
                await self._write(self._decide(at), at)
                at = self._look()
            self._committing = False
            self._idle.set()
            self._set_alarm(at)

    async def _gather(self) -> None:
        """Waits until the broker has likely settled the last transaction, and longer the more actors are open."""
        pause = self._begin_at - asyncio.get_running_loop().time()
        if pause > 0:
            await asyncio.sleep(pause)

    def _look(self) -> datetime:
        """The time. When it has jumped, every actor is told of it before anything else happens to it."""
        at, jumped = self._clock.look()
        if jumped:
            log.warning("clock_jumped", partition=self.partition, seconds=jumped.total_seconds())
            told = self._actor.clock_jumped(jumped)
            self._inbox.extendleft(("", Prepared(next_offset=0, key=key, input=told)) for key in self._states)
        return at

    def _decide(self, at: datetime) -> _Group:
        """Decides up to MAX_GROUP inputs, in order, and starts the calls that they want."""
        group = _Group(committed=asyncio.get_running_loop().create_future())
        before: dict[str, S | None] = {}
        continued: set[str] = set()  # these may have put something on the journal before the input that wants a call
        taken = 0
        while self._inbox and taken < MAX_GROUP:
            topic, prepared = self._inbox.popleft()
            taken += 1
            if topic:
                self._backlog -= 1
                group.offsets[TopicPartition(self._settings.topic(topic), self.partition)] = prepared.next_offset
            group.emits += [_caused_by(prepared, emit) for emit in prepared.emits]
            key = prepared.key
            if key is None:
                continue
            state = self._states.get(key)
            if state is not None or key in before:
                continued.add(key)
            before.setdefault(key, state)
            outcome = self._actor.decide(state, prepared.input, at)
            group.emits += [_caused_by(prepared, emit) for emit in outcome.emits]
            self._actor.decided(key, outcome)
            if outcome.state is None:
                self._states.pop(key, None)
            else:
                self._states[key] = outcome.state
        for key, old in before.items():
            state = self._states.get(key)
            group.states += self._actor.state_records(old, state)
            self._reconcile(key, state, group.committed if key in continued else None)
        group.states += self._state_log.to_rewrite({key for key, _ in group.states})
        metrics.TRANSACTION_EVENTS.observe(taken)
        return group

    def _reconcile(self, key: str, state: S | None, barrier: asyncio.Future[None] | None) -> None:
        """Starts, keeps or cancels the actor's call and timer so that they are what its state wants."""
        wanted = self._actor.wanted_call(state)
        running = self._calls.get(key)
        if running is not None and running.wanted != wanted:
            del self._calls[key]
            running.task.cancel()
        if state is not None and wanted is not None and key not in self._calls:
            task = asyncio.create_task(self._call(key, state, wanted, barrier))
            self._calls[key] = _Call(wanted, task)
        due = self._actor.next_due(state)
        if due is None:
            self._due.pop(key, None)
        elif self._due.get(key) != due:
            self._due[key] = due
            heapq.heappush(self._timers, (due, key))

    async def _call(self, key: str, state: S, wanted: Hashable, barrier: asyncio.Future[None] | None) -> None:
        async def journal_position() -> int:
            if barrier is not None:
                await asyncio.shield(barrier)
            return self._journal_ends.get(key, self._journal_floor)

        happened = await self._actor.call(state, journal_position)
        running = self._calls.get(key)
        if running is not None and running.wanted == wanted:
            del self._calls[key]
            self._inbox.append(("", Prepared(next_offset=0, key=key, input=happened)))
            self._wake.set()

    async def _write(self, group: _Group, at: datetime) -> None:
        """One transaction: events, states, offsets. Raises KafkaError; then nothing of it is visible."""
        try:
            if group.emits or group.states or group.offsets:
                await self._transaction(group, at)
        except BaseException as error:
            metrics.TRANSACTIONS.labels("failed").inc()
            group.committed.cancel()
            if isinstance(error, KafkaError):
                log.warning("transaction_failed", partition=self.partition, error=repr(error))
            raise
        group.committed.set_result(None)

    async def _transaction(self, group: _Group, at: datetime) -> None:
        loop = asyncio.get_running_loop()
        self._failpoints.hit("commit.before")
        started = loop.time()
        producer = self._producer
        journal: list[tuple[str, asyncio.Future[Any]]] = []
        states: list[tuple[str, BaseModel | None, asyncio.Future[Any]]] = []
        sent: list[asyncio.Future[Any]] = []
        with telling_what_broke(sent):
            await producer.begin_transaction()
            # First, since the broker may still settle the last transaction: aiokafka asks again after
            # TRANSACTION_RETRY_BACKOFF_MS here, but after 20 ms (its BACKOFF_OVERRIDE) where a record comes first.
            await producer.send_offsets_to_transaction(group.offsets | self._floor(), self._group_id)
            for emit in group.emits:
                target = self.partition if emit.partition is None else emit.partition
                record = self._clients.record(
                    emit.topic,
                    emit.event,
                    key=emit.key or _thread(emit.event).thread_id,
                    event_id=emit.event_id,
                    at=at,
                    traceparent=emit.traceparent,
                )
                future = cast("asyncio.Future[Any]", await producer.send(**record, partition=target))
                sent.append(future)
                if emit.topic == MESSAGES.name:
                    thread = _thread(emit.event)
                    journal.append((state_key(thread.tenant_id, thread.thread_id), future))
                self._failpoints.hit("commit.sending")
            for key, value in group.states:
                states.append((key, value, future := await self._send_state(key, value, at)))
                sent.append(future)
            for each in sent:
                await each  # aiokafka commits the rest when the broker refused one
            self._failpoints.hit("commit.inside")
            await producer.commit_transaction()
        self._failpoints.hit("commit.after")
        gather = min(MOST_GATHER_SECONDS, GATHER_SECONDS * self.open_count)
        self._begin_at = loop.time() + max(SETTLE_SECONDS, gather)
        for key, value, future in states:
            self._state_log.committed(key, value, _offset(future))
        for key, future in journal:
            self._journal_end = self._journal_ends[key] = _offset(future) + 1
            self._journal_ends.move_to_end(key)
        while len(self._journal_ends) > REMEMBERED_THREADS:
            _, end = self._journal_ends.popitem(last=False)
            self._journal_floor = max(self._journal_floor, end)
        metrics.TRANSACTIONS.labels("committed").inc()
        metrics.TRANSACTION_SECONDS.observe(loop.time() - started)

    def _floor(self) -> dict[TopicPartition, int]:
        return {TopicPartition(self._settings.topic(TURNS.name), self.partition): self._state_log.floor}

    async def _send_state(self, key: str, value: BaseModel | None, at: datetime) -> asyncio.Future[Any]:
        if value is None:
            record: dict[str, Any] = {"topic": self._settings.topic(TURNS.name), "key": key.encode()}
        else:
            record = self._clients.record(TURNS.name, value, key=key, event_id=new_id(at), at=at)
        return cast("asyncio.Future[Any]", await self._producer.send(**record, partition=self.partition))

    def _ring(self) -> None:
        """Puts a tick in the inbox for every actor whose time has come, when all that came before is there too."""
        while self._timers and self._timers[0][0] <= self._horizon.at:
            due, key = heapq.heappop(self._timers)
            if self._due.get(key) == due:
                del self._due[key]
                self._inbox.append(("", Prepared(next_offset=0, key=key, input=self._actor.tick)))

    def _set_alarm(self, at: datetime) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        while self._timers and self._due.get(self._timers[0][1]) != self._timers[0][0]:
            heapq.heappop(self._timers)
        if not self._timers:
            return
        seconds = (self._timers[0][0] - at).total_seconds()
        if seconds > 0:
            self._alarm = asyncio.get_running_loop().call_later(seconds, self._wake.set)
        else:
            self._horizon.want(at)


def _caused_by(prepared: Prepared, emit: Emit) -> Emit:
    """The event in the trace of the record that led to it, unless it names its own."""
    return emit if emit.traceparent or not prepared.traceparent else replace(emit, traceparent=prepared.traceparent)


def _offset(written: asyncio.Future[Any]) -> int:
    """Where a record of a committed transaction is. Raises KafkaError when the broker could not tell: a send that was
    repeated so late that the broker has forgotten the first one. Whoever takes the partition anew finds out."""
    offset: int = written.result().offset
    if offset < 0:
        raise KafkaError("a record was written and the broker does not know where")
    return offset


def _thread(event: BaseModel) -> ThreadEvent:
    """The thread of an event that names one (usage does so without being an event of the thread)."""
    return cast("ThreadEvent", event)
