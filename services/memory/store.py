"""The port to Qdrant: documents of a tenant, found by field, by order and by text."""

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

Kind = Literal["thread", "message", "turn", "call"]
Fields = Mapping[str, str | int]

KEYWORD_FIELDS = ("kind", "tenant_id", "thread_id", "user_id", "turn_id", "role", "agent", "about")
INTEGER_FIELDS = ("position", "updated")

PARTITION = "partition"
"""Name under which an engine keeps which partition of the journal a document is from."""


def point_id(kind: str, tenant_id: str, *identity: str) -> str:
    """The point of a document: a UUID from what it is, so that writing it again replaces it."""
    digest = hashlib.sha256("\x1f".join((kind, tenant_id, *identity)).encode()).digest()
    return str(uuid.UUID(bytes=digest[:16], version=5))


@dataclass(frozen=True, slots=True)
class Document:
    """`body` is JSON; `fields` are what it is found by; `text` is what it is searched by.

    `partition` is told of what was read; what is written gets that of the call.
    """

    point_id: str
    kind: Kind
    tenant_id: str
    fields: Fields
    body: str
    text: str = ""
    partition: int | None = None


@dataclass(frozen=True, slots=True)
class Range:
    """Bounds of the field that a query orders by, both exclusive."""

    above: int | None = None
    below: int | None = None


@dataclass(frozen=True, slots=True)
class Find:
    """Documents of one kind and one tenant. Both are required, so no query can leave the tenant out."""

    kind: Kind
    tenant_id: str
    where: Fields = field(default_factory=dict[str, str | int])
    without: Fields = field(default_factory=dict[str, str | int])


@dataclass(frozen=True, slots=True)
class Hit:
    document: Document
    score: float


@dataclass(frozen=True, slots=True)
class Changes:
    """What a batch of the journal does: whole threads are deleted first, then documents written and deleted."""

    upserts: Sequence[Document] = ()
    deletes: Sequence[str] = ()
    delete_all: Sequence[Find] = ()


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

    async def scroll(
        self, find: Find, *, order_by: str, descending: bool, limit: int, within: Range = Range()
    ) -> Sequence[Document]:
        """In order of an integer field; equal ones in an order that stays while nothing is written."""
        ...

    async def search(self, find: Find, text: str, limit: int) -> Sequence[Hit]:
        """Best first, by BM25. Text without a word worth looking for finds nothing."""
        ...
