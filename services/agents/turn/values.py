"""What models, tools and clients wrote, held to what the log can carry and give back.

A value that can be written but not read would stop the next owner of the partition, so such values end here.
"""

import math
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import cast

import pydantic_core
from pydantic import JsonValue

MAX_NESTING = 100
"""Levels of arrays and objects in a value. Readers of JSON stop at 200, and events and answers wrap values further."""

END_OF_TIME = datetime(9999, 12, 31, tzinfo=UTC)


def json_value(text: str) -> JsonValue:
    """The value that the text says.

    Raises:
        ValueError: it is not JSON as RFC 8259 has it, has a number beyond all bounds, or is nested too deeply.
    """
    value: JsonValue = pydantic_core.from_json(text, allow_inf_nan=False)
    for level in _levels(value):
        if any(isinstance(each, float) and not math.isfinite(each) for each in level):
            raise ValueError("a number is too large")
    if nested_too_deeply(value):
        raise ValueError(f"nested deeper than {MAX_NESTING} levels")
    return value


def nested_too_deeply(value: object) -> bool:
    """Whether a JSON value has more than `MAX_NESTING` arrays and objects within each other."""
    return sum(1 for _ in _levels(value)) > MAX_NESTING + 1


def _levels(value: object) -> Iterator[list[object]]:
    """The values within a value, level by level; a value that holds nothing is one level."""
    level = [value]
    while level:
        yield level
        level = [inner for each in level for inner in _within(each)]


def _within(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return cast("dict[str, object]", value).values()
    return cast("list[object]", value) if isinstance(value, list) else ()


def writable(text: str) -> str:
    """The text as UTF-8 can carry it: halves of a surrogate pair are joined, one that is alone is replaced."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def later(at: datetime, seconds: float) -> datetime:
    """The time after so many seconds, however many; not a number means at once."""
    if math.isnan(seconds):
        return at
    try:
        return min(at + timedelta(seconds=seconds), END_OF_TIME)
    except OverflowError:
        return END_OF_TIME
