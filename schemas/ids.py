"""Identifiers: UUIDv7 text, either new or derived from what they name.

A derived id is the same whenever the same fact is written again, which is what makes a replay harmless: the second
copy of a message, a call or a unit of usage carries the id of the first.
"""

import hashlib
import os
import uuid
from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_MICROSECOND = timedelta(microseconds=1)


def microseconds(at: datetime) -> int:
    """A time as stores order by it: since 1970, UTC, exactly."""
    return (at - EPOCH) // _MICROSECOND


def _uuid7(milliseconds: int, entropy: bytes) -> str:
    value = (milliseconds & 0xFFFFFFFFFFFF) << 80
    value |= 0x7 << 76
    bits = int.from_bytes(entropy[:10], "big")
    value |= ((bits >> 62) & 0xFFF) << 64
    value |= 0b10 << 62
    value |= bits & 0x3FFFFFFFFFFFFFFF
    return str(uuid.UUID(int=value))


def new_id(at: datetime) -> str:
    """A fresh UUIDv7 (RFC 9562) of the time `at`."""
    return _uuid7((at - EPOCH) // timedelta(milliseconds=1), os.urandom(10))


def derived_id(*parts: object, at: datetime) -> str:
    """The UUIDv7-shaped id of the fact that `parts` name: time bits from `at`, the rest from their SHA-256.

    By way of a float the time is now and then a millisecond early. It stays so: another id would be another fact.
    """
    text = "\x1f".join(str(part) for part in parts)
    return _uuid7(int(at.timestamp() * 1000), hashlib.sha256(text.encode()).digest())


def time_of(identifier: str) -> datetime:
    """The time inside a UUIDv7, or the epoch for any other identifier, one of a time past the year 9999 included."""
    try:
        value = uuid.UUID(identifier)
        if value.version != 7:
            return EPOCH
        return EPOCH + timedelta(milliseconds=value.int >> 80)
    except (ValueError, OverflowError):
        return EPOCH


def turn_id_of(tenant_id: str, thread_id: str, prompt_id: str) -> str:
    """The turn that a prompt opens. Whoever publishes a prompt with an id of its own can compute it beforehand."""
    return derived_id("turn", tenant_id, thread_id, prompt_id, at=time_of(prompt_id))


def message_id_of(turn_id: str, step: int, role: str, index: object, *, opened_at: datetime) -> str:
    """The message of a turn at a step, also before it is written. `index` tells those of a step and role apart."""
    return derived_id("message", turn_id, step, role, index, at=opened_at)


def record_id(topic: str, partition: int, offset: int) -> str:
    """The id of a record that came without one; two readers of the log agree on it."""
    return derived_id("record", topic, partition, offset, at=EPOCH)
