"""Every rule of the compatibility check is shown a change that breaks it, and the changes that it must let through."""

import copy
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.compatibility import Break, breaking_changes, main
from schemas.generate import json_schemas, render, write
from schemas.history import NoHistoryError, committed_schemas, default_revision, working_schemas

Schema = dict[str, Any]
Change = Callable[[Schema], None]

PUBLISHED = json_schemas()

FIELDS: Schema = {
    "id": {"type": "string", "minLength": 1, "maxLength": 10},
    "note": {"type": "string"},
    "score": {"type": "integer", "minimum": 0, "maximum": 10},
    "color": {"type": "string", "enum": ["green", "red"]},
    "code": {"type": "string", "x-extensible-enum": ["late", "lost"]},
    "owner": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    "slug": {"type": "string", "pattern": "^[a-z]+$"},
    "extra": {"type": "object", "additionalProperties": {"type": "integer"}},
    "anything": {},
    "pair": {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}]},
    "parts": {
        "type": "array",
        "maxItems": 3,
        "items": {
            "oneOf": [{"$ref": "#/$defs/Text"}, {"$ref": "#/$defs/Image"}],
            "discriminator": {"propertyName": "type"},
        },
    },
    "tree": {"$ref": "#/$defs/Tree"},
}
DEFINITIONS: Schema = {
    "Text": {
        "type": "object",
        "properties": {"type": {"type": "string", "const": "text"}, "text": {"type": "string"}},
        "required": ["type", "text"],
    },
    "Image": {
        "type": "object",
        "properties": {"type": {"type": "string", "const": "image"}, "url": {"type": "string"}},
        "required": ["type", "url"],
    },
    "Tree": {
        "type": "object",
        "properties": {
            "children": {"type": "array", "items": {"$ref": "#/$defs/Tree"}},
            "leaf": {"type": "string"},
        },
        "required": ["leaf"],
    },
}


def document(direction: str) -> Schema:
    return copy.deepcopy(
        {
            "x-topic": "things",
            "x-direction": direction,
            "type": "object",
            "properties": FIELDS,
            "required": ["id"],
            "$defs": DEFINITIONS,
        }
    )


def change_of(direction: str, change: Change) -> list[Break]:
    before, after = document(direction), document(direction)
    change(after)
    assert after != before, "the change changes nothing"
    return breaking_changes({"thing.made": before}, {"thing.made": after})


def put(field: str, **keywords: Any) -> Change:
    def change(schema: Schema) -> None:
        schema["properties"].setdefault(field, {}).update(keywords)

    return change


def drop(field: str, keyword: str) -> Change:
    def change(schema: Schema) -> None:
        del schema["properties"][field][keyword]

    return change


def become(field: str, **schema_of_field: Any) -> Change:
    def change(schema: Schema) -> None:
        schema["properties"][field] = schema_of_field

    return change


def gone(field: str) -> Change:
    def change(schema: Schema) -> None:
        del schema["properties"][field]
        schema["required"] = [name for name in schema["required"] if name != field]

    return change


def require(*fields: str) -> Change:
    def change(schema: Schema) -> None:
        schema["required"] = list(fields)

    return change


def both(*changes: Change) -> Change:
    def change(schema: Schema) -> None:
        for one in changes:
            one(schema)

    return change


def inside(*path: str | int, **keywords: Any) -> Change:
    def change(schema: Schema) -> None:
        node: Any = schema
        for step in path:
            node = node[step]
        node.update(keywords)

    return change


def add_part(schema: Schema) -> None:
    schema["$defs"]["Sound"] = {
        "type": "object",
        "properties": {"type": {"type": "string", "const": "sound"}},
        "required": ["type"],
    }
    schema["properties"]["parts"]["items"]["oneOf"].append({"$ref": "#/$defs/Sound"})


def remove_part(schema: Schema) -> None:
    schema["properties"]["parts"]["items"]["oneOf"].pop()


INCOMING, OUTGOING = ("incoming",), ("outgoing",)
BOTH = INCOMING + OUTGOING

BREAKING = [
    ("a required field is removed", BOTH, gone("id"), "field_removed", "id"),
    ("an optional field is removed", INCOMING, gone("note"), "field_removed", "note"),
    ("a type changes", BOTH, become("note", type="integer"), "kind_removed", "note"),
    ("a type narrows", BOTH, become("owner", type="string"), "kind_removed", "owner"),
    ("any value becomes one kind", BOTH, become("anything", type="string"), "kind_removed", "anything"),
    ("a number becomes an integer below", BOTH, inside("properties", "extra", "additionalProperties", type="boolean"),
     "kind_removed", "extra.*"),
    ("a place of a tuple changes", BOTH, inside("properties", "pair", "prefixItems", 1, type="string"),
     "kind_removed", "pair[1]"),
    ("an object is closed", BOTH, put("extra", additionalProperties=False), "kind_removed", "extra.*"),
    ("a type widens", OUTGOING, become("note", anyOf=[{"type": "string"}, {"type": "integer"}]), "kind_added", "note"),
    ("null may come", OUTGOING, become("note", anyOf=[{"type": "string"}, {"type": "null"}]), "kind_added", "note"),
    ("an integer becomes a number", OUTGOING, put("score", type="number"), "kind_added", "score"),
    ("one kind becomes any value", OUTGOING, become("note"), "kind_added", "note"),
    ("an optional field becomes required", BOTH, require("id", "note"), "field_became_required", "note"),
    ("a new field is required", BOTH, both(put("new", type="string"), require("id", "new")),
     "field_became_required", "new"),
    ("a new field with a default is required of writers", INCOMING,
     both(put("new", type="string", default=""), require("id", "new")), "field_became_required", "new"),
    ("a required field becomes optional", OUTGOING, require(), "field_became_optional", "id"),
    ("a word is removed", BOTH, put("color", enum=["green"]), "word_removed", "color"),
    ("a word of a growing vocabulary is removed", BOTH, put("code", **{"x-extensible-enum": ["late"]}),
     "word_removed", "code"),
    ("a word is added to a closed vocabulary", OUTGOING, put("color", enum=["green", "red", "blue"]),
     "word_added", "color"),
    ("a vocabulary is opened", OUTGOING,
     become("color", type="string", **{"x-extensible-enum": ["green", "red"]}), "loosened", "color"),
    ("a vocabulary becomes any text", OUTGOING, become("color", type="string"), "loosened", "color"),
    ("any text becomes a vocabulary", BOTH, put("note", enum=["short"]), "tightened", "note"),
    ("an upper bound comes down", BOTH, put("score", maximum=9), "tightened", "score"),
    ("a lower bound goes up", BOTH, put("score", minimum=1), "tightened", "score"),
    ("a text must be longer", BOTH, put("id", minLength=2), "tightened", "id"),
    ("a text must be shorter", BOTH, put("id", maxLength=9), "tightened", "id"),
    ("a list must be shorter", BOTH, put("parts", maxItems=2), "tightened", "parts"),
    ("a bound is new", BOTH, put("note", maxLength=5), "tightened", "note"),
    ("a pattern is new", BOTH, put("note", pattern="^x"), "tightened", "note"),
    ("a pattern changes", BOTH, put("slug", pattern="^[a-z0-9]+$"), "tightened", "slug"),
    ("a format is new", BOTH, put("note", format="date-time"), "tightened", "note"),
    ("an upper bound goes up", OUTGOING, put("score", maximum=11), "loosened", "score"),
    ("a bound is lifted", OUTGOING, drop("id", "maxLength"), "loosened", "id"),
    ("a pattern is lifted", OUTGOING, drop("slug", "pattern"), "loosened", "slug"),
    ("an alternative is removed", BOTH, remove_part, "kind_removed", "parts[]"),
    ("a field of an alternative is removed", BOTH, inside("$defs", "Text", properties={"type": {"const": "text"}}),
     "field_removed", "parts[].text"),
    ("a recursive part changes", BOTH, inside("$defs", "Tree", "properties", "leaf", type="integer"),
     "kind_removed", "tree.leaf"),
    ("it moves to another topic", BOTH, inside(**{"x-topic": "others"}), "topic_changed", ""),
    ("it is written by others now", OUTGOING, inside(**{"x-direction": "incoming"}), "topic_changed", ""),
]  # fmt: skip
HARMLESS = [
    ("an optional field is added", BOTH, put("new", type="string")),
    ("an always written field with a default is added", OUTGOING,
     both(put("new", type="string", default=""), require("id", "new"))),
    ("an optional field is no longer written", OUTGOING, gone("note")),
    ("a required field may be left out by writers", INCOMING, require()),
    ("writers may say more", INCOMING, become("note", anyOf=[{"type": "string"}, {"type": "integer"}])),
    ("writers may use fractions", INCOMING, put("score", type="number")),
    ("writers have a new word", INCOMING, put("color", enum=["green", "red", "blue"])),
    ("a bound is lifted for writers", INCOMING, drop("id", "maxLength")),
    ("a growing vocabulary grows", OUTGOING, put("code", **{"x-extensible-enum": ["late", "lost", "odd"]})),
    ("a growing vocabulary is closed", OUTGOING, become("code", type="string", enum=["late", "lost"])),
    ("a tagged alternative is added", BOTH, add_part),
    ("a description is added", BOTH, put("note", description="What was noted.", default="")),
]  # fmt: skip


def cases(rows: list[Any]) -> list[Any]:
    return [pytest.param(way, *row[2:], id=f"{row[0]}, {way}") for row in rows for way in row[1]]


@pytest.mark.parametrize(("direction", "change", "rule", "path"), cases(BREAKING))
def test_a_change_that_breaks_somebody_is_found(direction: str, change: Change, rule: str, path: str) -> None:
    found = change_of(direction, change)
    assert (rule, path) in {(one.rule, one.path) for one in found}, found


@pytest.mark.parametrize(("direction", "change"), cases(HARMLESS))
def test_a_change_that_breaks_nobody_passes(direction: str, change: Change) -> None:
    assert change_of(direction, change) == []


def test_a_type_that_is_gone_is_found_and_a_new_one_passes() -> None:
    one = document("outgoing")
    (found,) = breaking_changes({"thing.made": one}, {"thing.made.v2": one})
    assert (found.event_type, found.rule) == ("thing.made", "type_removed")
    assert breaking_changes({}, {"thing.made": one}) == []


def test_every_published_schema_is_compatible_with_itself() -> None:
    assert breaking_changes(PUBLISHED, copy.deepcopy(PUBLISHED)) == []


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_lost_field_of_any_published_type_is_found(name: str) -> None:
    before = {name: PUBLISHED[name]}
    for field in PUBLISHED[name]["required"]:
        after = copy.deepcopy(before)
        gone(field)(after[name])
        assert [one.path for one in breaking_changes(before, after)] == [field]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--initial-branch", "main")
    write(render(), tmp_path / "schemas")
    commit(tmp_path)
    return tmp_path


def git(root: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)


def commit(root: Path) -> None:
    git(root, "add", ".")
    git(root, "commit", "--message", "A change")


def break_a_type(root: Path) -> None:
    path = root / "schemas" / "json" / "turn.completed.json"
    schema = json.loads(path.read_text())
    gone("text")(schema)
    path.write_text(json.dumps(schema))


def test_the_committed_schemas_are_read_as_they_were_written(repository: Path) -> None:
    assert committed_schemas(repository, "HEAD") == working_schemas(repository) == PUBLISHED


def test_a_break_in_the_working_tree_fails(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    break_a_type(repository)
    assert default_revision(repository) == "HEAD"
    assert main([], repository) == 1
    assert "turn.completed at text: the field is gone" in capsys.readouterr().err


def test_a_break_that_was_just_committed_fails(repository: Path) -> None:
    break_a_type(repository)
    commit(repository)
    assert main([], repository) == 1
    assert main(["--against", "HEAD"], repository) == 0


def test_a_break_anywhere_on_a_branch_fails(repository: Path) -> None:
    git(repository, "checkout", "-b", "feature")
    break_a_type(repository)
    commit(repository)
    (repository / "note").write_text("more")
    commit(repository)
    assert main([], repository) == 1


def test_without_git_it_says_so_and_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([], tmp_path) == 0
    assert "Nothing to compare the schemas with" in capsys.readouterr().out


def test_a_first_commit_has_nothing_to_break(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([], repository) == 0
    assert "Nothing to compare the schemas with" in capsys.readouterr().out


def test_a_revision_that_was_asked_for_and_is_not_there_fails(repository: Path) -> None:
    with pytest.raises(NoHistoryError, match="git has no v9"):
        committed_schemas(repository, "v9")
    assert main(["--against", "v9"], repository) == 1
