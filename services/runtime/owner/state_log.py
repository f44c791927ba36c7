"""What of a partition's state topic still counts, and how far back a takeover has to read. Pure.

Compaction runs when it likes, and between two runs a busy partition writes any number of records. So the owner keeps a
**floor**, the offset before which no record counts any more, and commits it with its other offsets: a takeover reads
from there. A state that has not changed for long would hold the floor back; it is written again, unchanged.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from pydantic import BaseModel

from services.runtime.owner.actor import StateRecord

SPAN = 10_000
"""Records, overwritten ones included, that a takeover reads: a fraction of a second."""

SPAN_PER_RECORD = 5
"""Times the records that count, where that is more: so at most a fifth of what is written is written again."""

REWRITTEN_AT_ONCE = 200
"""Records that one transaction writes again, so that it stays short."""


@dataclass(frozen=True, slots=True)
class Written:
    """A record of the state topic that is the last one of its key, and no tombstone."""

    key: str
    value: BaseModel
    offset: int


class StateLog:
    """The records that count, the oldest first.

    Whatever is committed later has offsets beyond `end`, so the floor of now is a floor for ever.
    """

    def __init__(self, records: Iterable[Written], *, end: int) -> None:
        self._counting = OrderedDict((each.key, each) for each in sorted(records, key=lambda each: each.offset))
        self._end = end

    def __len__(self) -> int:
        return len(self._counting)

    @property
    def floor(self) -> int:
        """No record before this offset counts."""
        oldest = next(iter(self._counting.values()), None)
        return self._end if oldest is None else oldest.offset

    def committed(self, key: str, value: BaseModel | None, offset: int) -> None:
        """Takes note of a record that has been committed, in the order of the log. None is the tombstone."""
        self._counting.pop(key, None)
        if value is not None:
            self._counting[key] = Written(key, value, offset)
        self._end = offset + 1

    def to_rewrite(self, written_anyway: Collection[str]) -> list[StateRecord]:
        """The oldest records, to be written again, as long as they make a takeover read too much."""
        reach = max(SPAN, SPAN_PER_RECORD * len(self._counting))
        found: list[StateRecord] = []
        for each in self._counting.values():
            if self._end - each.offset <= reach or len(found) == REWRITTEN_AT_ONCE:
                break
            if each.key not in written_anyway:
                found.append((each.key, each.value))
        return found
