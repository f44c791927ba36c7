"""Where a page ends, as a client carries it to the next one. Pure."""

import base64
import re
from dataclasses import dataclass

from services.memory.store import Listed
from services.runtime.errors import TurnlogError

MOST_FOUND = 1000
"""Hits of a search that can be paged through: each page looks for those before it too."""

FOREIGN_CURSOR = "the cursor was not given out by this service: leave it out to begin anew"


class BadCursorError(TurnlogError):
    """A cursor that this service did not give out."""

    code = "bad_cursor"


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a page of a list ended: the order of the list, and value and id of the last document."""

    order: str
    value: int
    point_id: str

    def is_before(self, listed: Listed, *, descending: bool) -> bool:
        """Whether a document comes behind it, of those that do not come before it by their value."""
        if listed.value != self.value:
            return True
        return listed.point_id < self.point_id if descending else listed.point_id > self.point_id

    def encode(self) -> str:
        return _encoded(f"{self.order}.{self.value}.{self.point_id}")


def decode_cursor(cursor: str, order: str) -> Cursor:
    """Raises BadCursorError."""
    given = re.fullmatch(rf"{re.escape(order)}\.(-?[0-9]{{1,18}})\.([0-9a-f-]{{36}})", _decoded(cursor))
    if given is None:
        raise BadCursorError(FOREIGN_CURSOR)
    return Cursor(order, int(given[1]), given[2])


@dataclass(frozen=True, slots=True)
class Place:
    """Which hits of a search are on a page. Its cursor says how many come before it."""

    begin: int
    end: int

    @staticmethod
    def after(cursor: str | None, limit: int) -> "Place":
        """Raises BadCursorError."""
        if cursor is None:
            return Place(0, limit)
        text = _decoded(cursor)
        if not re.fullmatch(r"@[0-9]{1,3}", text):
            raise BadCursorError(FOREIGN_CURSOR)
        begin = int(text[1:])
        return Place(begin, begin + limit)

    @property
    def depth(self) -> int:
        """How many hits to look for: one more tells whether another page follows."""
        return min(self.end + 1, MOST_FOUND)

    def following(self, found: int) -> str | None:
        return _encoded(f"@{self.end}") if found > self.end else None


def _encoded(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _decoded(cursor: str) -> str:
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except ValueError:
        return ""
