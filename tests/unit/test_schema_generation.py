"""The generated files say what the contract says, and a contract that contradicts itself is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from jsonschema import Draft202012Validator
from pydantic import Field, TypeAdapter

from schemas import generate
from schemas.base import GROWING, JsonObject, Model, Money, ThreadEvent, Timestamp
from schemas.json_schema import ContractError, event_schema, events_of
from schemas.prompts import PromptSubmitted, TurnCancel
from schemas.topics import ALL, PROMPTS, Topic

FILES = generate.render()
SCHEMAS = generate.json_schemas()
DOCUMENT = yaml.safe_load(FILES[generate.ASYNCAPI_FILE])


class Detail(Model):
    label: str | None = None
    count: int = 1


class ThingMade(ThreadEvent):
    """A thing was made."""

    type: Literal["thing.made"] = "thing.made"
    note: str | None = None
    """What was noted."""
    color: Annotated[Literal["green", "red"], GROWING] = "green"
    price: Money
    detail: Detail = Detail()
    extra: JsonObject = {}
    made_at: Timestamp


EXAMPLE = ThingMade.model_validate({"thread_id": "t-1", "price": "1.50", "made_at": "2026-01-01T12:00:00Z"})


def topic_of(*examples: Any, incoming: bool = False, event: Any = ThingMade) -> Topic:
    return Topic(
        name="things",
        default_type="thing.made",
        event=TypeAdapter(event),
        examples=examples,
        writers="a test",
        incoming=incoming,
    )


def test_the_committed_files_are_up_to_date() -> None:
    assert generate.stale(FILES) == []


def test_generation_gives_the_same_bytes_twice() -> None:
    assert generate.render() == FILES


def test_there_is_one_schema_a_type() -> None:
    types = [name for topic in ALL for name in events_of(topic)]
    assert sorted(types) == sorted(SCHEMAS)
    assert all(schema["$id"] == f"urn:turnlog:schema:{name}" for name, schema in SCHEMAS.items())


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_a_published_schema_takes_its_example_and_refuses_another_type(name: str) -> None:
    schema = SCHEMAS[name]
    validator = Draft202012Validator(schema)
    (example,) = schema["examples"]
    assert validator.is_valid(example)
    assert not validator.is_valid({**example, "type": "something.else"})
    assert not validator.is_valid([example])
    for field in schema["required"]:
        assert not validator.is_valid({key: value for key, value in example.items() if key != field}), field


def test_the_smallest_prompt_is_the_published_example() -> None:
    (example,) = SCHEMAS["prompt.submitted"]["examples"]
    assert example == {"type": "prompt.submitted", "thread_id": "t-1", "agent": "assistant", "content": "hello"}


def test_what_others_write_is_published_as_it_is_accepted() -> None:
    schema = event_schema(topic_of(EXAMPLE, incoming=True), EXAMPLE)
    assert schema["x-direction"] == "incoming"
    assert schema["required"] == ["thread_id", "price", "made_at"]
    assert schema["properties"]["note"]["anyOf"] == [{"type": "string"}, {"type": "null"}]
    assert schema["properties"]["color"]["enum"] == ["green", "red"]


def test_what_turnlog_writes_is_published_as_it_is_found() -> None:
    schema = event_schema(topic_of(EXAMPLE), EXAMPLE)
    properties = schema["properties"]
    assert set(schema["required"]) == set(properties) - {"note"}
    assert properties["note"] == {"type": "string", "description": "What was noted."}
    assert properties["color"] == {"type": "string", "default": "green", "x-extensible-enum": ["green", "red"]}
    assert properties["made_at"] == {"type": "string", "format": "date-time"}
    assert properties["extra"] == {"type": "object", "additionalProperties": True, "default": {}}
    assert properties["detail"]["default"] == {"count": 1}
    assert schema["$defs"]["Detail"]["required"] == ["count"]


@pytest.mark.parametrize("incoming", [True, False])
def test_money_is_published_as_text_alone(incoming: bool) -> None:
    price = event_schema(topic_of(EXAMPLE, incoming=incoming), EXAMPLE)["properties"]["price"]
    assert price["type"] == "string"
    validator = Draft202012Validator(price)
    assert all(validator.is_valid(text) for text in ("0", "1.50", "-3", "0.000001", "1E-7"))
    assert not any(validator.is_valid(other) for other in (1.5, 1, "", "1.", "one", "NaN", "1,5"))


def test_an_untagged_part_is_refused() -> None:
    validator = Draft202012Validator(SCHEMAS["prompt.submitted"])
    prompt = {"thread_id": "t-1", "agent": "assistant"}
    assert validator.is_valid({**prompt, "content": [{"type": "text", "text": "hello"}]})
    assert not validator.is_valid({**prompt, "content": [{"text": "hello"}]})


def test_a_type_without_an_example_is_refused() -> None:
    topic = dataclasses.replace(PROMPTS, examples=PROMPTS.examples[1:])
    with pytest.raises(ContractError, match=r"prompts: no example of prompt\.submitted"):
        generate.render([topic])


def test_a_second_example_of_a_type_is_refused() -> None:
    with pytest.raises(ContractError, match=r"expected one example of thing\.made, got two"):
        generate.render([topic_of(EXAMPLE, EXAMPLE)])


def test_a_type_on_two_topics_is_refused() -> None:
    twin = dataclasses.replace(topic_of(EXAMPLE), name="twins")
    with pytest.raises(ContractError, match=r"thing\.made is on two topics: things and twins"):
        generate.render([topic_of(EXAMPLE), twin])


def test_an_example_that_its_schema_refuses_is_refused() -> None:
    schema = event_schema(topic_of(EXAMPLE), EXAMPLE)
    schema["properties"]["thread_id"]["pattern"] = "^x$"
    with pytest.raises(ContractError, match="the schema refuses its example: 't-1' does not match"):
        generate.check_example(topic_of(EXAMPLE), EXAMPLE, schema)


def test_an_example_that_a_consumer_refuses_is_refused() -> None:
    broken = EXAMPLE.model_copy(update={"thread_id": "no good"})
    schema = event_schema(topic_of(broken), broken)
    del schema["properties"]["thread_id"]["pattern"]
    with pytest.raises(ContractError, match="a consumer refuses the example"):
        generate.check_example(topic_of(broken), broken, schema)


def test_an_example_that_is_read_as_another_event_is_refused() -> None:
    schema = event_schema(topic_of(EXAMPLE), EXAMPLE)
    other = EXAMPLE.model_copy(update={"note": "another"})
    with pytest.raises(ContractError, match="read as another event"):
        generate.check_example(topic_of(EXAMPLE), other, schema)


def test_check_fails_on_each_sort_of_stale_file_and_writing_mends_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate.main([], tmp_path) == 0
    assert generate.main(["--check"], tmp_path) == 0
    (tmp_path / "json" / "turn.failed.json").unlink()
    (tmp_path / "json" / "old.type.json").write_text("{}")
    (tmp_path / "asyncapi.yaml").write_text("asyncapi: 3.0.0\n")
    capsys.readouterr()
    assert generate.main(["--check"], tmp_path) == 1
    said = capsys.readouterr().err
    for path in ("json/turn.failed.json", "json/old.type.json", "asyncapi.yaml"):
        assert f"stale: schemas/{path}" in said
    assert not (tmp_path / "json" / "turn.failed.json").exists()
    assert generate.main([], tmp_path) == 0
    assert generate.main(["--check"], tmp_path) == 0
    assert sorted(path.name for path in (tmp_path / "json").iterdir()) == sorted(f"{name}.json" for name in SCHEMAS)


def test_the_asyncapi_document_has_a_channel_a_topic_and_one_for_tool_queues() -> None:
    channels = DOCUMENT["channels"]
    assert set(channels) == {topic.name for topic in ALL} | {"tool-calls-queue"}
    assert channels["tool-calls-queue"]["address"] == "{prefix}tool-calls.{queue}"
    for topic in ALL:
        channel = channels[topic.name]
        assert channel["address"] == f"{{prefix}}{topic.name}"
        assert (channel["x-key"], channel["x-default-type"]) == (topic.keyed_by, topic.default_type)
        assert topic.default_type in channel["messages"]
        config = channel["bindings"]["kafka"]["topicConfiguration"]
        assert {key: str(value) for key, value in config.items() if key != "cleanup.policy"} == {
            key: value for key, value in topic.config().items() if key in ("retention.ms", "max.message.bytes")
        }
        assert config["cleanup.policy"] == ["compact" if topic.compacted else "delete"]


def test_every_reference_of_the_asyncapi_document_leads_somewhere() -> None:
    references = list(references_in(DOCUMENT))
    assert references
    for reference in references:
        if reference.startswith("./"):
            assert reference.removeprefix("./") in FILES
            continue
        node = DOCUMENT
        for step in reference.removeprefix("#/").split("/"):
            node = node[step]


def references_in(node: Any) -> Any:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references_in(value)
    elif isinstance(node, list):
        for value in node:
            yield from references_in(value)


def test_asyncapi_examples_are_the_published_ones_with_headers_that_the_schema_takes() -> None:
    headers = Draft202012Validator(DOCUMENT["components"]["schemas"]["CloudEventsHeaders"])
    for name, message in DOCUMENT["components"]["messages"].items():
        (example,) = message["examples"]
        assert example["payload"] == SCHEMAS[name]["examples"][0]
        assert example["headers"]["ce_type"] == name
        headers.validate(example["headers"])


def test_incoming_topics_are_received_and_the_others_sent() -> None:
    actions = {operation["channel"]["$ref"]: operation["action"] for operation in DOCUMENT["operations"].values()}
    assert actions == {f"#/channels/{topic.name}": "receive" if topic.incoming else "send" for topic in ALL}


def test_a_union_of_one_type_and_of_many_are_both_enumerated() -> None:
    union = Annotated[PromptSubmitted | TurnCancel, Field(discriminator="type")]
    prompt, cancel = PROMPTS.examples[:2]
    assert list(events_of(topic_of(prompt, cancel, event=union))) == ["prompt.submitted", "turn.cancel"]
    assert json.loads(FILES["json/turn.cancel.json"])["x-topic"] == "prompts"
