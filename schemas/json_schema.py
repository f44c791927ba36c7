"""The JSON Schema of an event, as another language reads it. Pure.

Of an incoming topic a schema says what is accepted; of any other topic what a reader will find, so that there every
field that is always written is required and none is null (`encode_event` leaves null fields out).
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, cast

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from schemas.envelope import encode_event
from schemas.topics import Topic

JsonSchema = dict[str, Any]
"""A JSON Schema document or a part of one."""

DIALECT = "https://json-schema.org/draft/2020-12/schema"
MONEY_PATTERN = r"^[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?$"
"""How a decimal is written. A number would be a float in most languages, so only text is in the contract."""


class ContractError(Exception):
    """The contract contradicts itself; the message names the event and what is wrong with it."""


class _Accepted(GenerateJsonSchema):
    """What a reader takes."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Never: the title of a field is its name in other letters."""
        return False

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> JsonSchema:
        """Text, never a number."""
        return {"type": "string", "format": "decimal", "pattern": MONEY_PATTERN}

    def encode_default(self, dft: Any) -> Any:
        """A default as it would be written, without fields that are null."""
        if isinstance(dft, BaseModel):
            return dft.model_dump(mode="json", exclude_none=True)
        return super().encode_default(dft)


class _Written(_Accepted):
    """What a writer of ours writes."""

    def field_is_required(
        self,
        field: core_schema.ModelField | core_schema.DataclassField | core_schema.TypedDictField,
        total: bool,
    ) -> bool:
        """A field that may be null is left out when it is; every other one is always there."""
        schema = field["schema"]
        if schema["type"] == "default":
            return schema.get("default", ...) is not None
        return schema["type"] != "nullable"


def events_of(topic: Topic) -> Mapping[str, BaseModel]:
    """The types of a topic, in the order of its examples, each with its example.

    Raises:
        ContractError: a type has no example, or two.
    """
    examples: dict[str, BaseModel] = {}
    for example in topic.examples:
        name = type_of(example)
        if name in examples:
            raise ContractError(f"{topic.name}: expected one example of {name}, got two")
        examples[name] = example
    if missing := sorted(set(_declared_types(topic)) - set(examples)):
        raise ContractError(f"{topic.name}: no example of {', '.join(missing)}")
    return examples


def type_of(event: BaseModel) -> str:
    """The type that an event carries."""
    return str(event.model_dump(include={"type"})["type"])


def example_of(topic: Topic, event: BaseModel) -> dict[str, Any]:
    """The example as a writer would write it: on an incoming topic without what may be left out."""
    written = cast("dict[str, Any]", json.loads(encode_event(event)))
    if not topic.incoming:
        return written
    return {name: value for name, value in written.items() if name == "type" or name in event.model_fields_set}


def event_schema(topic: Topic, event: BaseModel) -> JsonSchema:
    """The published JSON Schema (2020-12) of the type of `event`, with it as the one example."""
    generator = _Accepted if topic.incoming else _Written
    schema = type(event).model_json_schema(schema_generator=generator)
    schema = cast("JsonSchema", _tidy(schema, incoming=topic.incoming))
    definitions = cast("dict[str, JsonSchema]", schema.pop("$defs", {}))
    definitions.pop("JsonValue", None)
    _require_tags(schema, definitions)
    document: JsonSchema = {
        "$schema": DIALECT,
        "$id": f"urn:turnlog:schema:{type_of(event)}",
        "title": schema.pop("title"),
    }
    if "description" in schema:
        document["description"] = schema.pop("description")
    direction = "incoming" if topic.incoming else "outgoing"
    document |= {"x-topic": topic.name, "x-direction": direction, "type": schema.pop("type"), **schema}
    if definitions:
        document["$defs"] = definitions
    return document | {"examples": [example_of(topic, event)]}


def _declared_types(topic: Topic) -> list[str]:
    schema = topic.event.json_schema()
    if "discriminator" in schema:
        return list(schema["discriminator"]["mapping"])
    return [schema["properties"]["type"]["const"]]


def _tidy(node: Any, *, incoming: bool) -> Any:
    if isinstance(node, list):
        return [_tidy(item, incoming=incoming) for item in cast("list[Any]", node)]
    if not isinstance(node, dict):
        return node
    schema = {key: _tidy(value, incoming=incoming) for key, value in cast("JsonSchema", node).items()}
    if schema.get("$ref") == "#/$defs/JsonValue":
        del schema["$ref"]
    if schema.get("additionalProperties") == {}:
        schema["additionalProperties"] = True
    if schema.get("default", ...) is None:
        del schema["default"]
    if schema.pop("x-growing", False) and not incoming:
        schema["x-extensible-enum"] = schema.pop("enum")
    if not incoming and isinstance(schema.get("properties"), dict):
        schema["properties"] = {name: _never_null(field) for name, field in schema["properties"].items()}
    return schema


def _never_null(field: JsonSchema) -> JsonSchema:
    alternatives = [choice for choice in field.get("anyOf", []) if choice != {"type": "null"}]
    if len(alternatives) == 1:
        return {**alternatives[0], **{key: value for key, value in field.items() if key != "anyOf"}}
    return field | {"anyOf": alternatives} if alternatives else field


def _require_tags(schema: JsonSchema, definitions: Mapping[str, JsonSchema]) -> None:
    """What tells the alternatives of a union apart must be there, though reading one alone could do without."""
    for node in _nodes([schema, *definitions.values()]):
        discriminator = node.get("discriminator")
        if not isinstance(discriminator, dict) or "mapping" not in discriminator:
            continue
        for reference in cast("dict[str, str]", discriminator["mapping"]).values():
            alternative = definitions[reference.removeprefix("#/$defs/")]
            required = cast("list[str]", alternative.setdefault("required", []))
            if discriminator["propertyName"] not in required:
                required.insert(0, cast("str", discriminator["propertyName"]))


def _nodes(node: Any) -> Iterator[JsonSchema]:
    if isinstance(node, dict):
        yield cast("JsonSchema", node)
    values: list[Any] = list(cast("JsonSchema", node).values()) if isinstance(node, dict) else node
    for value in values if isinstance(node, dict | list) else []:
        yield from _nodes(value)
