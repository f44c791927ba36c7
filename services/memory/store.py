"""The port to Qdrant: documents of a tenant, found by field, by order, by text and by meaning."""

import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, TypeVar
from uuid import UUID

Kind = Literal["thread", "message", "turn", "call"]
Fields = Mapping[str, str | int]
S = TypeVar("S", int, str)
"""A state of a vector as an engine has it."""

KEYWORD_FIELDS = ("kind", "tenant_id", "thread_id", "user_id", "turn_id", "role", "status", "agent", "about")
INTEGER_FIELDS = ("position", "updated", "created")

PARTITION = "partition"
"""Name under which an engine keeps which partition of the journal a document is from."""


EMBEDDING = "embedding"
"""Name under which an engine keeps what has become of the vector of a message: `PENDING`, or a state of a space."""

PENDING = "pending"

MOST_STATES = 1000
"""Of the vectors of messages: two for each model that there ever was."""

CHANGED_AT_ONCE = 32
"""Points that one operation gives vectors or states. Qdrant changes so many at a time, and when it reads its log again
it ends an operation behind those among which one is missing, since it was deleted later: the rest would not change."""


@functools.lru_cache(maxsize=4096)
def point_id(kind: str, tenant_id: str, *identity: str) -> str:
    """The point of a document: a UUID from what it is, so that writing it again replaces it."""
    digest = hashlib.sha256("\x1f".join((kind, tenant_id, *identity)).encode()).digest()
    return _uuid_text(digest[:16])


def _uuid_text(value: bytes) -> str:
    """As `str(uuid.UUID(bytes=value, version=5))`, which took a tenth of what it takes to project a message."""
    text = value.hex()
    return f"{text[:8]}-{text[8:12]}-5{text[13:16]}-{_VARIANT[text[16]]}{text[17:20]}-{text[20:]}"


_VARIANT = {digit: "89ab"[int(digit, 16) % 4] for digit in "0123456789abcdef"}


class Document(NamedTuple):
    """There are many: a tuple is made in a third of the time of a frozen dataclass.

    `body` is JSON; `fields` are what it is found by, one of several words by each; `text` is what it is searched by.

    `partition` is told of what was read; what is written gets that of the call.
    """

    point_id: str
    kind: Kind
    tenant_id: str
    fields: Mapping[str, str | int | Sequence[str]]
    body: str
    text: str = ""
    partition: int | None = None


def wants_vector(document: Document) -> bool:
    """Messages that say something."""
    return document.kind == "message" and bool(document.text.strip())


@dataclass(frozen=True, slots=True)
class VectorSpace:
    """Vectors that can be compared: those that one model has made, of one size."""

    model: str
    size: int

    @property
    def name(self) -> str:
        """Of the vectors in an engine, which makes a file name of it: readable, and of this space alone."""
        digest = hashlib.sha256(self.model.encode()).hexdigest()[:8]
        return f"{re.sub(r'[^A-Za-z0-9._-]', '-', self.model)}-{digest}-{self.size}"

    @property
    def stored(self) -> str:
        """State of a message that has its vector."""
        return f"stored:{self.name}"

    @property
    def refused(self) -> str:
        """State of a message that gets none in this space."""
        return f"refused:{self.name}"

    def waiting(self, states: Iterable[str]) -> list[str]:
        """Of the states that there are, those of messages that wait for a vector of this space."""
        return sorted({*states, PENDING} - {self.stored, self.refused})


@dataclass(frozen=True, slots=True)
class MessageVector:
    """The vector of a message as it was read. None: there is none to be had."""

    message: Document
    vector: Sequence[float] | None


class StoredVector(NamedTuple):
    """The vector of a message, and what the message says."""

    body: str
    vector: Sequence[float]


@dataclass(frozen=True, slots=True)
class WrittenVectors:
    """Vectors of one space that messages are written with, by point."""

    space: VectorSpace
    by_point: Mapping[str, Sequence[float]]


def unchanged(
    vectors: Sequence[MessageVector], bodies: Mapping[str, str | None]
) -> tuple[dict[str, list[float]], list[str]]:
    """By point, the vectors of messages whose bodies are still those that were read; and the points that get none."""
    same = [each for each in vectors if bodies.get(each.message.point_id) == each.message.body]
    stored = {each.message.point_id: list(each.vector) for each in same if each.vector is not None}
    return stored, [each.message.point_id for each in same if each.vector is None]


@dataclass(frozen=True, slots=True)
class VectorCounts:
    """Messages that say something, by what has become of their vector in a space.

    `elsewhere`: of those that wait, how many another model has embedded, or refused.
    """

    waiting: int = 0
    stored: int = 0
    refused: int = 0
    elsewhere: int = 0

    @staticmethod
    def of(counts: Mapping[S, int], pending: S, stored: S, refused: S) -> "VectorCounts":
        """From how many messages are in which state, of which the last two are of the space; the others wait for it."""
        ended = counts.get(stored, 0), counts.get(refused, 0)
        waiting = sum(counts.values()) - sum(ended)
        return VectorCounts(waiting, *ended, elsewhere=waiting - counts.get(pending, 0))


@dataclass(frozen=True, slots=True)
class Range:
    """Bounds of an integer field, both exclusive."""

    above: int | None = None
    below: int | None = None

    def holds(self, value: int) -> bool:
        return (self.above is None or value > self.above) and (self.below is None or value < self.below)

    def within(self, other: "Range") -> "Range":
        """What is in both."""
        above = [each for each in (self.above, other.above) if each is not None]
        below = [each for each in (self.below, other.below) if each is not None]
        return Range(max(above, default=None), min(below, default=None))


@dataclass(frozen=True, slots=True)
class Find:
    """Documents of one kind and one tenant. Both are required, so no query can leave the tenant out or name another."""

    kind: Kind
    tenant_id: str
    where: Fields = field(default_factory=dict[str, str | int])
    without: Fields = field(default_factory=dict[str, str | int])
    between: Mapping[str, Range] = field(default_factory=dict[str, Range])
    among: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    """Words of which a document has one, by field."""

    def required(self) -> Fields:
        """What every document has. Kind and tenant win over whatever else asks for them."""
        return {**self.where, "kind": self.kind, "tenant_id": self.tenant_id}

    def matches(self, document: Document) -> bool:
        """Whether a document of single words is among them."""
        if (document.kind, document.tenant_id) != (self.kind, self.tenant_id):
            return False
        values = [(bounds, document.fields.get(name)) for name, bounds in self.between.items()]
        return (
            all(document.fields.get(name) == value for name, value in self.where.items())
            and not any(document.fields.get(name) == value for name, value in self.without.items())
            and all(document.fields.get(name) in words for name, words in self.among.items())
            and all(isinstance(value, int) and bounds.holds(value) for bounds, value in values)
        )


class Identified(Protocol):
    """A record, of whichever client."""

    @property
    def id(self) -> object: ...


class Listed(NamedTuple):
    """A document as one of a list: what it says, and its value of the field that the list is ordered by."""

    body: str
    value: int
    record: Identified

    @property
    def point_id(self) -> str:
        """Made when it is asked for: it takes the engine in process longer than the rest, and few are asked."""
        return str(self.record.id)


Point = int | str
"""The id of a document as an engine has it: the number of its UUID, or its text. Of many that are found few are asked
for their text, which takes as long to make as all else of a hit."""


def text_of_point(point: Point) -> str:
    """As `point_id` makes it."""
    return point if isinstance(point, str) else str(UUID(int=point))


Marker = Callable[[str], Sequence[tuple[int, int]]]
"""Where in a text something is: begin and end, in characters."""


class Hit(NamedTuple):
    """What a search has found; of many hits few are wanted, whose bodies are asked for then.

    `matched`: how many of the words that were looked for it has, from 0 to 1; where none were looked for, 1.
    """

    point: Point
    score: float
    matched: float = 1.0

    @property
    def point_id(self) -> str:
        return text_of_point(self.point)


@dataclass(frozen=True, slots=True)
class Changes:
    """What a batch of the journal does. Whole threads are deleted first, then documents, then those that stay written:
    a document that is replaced tells, until it is, of others that must go with it."""

    upserts: Sequence[Document] = ()
    deletes: Sequence[str] = ()
    delete_all: Sequence[Find] = ()
    vectors: WrittenVectors | None = None
    """Of those among the upserts that have one already. The others wait for theirs."""


class MemoryBuild(Protocol):
    """What a projection of the journal writes into. Every method raises UnavailableError while the engine is down."""

    async def positions(self) -> Mapping[int, int]:
        """The next offset of each partition: everything before it outlives the process, however that ends."""
        ...

    async def write(self, partition: int, changes: Changes, next_offset: int) -> None:
        """Can be read when it returns. The offset is stored behind the data, if not at once then soon."""
        ...

    async def get(self, point_ids: Sequence[str]) -> Sequence[Document]:
        """Those of the documents that exist, in no order."""
        ...

    async def bodies(self, point_ids: Sequence[str]) -> Mapping[str, str]:
        """By point, what those of the documents say that exist."""
        ...

    async def scroll(
        self, find: Find, *, order_by: str, descending: bool, limit: int, within: Range = Range()
    ) -> Sequence[Listed]:
        """In order of an integer field; equal ones in an order that stays while nothing is written."""
        ...

    async def count(self, find: Find) -> int:
        """How many there are, exactly."""
        ...

    async def put_vectors(self, space: VectorSpace, vectors: Sequence[MessageVector]) -> None:
        """Beside the messages that still are what they were when they were read, by their bodies.

        A process that dies meanwhile leaves each message with its vector or waiting for it; never a vector of a text
        that is gone. Writing a message again takes its vector. Called without any it
        raises UnavailableError where there is no room for more.
        """
        ...

    async def without_vector(self, space: VectorSpace, limit: int, *, within: Range = Range()) -> Sequence[Document]:
        """Messages of all tenants that wait for a vector of the space, the newest first, by their positions.

        What waits is told by each message itself, so that nothing is forgotten whatever is killed.
        """
        ...

    async def vector_counts(self, space: VectorSpace) -> VectorCounts:
        """Of all tenants; an estimate while much is written."""
        ...


class MemoryStore(MemoryBuild, Protocol):
    """One contract, two engines. Every method raises UnavailableError while the engine is down or not open."""

    async def open(self) -> None:
        """Creates what is missing and removes a build that was not finished.

        Raises ConfigurationError when that can never work.
        """
        ...

    async def close(self) -> None: ...

    async def begin_build(self) -> MemoryBuild:
        """An empty store beside this one, which goes on. A build before it that was not finished is removed."""
        ...

    async def switch(self) -> None:
        """Every call from now on is about what was built, also after a restart.

        A process that dies meanwhile leaves either the old or the new one, whole. Nobody may write during the call.
        """
        ...

    async def clean(self) -> None:
        """Removes what is not live: a build that is not to be, or after a switch the old one. `open` does so too."""
        ...

    async def of_partition(self, partition: int | None, *, after: str | None, limit: int) -> Sequence[Document]:
        """Documents that a partition of the journal has led to, in the order of their ids, those behind `after`.

        `partition` None: documents of which nothing says so; a projection writes no such.
        """
        ...

    async def search(self, find: Find, text: str, limit: int) -> Sequence[Hit]:
        """Best first, by BM25, equally good ones in any order. Text without a word worth looking for finds nothing.

        How rare a word is counts within the tenant: what others write changes no order of hits.
        """
        ...

    def marker(self, query: str) -> Marker:
        """Finds the words of a query, as `search` takes them. What it learns of one text helps with the next."""
        ...

    async def search_vector(
        self, find: Find, space: VectorSpace, vector: Sequence[float], limit: int, *, least: float | None = None
    ) -> Sequence[Hit]:
        """Nearest first, by the cosine, which is at least `least`. Finds messages that have a vector of the space."""
        ...

    async def vectors(self, space: VectorSpace, point_ids: Sequence[str]) -> Mapping[str, StoredVector]:
        """By point, those of the messages that have a vector of the space."""
        ...
