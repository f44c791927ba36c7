"""Any record that a published schema allows is read, written again, and read as the same event."""

import base64
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from schemas.envelope import decode_event, encode_event, encode_headers, header_map
from schemas.generate import json_schemas
from schemas.topics import ALL, MAX_RECORD_BYTES, Topic

Strategy = st.SearchStrategy[Any]
Schema = dict[str, Any]

SCHEMAS = json_schemas()
TOPICS = {topic.name: topic for topic in ALL}
AT = datetime(2026, 1, 1, tzinfo=UTC)

JSON_VALUES: Strategy = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=5,
)
TIMES: Strategy = st.datetimes(
    min_value=datetime(1970, 1, 2),
    max_value=datetime(9999, 12, 30),
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=2)), timezone(timedelta(hours=-7, minutes=-30))]),
).map(datetime.isoformat)
FORMATS: dict[str, Strategy] = {
    "date-time": TIMES,
    "base64": st.binary(max_size=30).map(lambda raw: base64.b64encode(raw).decode()),
}


def values(schema: Schema, root: Schema) -> Strategy:
    """What the part `schema` of a published schema allows. An unknown keyword fails, so that none is forgotten."""
    if "$ref" in schema:
        return values(root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root)
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema:
            return st.one_of([values(choice, root) for choice in schema[keyword]])
    for keyword in ("enum", "x-extensible-enum"):
        if keyword in schema:
            return st.sampled_from(schema[keyword])
    if "const" in schema:
        return st.just(schema["const"])
    match schema.get("type"):
        case "object":
            return objects(schema, root)
        case "array" if "prefixItems" in schema:
            return st.tuples(*(values(place, root) for place in schema["prefixItems"])).map(list)
        case "array":
            low = schema.get("minItems", 0)
            return st.lists(values(schema["items"], root), min_size=low, max_size=low + 2)
        case "string":
            return texts(schema)
        case "integer":
            return st.integers(schema.get("minimum"), schema.get("maximum"))
        case "number":
            low = schema.get("minimum", schema.get("exclusiveMinimum"))
            return st.floats(
                low,
                schema.get("maximum"),
                exclude_min="exclusiveMinimum" in schema,
                allow_nan=False,
                allow_infinity=False,
            )
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
        case None:
            return JSON_VALUES
        case other:
            raise AssertionError(f"no strategy for type {other}")


def objects(schema: Schema, root: Schema) -> Strategy:
    if "properties" not in schema:
        return st.dictionaries(st.text(max_size=10), JSON_VALUES, max_size=3)
    fields = {name: values(field, root) for name, field in schema["properties"].items()}
    required = set(schema.get("required", []))
    return st.fixed_dictionaries(
        {name: fields[name] for name in fields if name in required},
        optional={name: fields[name] for name in fields if name not in required},
    )


def texts(schema: Schema) -> Strategy:
    if schema.get("format") in FORMATS:
        return FORMATS[schema["format"]]
    if "pattern" in schema:
        return st.from_regex(schema["pattern"].removesuffix("$") + r"\Z")
    return st.text(min_size=schema.get("minLength", 0), max_size=min(schema.get("maxLength", 30), 30))


def read(topic: Topic, value: bytes) -> Any:
    return decode_event(topic, value, {}, max_bytes=MAX_RECORD_BYTES)


@pytest.mark.parametrize("name", sorted(SCHEMAS))
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_what_a_published_schema_allows_survives_the_log(name: str, data: st.DataObject) -> None:
    schema = SCHEMAS[name]
    topic = TOPICS[schema["x-topic"]]
    written = data.draw(values(schema, schema), label="written") | {"type": name}
    event = read(topic, json.dumps(written).encode())
    again = encode_event(event)
    assert read(topic, again) == event
    Draft202012Validator(schema).validate(json.loads(again))
    assert encode_event(read(topic, again)) == again


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_an_example_survives_the_log_with_its_headers(name: str) -> None:
    topic = TOPICS[SCHEMAS[name]["x-topic"]]
    event = next(one for one in topic.examples if one.model_dump()["type"] == name)
    headers = header_map(encode_headers(event_type=name, event_id="1", source="test", at=AT))
    assert decode_event(topic, encode_event(event), headers) == event
