"""Records that are no events, of every kind that a careless or hostile client may write. Drawn from a seed."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

Headers = list[tuple[str, bytes | None]]


@dataclass(frozen=True)
class Malformed:
    """A record that nobody can use."""

    value: bytes | None
    key: bytes | None = None
    headers: tuple[tuple[str, bytes | None], ...] = ()


def malformed(seed: int, count: int, *, valid: Sequence[str], keyed: bool) -> list[Malformed]:
    """`count` records; `valid` are JSON texts of events that the topic takes, to be spoilt.

    On a topic that is `keyed` (compacted) each has a key of its own, and none is a deletion, which has no value.
    """
    draw = random.Random(seed)
    kinds = [
        _noise,
        _cut_short,
        _no_object,
        _unknown_type,
        _two_types,
        _bad_identity,
        _deep,
        _odd_text,
        *([] if keyed else [_tombstone]),
    ]
    odd = [None, b"", b"\xff\x00", b"k" * 300, *(b"t-%d" % number for number in range(50))]
    records: list[Malformed] = []
    for number in range(count):
        event: dict[str, object] = json.loads(draw.choice(valid))
        key = b"\xff-%d" % number if keyed else draw.choice(odd)
        records.append(_with_oddities(draw, key, draw.choice(kinds)(draw, event)))
    return records


def _with_oddities(draw: random.Random, key: bytes | None, record: Malformed) -> Malformed:
    """A key and headers that have nothing to do with the value."""
    more: Headers = draw.choice([[], [], [("traceparent", b"nonsense")], [("ce_id", None), ("\u00e9", b"\xff\xfe")]])
    if record.value is None and key is None:
        key = b"t-1"  # the client writes no record without both
    return Malformed(record.value, key, (*more, *record.headers))


def _noise(draw: random.Random, _: dict[str, object]) -> Malformed:
    return Malformed(
        draw.choice([b"", b" ", b"\x00", b"\xff\xfe{}", b"{not json", draw.randbytes(draw.randrange(1, 40))])
    )


def _cut_short(draw: random.Random, event: dict[str, object]) -> Malformed:
    text = json.dumps(event).encode()
    return Malformed(text[: draw.randrange(1, len(text))])


def _no_object(draw: random.Random, event: dict[str, object]) -> Malformed:
    return Malformed(json.dumps(draw.choice([[], [event], 7, -0.5, "text", None, True])).encode())


def _unknown_type(draw: random.Random, event: dict[str, object]) -> Malformed:
    name = draw.choice(["prompt.shouted", "", "prompt.submitted.v9", "x" * 5000, "type\nwith\nlines"])
    if draw.random() < 0.5:
        return Malformed(json.dumps({**event, "type": name or "?"}).encode())
    event.pop("type", None)
    return Malformed(json.dumps(event).encode(), headers=(("ce_type", (name or "?").encode()),))


def _two_types(draw: random.Random, event: dict[str, object]) -> Malformed:
    return Malformed(json.dumps({**event, "type": "one.thing"}).encode(), headers=(("ce_type", b"another.thing"),))


def _bad_identity(draw: random.Random, event: dict[str, object]) -> Malformed:
    """The fields that say whose the event is have values of another kind."""
    wrong: list[object] = [[], {}, 7, True, "", "a b", "x" * 201, {"$ne": None}, -1e308, 10**300]
    broken = {name: draw.choice(wrong) for name in ("tenant_id", "thread_id", "usage_id", "call_id", "name")}
    return Malformed(json.dumps({**event, **broken}).encode())


def _deep(draw: random.Random, event: dict[str, object]) -> Malformed:
    levels = draw.choice([201, 1000, 20_000])
    name = draw.choice(["content", "result", "arguments", "parts", "metadata", "input_tokens"])
    return Malformed(b'{"thread_id": "t-1", "%s": %s1%s}' % (name.encode(), b"[" * levels, b"]" * levels))


def _odd_text(draw: random.Random, event: dict[str, object]) -> Malformed:
    odd = draw.choice(
        [b'"\\ud800"', b'"\\u0000\\n"', b'"' + b"\xc3\x28" + b'"', b"NaN", b"-Infinity", b"1e999", b"0x1"]
    )
    return Malformed(b'{"thread_id": %s, "usage_id": %s, "name": %s, "call_id": %s}' % (odd, odd, odd, odd))


def _tombstone(draw: random.Random, _: dict[str, object]) -> Malformed:
    return Malformed(None)
