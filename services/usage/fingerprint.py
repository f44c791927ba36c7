"""Whether rows of usage are the same as the log's, told by sums that a log and a table can both work out. Pure.

A row's hash is of all its values as text; that of many rows is the exclusive or of theirs, whatever their order.
"""

import hashlib
from collections.abc import Iterable, Sequence

from services.usage.rows import EVENT_COLUMNS
from services.usage.store import Row

COLUMNS = (*EVENT_COLUMNS, "source_partition", "source_offset")

BUCKET = 10_000
"""Offsets of a partition that have a hash together: rows are only looked at where it differs."""

Values = tuple[str | None, ...]
"""What a row holds as text, in the order of COLUMNS."""

_FLAGS = ("estimated", "billable", "completes_turn")
_TIME = "occurred_at"


def values_of(partition: int, offset: int, row: Row) -> Values:
    """Flags are 0 or 1, a time is its microseconds since 1970."""
    texts = (None if value is None else str(int(value) if isinstance(value, bool) else value) for value in row)
    return (*texts, str(partition), str(offset))


def hash_of(values: Iterable[str | None]) -> int:
    """64 bits of the SHA-256 of the values, each preceded by its length, so that no two rows have one text."""
    encoded = (None if value is None else value.encode() for value in values)
    text = b"".join(b"-" if value is None else b"%d:%b" % (len(value), value) for value in encoded)
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little")


def values_sql() -> Sequence[str]:
    """The expressions of a row's values in ClickHouse."""
    return [_value_sql(name) for name in COLUMNS]


def hash_sql(values: Iterable[str]) -> str:
    """The expression of the hash of values, each an expression of a text, in ClickHouse."""
    parts = (f"ifNull(concat(toString(length({value})), ':', {value}), '-')" for value in values)
    return f"reinterpretAsUInt64(substring(SHA256(concat({', '.join(parts)})), 1, 8))"


def _value_sql(name: str) -> str:
    if name in _FLAGS:
        return f"toString(toUInt8({name}))"
    if name == _TIME:
        return f"toString(toUnixTimestamp64Micro({name}))"
    return f"toString({name})"
