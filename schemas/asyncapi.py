"""The AsyncAPI 3.0 document of the log: every topic with its key, retention, writers and messages. Pure.

Seen from Turnlog: it receives what is on incoming topics and sends what is on the others.
Source: AsyncAPI 3.0.0 specification; Kafka bindings 0.5.0.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel

from schemas.envelope import encode_headers, header_map
from schemas.json_schema import events_of, example_of, type_of
from schemas.topics import MAX_EVENT_BYTES, TOOL_CALLS, Topic

Document = dict[str, Any]

KAFKA_BINDING = "0.5.0"
_KEYS = {
    "thread": "`thread_id`; on `turns` the key of the state",
    "name": "`name@version`; `tenant_id/name@version` where the definition is one tenant's",
    "tenant": "`tenant_id`",
    "source": "`source`: the consumer that gave the record up",
}
_DESCRIPTION = (
    f"The events of Turnlog on Apache Kafka. A value is one event, UTF-8 JSON, of at most {MAX_EVENT_BYTES} bytes "
    "where it comes from outside. Headers are the CloudEvents Kafka binding in binary mode and may be left out: the "
    "type is then the body's `type`, else the default type of the topic. Read with `isolation.level=read_committed`."
)


def asyncapi_document(topics: Sequence[Topic], *, version: str) -> Document:
    """The document for `topics`; payloads are references to the files `json/<type>.json` beside it."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Turnlog",
            "version": version,
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": _channels(topics),
        "operations": {_operation_name(topic): _operation(topic) for topic in topics},
        "components": {
            "messages": {
                name: _message(topic, example) for topic in topics for name, example in events_of(topic).items()
            },
            "schemas": {"CloudEventsHeaders": _headers_schema()},
        },
    }


def _channels(topics: Sequence[Topic]) -> Document:
    channels: Document = {}
    for topic in topics:
        channels[topic.name] = _channel(topic, topic.name, {})
        if topic is TOOL_CALLS:
            queue = {"queue": {"description": "The queue that a tool names in its definition."}}
            channels[f"{topic.name}-queue"] = _channel(topic, f"{topic.name}.{{queue}}", queue)
    return channels


def _channel(topic: Topic, address: str, parameters: Mapping[str, Document]) -> Document:
    config = topic.config()
    binding: Document = {"cleanup.policy": [config["cleanup.policy"]]}
    if "retention.ms" in config:
        binding["retention.ms"] = int(config["retention.ms"])
    binding["max.message.bytes"] = int(config["max.message.bytes"])
    return {
        "address": f"{{prefix}}{address}",
        "description": f"Written by: {topic.writers}. Kept: {kept(topic)}. Default type: `{topic.default_type}`.",
        "parameters": {"prefix": {"description": "`TURNLOG_TOPIC_PREFIX`.", "default": ""}, **parameters},
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in events_of(topic)},
        "bindings": {"kafka": {"topicConfiguration": binding, "bindingVersion": KAFKA_BINDING}},
        "x-key": topic.keyed_by,
        "x-default-type": topic.default_type,
        "x-writers": topic.writers,
    }


def kept(topic: Topic) -> str:
    """How long the records of a topic are kept, in words."""
    if topic.compacted:
        return "the last record of each key"
    if topic.retention_ms is None:
        return "forever"
    hours = topic.retention_ms // 3_600_000
    count, unit = (hours // 24, "day") if hours >= 24 else (hours, "hour")
    return f"{count} {unit}{'' if count == 1 else 's'}"


def _operation_name(topic: Topic) -> str:
    return f"{'receive' if topic.incoming else 'send'}-{topic.name}"


def _operation(topic: Topic) -> Document:
    return {
        "action": "receive" if topic.incoming else "send",
        "channel": {"$ref": f"#/channels/{topic.name}"},
        "summary": f"Written by: {topic.writers}.",
        "messages": [{"$ref": f"#/channels/{topic.name}/messages/{name}"} for name in events_of(topic)],
    }


def _message(topic: Topic, example: BaseModel) -> Document:
    name = type_of(example)
    document = type(example).__doc__
    message: Document = {"name": name, "title": type(example).__name__}
    if document:
        message["summary"] = document.partition("\n")[0]
    return message | {
        "contentType": "application/json",
        "headers": {"$ref": "#/components/schemas/CloudEventsHeaders"},
        "payload": {
            "schemaFormat": "application/schema+json;version=2020-12",
            "schema": {"$ref": f"./json/{name}.json"},
        },
        "bindings": {
            "kafka": {
                "key": {"type": "string", "description": _KEYS[topic.keyed_by]},
                "bindingVersion": KAFKA_BINDING,
            }
        },
        "examples": [{"name": name, "headers": _headers_example(name), "payload": example_of(topic, example)}],
    }


def _headers_example(event_type: str) -> Document:
    headers = encode_headers(
        event_type=event_type,
        event_id="01990000-0000-7000-8000-000000000000",
        source="example",
        at=datetime(2026, 1, 1, 12, tzinfo=UTC),
    )
    return dict(header_map(headers))


def _headers_schema() -> Document:
    text = {"type": "string"}
    return {
        "type": "object",
        "description": "CloudEvents 1.0, Kafka binding, binary mode. A record without headers is valid too.",
        "properties": {
            "ce_specversion": text | {"const": "1.0"},
            "ce_id": text | {"description": "The same id is the same record, written again."},
            "ce_type": text | {"description": "The type of the event; a body that says another one is refused."},
            "ce_source": text | {"description": "Who wrote the record."},
            "ce_time": text | {"format": "date-time", "description": "When it was written, UTC."},
            "content-type": text | {"const": "application/json"},
            "traceparent": text | {"description": "W3C trace context."},
        },
    }
