"""How an event lies in a record: our headers against the CloudEvents library, and what is refused and why."""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from cloudevents.core.bindings.kafka import KafkaMessage, from_binary_event, to_binary_event
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from schemas.envelope import (
    RecordRejectedError,
    decode_event,
    encode_event,
    encode_headers,
    header_map,
)
from schemas.prompts import PromptSubmitted, TurnCancel
from schemas.tool_calls import ToolReturned
from schemas.topics import (
    AGENTS,
    ALL,
    COMPLETIONS,
    MAX_EVENT_BYTES,
    MESSAGES,
    PRICES,
    PROMPTS,
    TOOL_RESULTS,
    TURNS,
    USAGE,
    Topic,
)

AT = datetime(2026, 1, 1, 12, 0, 0, 250_000, tzinfo=UTC)
IDENTITY = {"event_type": "prompt.submitted", "event_id": "01990000-0000-7000-8000-000000000009", "source": "gateway"}
PROMPT = PromptSubmitted(thread_id="t-1", agent="assistant", content="hello")
BODY = {"thread_id": "t-1", "agent": "assistant", "content": "hello"}


def refusal(
    value: bytes | None, headers: Mapping[str, str] | None = None, topic: Any = PROMPTS, **limits: int
) -> RecordRejectedError:
    with pytest.raises(RecordRejectedError) as caught:
        decode_event(topic, value, headers or {}, **limits)
    return caught.value


def dump(body: object) -> bytes:
    return json.dumps(body).encode()


def test_the_cloudevents_library_reads_our_headers() -> None:
    headers = encode_headers(**IDENTITY, at=AT)
    event = from_binary_event(KafkaMessage(headers=dict(headers), key="t-1", value=encode_event(PROMPT)))
    assert event.get_specversion() == "1.0"
    assert event.get_type() == "prompt.submitted"
    assert event.get_id() == IDENTITY["event_id"]
    assert event.get_source() == "gateway"
    assert event.get_time() == AT
    assert event.get_datacontenttype() == "application/json"
    assert event.get_data() == json.loads(encode_event(PROMPT))


def test_our_headers_are_those_of_the_cloudevents_library() -> None:
    event = CloudEvent(
        attributes={
            "specversion": "1.0",
            "id": IDENTITY["event_id"],
            "type": "prompt.submitted",
            "source": "gateway",
            "time": AT,
            "datacontenttype": "application/json",
        },
        data=json.loads(encode_event(PROMPT)),
    )
    theirs = to_binary_event(event)
    ours = dict(encode_headers(**IDENTITY, at=AT))
    assert ours == theirs.headers
    assert json.loads(theirs.value) == json.loads(encode_event(PROMPT))


def test_we_read_what_the_cloudevents_library_writes() -> None:
    event = CloudEvent(attributes={"type": "turn.cancel", "source": "ui"}, data={"thread_id": "t-1"})
    message = to_binary_event(event)
    assert decode_event(PROMPTS, message.value, header_map(message.headers.items())) == TurnCancel(thread_id="t-1")


def test_the_time_in_the_headers_is_utc_with_microseconds() -> None:
    paris = AT.astimezone(timezone(timedelta(hours=2))).replace(microsecond=0)
    assert dict(encode_headers(**IDENTITY, at=paris))["ce_time"] == b"2026-01-01T12:00:00.000000Z"


def test_a_known_trace_goes_along() -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert dict(encode_headers(**IDENTITY, at=AT, traceparent=trace))["traceparent"] == trace.encode()
    assert "traceparent" not in dict(encode_headers(**IDENTITY, at=AT))


def test_headers_are_read_as_text_whatever_bytes_they_hold() -> None:
    raw = [("a", b"1"), ("a", b"2"), ("none", None), ("bad", b"\xff")]
    assert header_map(raw) == {"a": "2", "bad": "\N{REPLACEMENT CHARACTER}"}
    assert header_map(None) == {}


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, BODY),
        ({}, {**BODY, "type": "prompt.submitted"}),
        ({"ce_type": "prompt.submitted"}, BODY),
        ({"ce_type": "prompt.submitted"}, {**BODY, "type": "prompt.submitted"}),
        ({}, {**BODY, "from_the_future": {"a": 1}}),
    ],
    ids=["neither", "in the body", "in the header", "in both", "with an unknown field"],
)
def test_a_prompt_is_read_wherever_its_type_stands(headers: Mapping[str, str], body: dict[str, Any]) -> None:
    assert decode_event(PROMPTS, dump(body), headers) == PROMPT


def test_the_header_alone_may_name_another_type() -> None:
    assert decode_event(PROMPTS, dump({"thread_id": "t-1"}), {"ce_type": "turn.cancel"}) == TurnCancel(thread_id="t-1")


@pytest.mark.parametrize("topic", ALL, ids=lambda topic: topic.name)
def test_a_record_without_a_type_is_of_the_default_type(topic: Any) -> None:
    example = next(one for one in topic.examples if one.type == topic.default_type)
    body = json.loads(encode_event(example))
    del body["type"]
    assert decode_event(topic, dump(body), {}) == example


def test_null_fields_are_not_written_but_null_results_are_read() -> None:
    event = ToolReturned(thread_id="t-1", call_id="c-1", result=None)
    assert b"null" not in encode_event(event)
    assert decode_event(TOOL_RESULTS, encode_event(event), {}) == event


def test_nulls_inside_a_result_are_kept() -> None:
    event = ToolReturned(thread_id="t-1", call_id="c-1", result={"a": None, "b": [None]})
    assert decode_event(TOOL_RESULTS, encode_event(event), {}) == event


@pytest.mark.parametrize("value", [b"", b"hello", b"{", b'{"a": 1} more', b"\xff\xfe", b'{"a": "\xff"}'])
def test_what_is_not_json_is_refused(value: bytes) -> None:
    assert refusal(value).reason == "not_json"


@pytest.mark.parametrize("value", [b"[]", b"1", b'"text"', b"null", b"true"])
def test_json_that_is_no_object_is_refused(value: bytes) -> None:
    error = refusal(value)
    assert error.reason == "not_an_event"
    assert "expected a JSON object" in error.message


def test_a_tombstone_is_no_event() -> None:
    assert refusal(None, topic=TURNS).reason == "not_an_event"


def test_a_value_over_the_limit_is_refused_before_it_is_parsed() -> None:
    assert refusal(b"x" * (MAX_EVENT_BYTES + 1)).reason == "too_large"
    assert refusal(dump(BODY), max_bytes=10).message == f"expected at most 10 bytes, got {len(dump(BODY))}"
    assert decode_event(PROMPTS, dump(BODY), {}, max_bytes=len(dump(BODY))) == PROMPT


@pytest.mark.parametrize("topic", ALL, ids=lambda topic: topic.name)
def test_an_unknown_type_is_refused_on_every_topic(topic: Any) -> None:
    body = json.loads(encode_event(topic.examples[0]))
    assert refusal(dump({**body, "type": "no.such.type"}), topic=topic).reason == "unknown_type"
    del body["type"]
    assert refusal(dump(body), {"ce_type": "no.such.type"}, topic=topic).reason == "unknown_type"


def test_a_type_of_another_topic_is_unknown() -> None:
    assert refusal(encode_event(COMPLETIONS.examples[0])).reason == "unknown_type"


def test_a_header_that_contradicts_the_body_is_refused() -> None:
    error = refusal(dump({**BODY, "type": "prompt.submitted"}), {"ce_type": "turn.cancel"})
    assert error.reason == "not_an_event"
    assert "'turn.cancel'" in error.message
    assert "'prompt.submitted'" in error.message


@pytest.mark.parametrize("written", [1, True, ["prompt.submitted"], {"a": 1}])
def test_a_type_that_is_no_text_is_refused(written: object) -> None:
    assert refusal(dump({**BODY, "type": written})).reason in ("unknown_type", "not_an_event")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"thread_id": None}, "thread_id"),
        ({"thread_id": "two words"}, "thread_id"),
        ({"thread_id": "x" * 201}, "thread_id"),
        ({"agent": ""}, "agent"),
        ({"agent": "../etc"}, "agent"),
        ({"content": 1}, "content"),
        ({"content": [{"type": "hologram"}]}, "content"),
        ({"tenant_id": "a b"}, "tenant_id"),
        ({"options": {"limits": {"max_steps": 0}}}, "options"),
    ],
)
def test_a_field_that_is_not_valid_is_named(change: dict[str, Any], field: str) -> None:
    error = refusal(dump({**BODY, **change}))
    assert error.reason == "not_an_event"
    assert field in error.message


def test_an_unknown_word_inside_an_event_is_not_an_unknown_type() -> None:
    assert refusal(dump({"name": "a", "kind": "robot"}), topic=AGENTS).reason == "not_an_event"
    part = dump({**BODY, "content": [{"type": "hologram"}]})
    assert refusal(part).reason == "not_an_event"


def test_the_refusal_tells_few_problems_of_many() -> None:
    many = {"messages": [{} for _ in range(500)], "thread_id": "t-1", "type": "messages.append"}
    assert len(refusal(dump(many)).message) < 1000


CASES = [(topic, example) for topic in ALL for example in topic.examples]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["1", "1.0", "0.1", "true", "2026-01-01T00:00:00Z", "2026-01-01", 1e300, 0.30000000000000004]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@settings(deadline=None, max_examples=2000)
@given(st.data())
def test_an_event_is_the_same_whichever_way_it_is_read(data: st.DataObject) -> None:
    """What is well is read in one go, everything else in two: neither may take what the other refuses."""
    topic, example = data.draw(st.sampled_from(CASES))
    body = json.loads(encode_event(example))
    for name in data.draw(st.lists(st.sampled_from([*body, "type", "new"]), max_size=3)):
        body[name] = data.draw(VALUES)
    for name in data.draw(st.lists(st.sampled_from([*body]), max_size=1)):
        del body[name]
    text = json.dumps(body)
    if body and data.draw(st.booleans()):
        name = data.draw(st.sampled_from([*body]))
        text = f"{text[:-1]}, {json.dumps(name)}: {json.dumps(data.draw(VALUES))}}}"
    said = data.draw(st.sampled_from([None, "", topic.default_type, example.type, "turn.cancel", "nothing"]))
    headers = {} if said is None else {"ce_type": said}
    assert read(decode_event, topic, text.encode(), headers) == read(in_two_steps, topic, text.encode(), headers)


def test_an_amount_that_is_a_number_keeps_its_digits() -> None:
    (example,) = PRICES.examples
    body = json.loads(encode_event(example)) | {"markup": 0.0}
    assert str(decode_event(PRICES, dump(body), {}).markup) == "0.0"


def read(decode: Callable[..., BaseModel], topic: Topic, value: bytes, headers: Mapping[str, str]) -> Any:
    """What became of a record; as text, since not every number equals itself."""
    try:
        event = decode(topic, value, headers)
    except RecordRejectedError:
        return "refused"
    return repr(event), event.model_fields_set | {"type"}


def in_two_steps(topic: Topic, value: bytes, headers: Mapping[str, str]) -> BaseModel:
    """The rule, with nothing saved."""
    body = from_json(value)
    said, written = headers.get("ce_type"), body.get("type")
    if said and written and said != written:
        raise RecordRejectedError("not_an_event", "contradicts")
    body["type"] = said or written or topic.default_type
    try:
        return topic.event.validate_python(body)
    except ValidationError as error:
        raise RecordRejectedError("not_an_event", str(error)) from error


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00"])
@pytest.mark.parametrize(("topic", "field"), [(MESSAGES, "created_at"), (USAGE, "occurred_at")])
def test_a_time_that_utc_does_not_have_is_refused(topic: Any, field: str, time: str) -> None:
    error = refusal(dump({**json.loads(encode_event(topic.examples[0])), field: time}), topic=topic)
    assert error.reason == "not_an_event"
    assert f"{field}: " in error.message
    assert "years 1 to 9999" in error.message


@pytest.mark.parametrize("said", ["no", "false", 1, 0])
def test_whether_somebody_pays_is_no_matter_of_interpretation(said: Any) -> None:
    error = refusal(dump({**json.loads(encode_event(USAGE.examples[0])), "billable": said}), topic=USAGE)
    assert "billable" in error.message
