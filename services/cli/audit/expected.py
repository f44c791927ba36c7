"""Which documents a partition of the journal must have led to. Pure: memory's own projection, with fingerprints kept.

About 200 bytes a document, and the text of threads and turns, which later events change.
"""

import hashlib
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from schemas.journal import JournalEvent
from services.memory.fingerprint import fingerprint
from services.memory.projector import CALLS, OF_MESSAGES, points_read, project
from services.memory.store import Document, Kind, Range

_KINDS: tuple[Kind, ...] = ("thread", "message", "turn", "call")
_CHANGING = ("thread", "turn")


@dataclass(frozen=True, slots=True)
class Expected:
    """A document as it must be, and the offset of the event that last wrote it."""

    kind: Kind
    fingerprint: bytes
    offset: int


class ExpectedDocuments:
    """Documents by the 16 bytes of their ids."""

    def __init__(self) -> None:
        self._packed: dict[bytes, bytes] = {}
        self._bodies: dict[str, str] = {}
        self._calls: dict[str, Sequence[str]] = {}
        self._deletions: dict[bytes, set[Range]] = {}
        self._watched: dict[bytes, set[bytes | None]] = {}

    def apply(self, offset: int, event: JournalEvent) -> None:
        """Events in the order of their offsets."""
        known = [(point, self.get(key_of(point))) for point in points_read([event])]
        existing = {point: self._known(point, must, event) for point, must in known if must is not None}
        changes = project([(offset, event)], existing)
        thread = _thread_of(event)
        for find in changes.delete_all:
            self._deletions.setdefault(thread, set()).add(find.between["position"])
        for document in changes.upserts:
            kind = _KINDS.index(document.kind).to_bytes(1, "big")
            key = key_of(document.point_id)
            self._packed[key] = fingerprint(document) + offset.to_bytes(8, "big") + kind + thread
            if document.kind in _CHANGING:
                self._bodies[document.point_id] = document.body
            if isinstance(calls := document.fields.get(CALLS), list):
                self._calls[document.point_id] = calls
        for point in changes.deletes:
            self._packed.pop(key_of(point), None)
            self._bodies.pop(point, None)
            self._calls.pop(point, None)
        if self._watched:
            written = [key_of(each.point_id) for each in changes.upserts] + [key_of(each) for each in changes.deletes]
            for key in self._watched if changes.delete_all else self._watched.keys() & written:
                self._watched[key].add(self._fingerprint(key))

    def _known(self, point: str, must: Expected, event: JournalEvent) -> Document:
        """As much of a document as later events go by."""
        fields: dict[str, str | int | Sequence[str]] = {"position": must.offset, "thread_id": event.thread_id}
        if point in self._calls:
            fields[CALLS] = self._calls[point]
        return Document(point, must.kind, event.tenant_id, fields, self._bodies.get(point, ""))

    def get(self, key: bytes) -> Expected | None:
        """None when there must be no such document."""
        packed = self._packed.get(key)
        if packed is None:
            return None
        kind, offset, thread = _KINDS[packed[24]], int.from_bytes(packed[16:24], "big"), packed[25:]
        if kind in OF_MESSAGES and any(each.holds(offset) for each in self._deletions.get(thread, ())):
            return None
        return Expected(kind, packed[:16], offset)

    def watch(self, keys: Iterable[bytes]) -> None:
        """From now on every state of these documents is remembered, the present one first."""
        self._watched = {key: {self._fingerprint(key)} for key in keys}

    def states(self, key: bytes) -> Collection[bytes | None]:
        """Fingerprints that a watched document has had; None for a time in which it must not exist."""
        return self._watched[key]

    def _fingerprint(self, key: bytes) -> bytes | None:
        expected = self.get(key)
        return None if expected is None else expected.fingerprint

    def body(self, key: bytes) -> str | None:
        """The text of a thread or a turn."""
        return self._bodies.get(point_of(key))

    def keys(self) -> Iterator[bytes]:
        """Of the documents that must exist."""
        return (key for key in self._packed if self.get(key) is not None)

    def drop(self, keys: Sequence[bytes]) -> None:
        """Forgets documents that were found to be as they must be. What later events do to them counts anew."""
        for key in keys:
            self._packed.pop(key, None)


def _thread_of(event: JournalEvent) -> bytes:
    return hashlib.sha256(f"{event.tenant_id}\x1f{event.thread_id}".encode()).digest()[:8]


def key_of(point_id: str) -> bytes:
    return bytes.fromhex(point_id.replace("-", ""))


def point_of(key: bytes) -> str:
    return str(uuid.UUID(bytes=key))
