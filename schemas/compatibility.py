"""What a change of the published schemas would break. Pure but for the command at the end.

    python -m schemas.compatibility [--against REV]      exit 1 when something would break

Two parties are held to the old schemas, and one rule covers each:

1. **Writers and the log.** Records are kept and rebuilt from, and clients outside go on writing what they always
   wrote. Whatever the old schema took, the new one takes. On every topic.
2. **Readers.** Whatever is written from now on, a reader made for the old schema takes. On outgoing topics only: the
   readers of an incoming topic are Turnlog's own services, which are rolled out before anybody writes the new.

Where a type may grow all the same, for readers are told so from the first day: an optional field (they ignore fields
that they do not know), an alternative of a tagged union and a type of a topic (they skip tags that they do not know),
a word of a vocabulary marked `x-extensible-enum`. Defaults may change: on an incoming topic that is a change of
behaviour, not of form.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from schemas.history import NoHistoryError, committed_schemas, default_revision, working_schemas
from schemas.json_schema import JsonSchema

Rule = Literal[
    "type_removed",
    "topic_changed",
    "field_removed",
    "field_became_optional",
    "field_became_required",
    "kind_removed",
    "kind_added",
    "word_removed",
    "word_added",
    "tightened",
    "loosened",
]
Direction = Literal["incoming", "outgoing"]


@dataclass(frozen=True)
class Break:
    """One change that somebody would notice: where, which rule, and what to do about it."""

    event_type: str
    path: str
    rule: Rule
    message: str

    def __str__(self) -> str:
        """One line: `type at path: message [rule]`."""
        return f"{self.event_type} at {self.path or 'the event'}: {self.message} [{self.rule}]"


def breaking_changes(old: Mapping[str, JsonSchema], new: Mapping[str, JsonSchema]) -> list[Break]:
    """What in `new`, by event type, breaks who relies on `old`. A type that is only in `new` breaks nobody."""
    found: list[Break] = []
    for name, before in sorted(old.items()):
        after = new.get(name)
        if after is None:
            found.append(Break(name, "", "type_removed", "the type is gone; keep it as long as records of it are kept"))
            continue
        placed = [(document.get("x-topic"), document.get("x-direction")) for document in (before, after)]
        if placed[0] != placed[1]:
            found.append(Break(name, "", "topic_changed", f"it was {_words(placed[0])}, now {_words(placed[1])}"))
            continue
        direction = cast("Direction", before.get("x-direction", "outgoing"))
        found += _Comparison(name, direction, before, after).run()
    return found


Bound = Callable[[float, float], bool]
_TIGHTER: Mapping[str, Bound] = {
    "minimum": lambda old, new: new > old,
    "exclusiveMinimum": lambda old, new: new > old,
    "minLength": lambda old, new: new > old,
    "minItems": lambda old, new: new > old,
    "minProperties": lambda old, new: new > old,
    "maximum": lambda old, new: new < old,
    "exclusiveMaximum": lambda old, new: new < old,
    "maxLength": lambda old, new: new < old,
    "maxItems": lambda old, new: new < old,
    "maxProperties": lambda old, new: new < old,
}
_OPAQUE = ("pattern", "format", "multipleOf", "uniqueItems", "contentEncoding")
"""Constraints whose values cannot be ordered: another value may be tighter and looser at once."""


@dataclass(frozen=True)
class _Comparison:
    """Walks both schemas of one type side by side."""

    event_type: str
    direction: Direction
    old_root: JsonSchema
    new_root: JsonSchema
    path: str = ""
    seen: frozenset[tuple[int, int]] = frozenset()
    """Pairs of schemas that are being compared further up, so that a recursive one ends."""

    def run(self) -> list[Break]:
        return list(self._schemas(self.old_root, self.new_root))

    def _schemas(self, old: JsonSchema, new: JsonSchema) -> Iterator[Break]:
        before, after = _kinds(old, self.old_root), _kinds(new, self.new_root)
        for kind, schema in before.items():
            if kind in after:
                yield from self._alike(schema, after[kind])
            elif not _covered(kind, after):
                yield self._break("kind_removed", f"{kind} is not taken any more; it was, and it is on the log")
        for kind in after:
            if self.direction == "outgoing" and not kind.tag and kind not in before and not _covered(kind, before):
                yield self._break("kind_added", f"{kind} may come now; an old reader does not expect it")

    def _alike(self, old: JsonSchema, new: JsonSchema) -> Iterator[Break]:
        if (pair := (id(old), id(new))) in self.seen:
            return
        inside = replace(self, seen=self.seen | {pair})
        yield from inside._constraints(old, new)
        yield from inside._vocabulary(old, new)
        yield from inside._fields(old, new)
        for keyword, step in (("items", "[]"), ("additionalProperties", ".*")):
            if keyword in old or keyword in new:
                yield from inside._at(step)._schemas(_schema(old.get(keyword)), _schema(new.get(keyword)))
        places = zip(old.get("prefixItems", []), new.get("prefixItems", []), strict=False)
        for index, (before, after) in enumerate(places):
            yield from inside._at(f"[{index}]")._schemas(before, after)

    def _fields(self, old: JsonSchema, new: JsonSchema) -> Iterator[Break]:
        before: dict[str, JsonSchema] = old.get("properties", {})
        after: dict[str, JsonSchema] = new.get("properties", {})
        was_required, is_required = set(old.get("required", [])), set(new.get("required", []))
        for name, schema in before.items():
            at = self._at(f".{name}")
            if name in after:
                yield from at._schemas(schema, after[name])
            elif self.direction == "incoming" or name in was_required:
                who = "writers send it and expect an effect" if self.direction == "incoming" else "readers rely on it"
                yield at._break("field_removed", f"the field is gone; {who}")
        for name in sorted(is_required - was_required):
            if self.direction == "incoming" or "default" not in after.get(name, {}):
                yield self._at(f".{name}")._break(
                    "field_became_required", "it must be there now; records without it exist: give it a default"
                )
        if self.direction == "outgoing":
            for name in sorted((was_required - is_required) & set(after)):
                yield self._at(f".{name}")._break("field_became_optional", "it was always there; readers rely on it")

    def _vocabulary(self, old: JsonSchema, new: JsonSchema) -> Iterator[Break]:
        before, after = _vocabulary(old), _vocabulary(new)
        if before is None and after is not None:
            yield self._break("tightened", "any value was allowed, now only words of a list")
        elif before is not None and after is None:
            yield from self._loosened("words of a list were allowed, now any value")
        elif before is not None and after is not None:
            for word in sorted(before - after):
                yield self._break("word_removed", f"{word} is not taken any more; it was, and it is on the log")
            if self.direction == "outgoing" and "x-extensible-enum" not in old:
                for word in sorted(after - before):
                    yield self._break("word_added", f"{word} may come now; the vocabulary was not said to grow")
                if "x-extensible-enum" in new:
                    yield self._break("loosened", "the vocabulary was closed, now it may grow")

    def _constraints(self, old: JsonSchema, new: JsonSchema) -> Iterator[Break]:
        for keyword, tighter in _TIGHTER.items():
            before, after = old.get(keyword), new.get(keyword)
            change = f"{keyword} was {_words(before)}, now {_words(after)}"
            if after is not None and (before is None or tighter(before, after)):
                yield self._break("tightened", change)
            elif before is not None and (after is None or tighter(after, before)):
                yield from self._loosened(change)
        for keyword in _OPAQUE:
            before, after = old.get(keyword), new.get(keyword)
            change = f"{keyword} was {_words(before)}, now {_words(after)}"
            if after is not None and after != before:
                yield self._break("tightened", change)
            elif before is not None and after is None:
                yield from self._loosened(change)

    def _loosened(self, message: str) -> Iterator[Break]:
        if self.direction == "outgoing":
            yield self._break("loosened", f"{message}; an old reader does not expect that")

    def _at(self, step: str) -> "_Comparison":
        return replace(self, path=f"{self.path}{step}".removeprefix("."))

    def _break(self, rule: Rule, message: str) -> Break:
        return Break(self.event_type, self.path, rule, message)


@dataclass(frozen=True)
class _Kind:
    """What sort of value an alternative is about: a JSON type, and the tag of an object that has one."""

    name: str
    tag: str | None = None
    number: int = 1
    """Counts alternatives that look alike."""

    def __str__(self) -> str:
        return f"{self.name} {self.tag!r}" if self.tag else self.name


_ANYTHING = _Kind("any value")


def _kinds(schema: JsonSchema, root: JsonSchema, tag: str | None = None) -> dict[_Kind, JsonSchema]:
    """The alternatives of a schema, by what they are about."""
    schema = _dereferenced(schema, root)
    alternatives = cast("list[JsonSchema] | None", schema.get("anyOf") or schema.get("oneOf"))
    if alternatives is None:
        types = schema.get("type", _ANYTHING.name)
        return {_Kind(name, tag): schema for name in (cast("list[str]", types) if isinstance(types, list) else [types])}
    tag_field: str | None = schema.get("discriminator", {}).get("propertyName")
    kinds: dict[_Kind, JsonSchema] = {}
    for alternative in alternatives:
        fields = _dereferenced(alternative, root).get("properties", {})
        for kind, inner in _kinds(alternative, root, fields.get(tag_field, {}).get("const")).items():
            free = kind
            while free in kinds:
                free = replace(free, number=free.number + 1)
            kinds[free] = inner
    return kinds


def _dereferenced(schema: JsonSchema, root: JsonSchema) -> JsonSchema:
    """The schema that a reference leads to; what stands beside a reference here is a default or a description."""
    while "$ref" in schema:
        schema = root["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    return schema


def _covered(kind: _Kind, others: Mapping[_Kind, JsonSchema]) -> bool:
    """Whether an alternative that is about more takes every value of `kind`."""
    return _ANYTHING in others or (kind.name == "integer" and _Kind("number") in others)


def _vocabulary(schema: JsonSchema) -> set[str] | None:
    if "const" in schema:
        return {repr(schema["const"])}
    words = schema.get("enum", schema.get("x-extensible-enum"))
    return None if words is None else {repr(word) for word in words}


def _schema(value: Any) -> JsonSchema:
    """A place of a schema as an object: `false` takes nothing, `true` and what is not there take anything."""
    return {"type": "nothing"} if value is False else cast("JsonSchema", value or {}) if value is not True else {}


def _words(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(str(part) for part in cast("tuple[object, ...]", value))
    return "unset" if value is None else str(value)


def main(arguments: Sequence[str] | None = None, root: Path = Path()) -> int:
    """The command. Exit code 1 when a change breaks somebody; 0 also when there is nothing to compare with."""
    parser = argparse.ArgumentParser(prog="python -m schemas.compatibility", description="Find breaking changes.")
    parser.add_argument("--against", metavar="REV", help="the revision to compare with; by default the one before")
    against: str | None = parser.parse_args(arguments).against
    try:
        revision = against or default_revision(root)
        old = committed_schemas(root, revision)
    except NoHistoryError as error:
        sys.stdout.write(f"Nothing to compare the schemas with: {error}\n")
        return 0 if against is None else 1
    found = breaking_changes(old, working_schemas(root))
    for change in found:
        sys.stderr.write(f"{change}\n")
    if found:
        sys.stderr.write(f"{len(found)} breaking changes against {revision}: add a new type (`.v2`) instead.\n")
        return 1
    sys.stdout.write(f"{len(old)} schemas of {revision} compared: nothing breaks.\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
