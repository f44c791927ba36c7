"""What a model is sent of a thread's messages: every part as the API takes it, or in words."""

from datetime import UTC, datetime
from typing import Any

import pytest

from schemas.journal import MessageAdded
from schemas.parts import (
    FilePart,
    ImagePart,
    Part,
    ReasoningPart,
    SourcePart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)
from schemas.tokens import IMAGE_TOKENS
from services.agents.chat import EMPTY, chat_messages, sent_tokens

IMAGE = ImagePart(url="https://example.com/cat.png", detail="low")
CALL = ToolCallPart(call_id="c-1", name="look_up", arguments="{}")
RESULT = ToolResultPart(call_id="c-1", name="look_up", result={"found": True})


def said(role: str, *parts: Part) -> MessageAdded:
    fields: dict[str, Any] = {"role": role, "parts": [*parts]}
    return MessageAdded(thread_id="t-1", message_id="m-1", created_at=datetime(2026, 1, 1, tzinfo=UTC), **fields)


def content_of(role: str, *parts: Part) -> Any:
    [message] = chat_messages("", [said(role, *parts)])
    assert message["role"] == role
    return message["content"]


IN_WORDS: list[tuple[Part, str]] = [
    (TextPart(text="hello"), "hello"),
    (FilePart(file_id="f-1", media_type="application/pdf", name="report.pdf"), "[file: report.pdf, application/pdf]"),
    (FilePart(file_id="f-1"), "[file: f-1, application/octet-stream]"),
    (SourcePart(title="A page", url="https://example.com"), "[source: A page, https://example.com]"),
    (SourcePart(url="https://example.com"), "[source: https://example.com]"),
    (SourcePart(), "[source: unnamed]"),
    (ReasoningPart(text="hm"), "[reasoning: hm]"),
    (CALL, "[tool call: look_up {}]"),
    (RESULT, '[tool result: look_up {"found": true}]'),
]


@pytest.mark.parametrize("role", ["user", "system"])
@pytest.mark.parametrize(("part", "words"), IN_WORDS)
def test_what_a_person_or_the_system_says_is_sent_in_words(role: str, part: Part, words: str) -> None:
    assert content_of(role, part) == words
    assert content_of(role, TextPart(text="See:"), part) == f"See:\n{words}"


def test_an_image_of_a_user_is_sent_as_one_and_what_is_beside_it_in_words() -> None:
    source = SourcePart(title="A page")
    assert content_of("user", TextPart(text="What is it?"), IMAGE, source) == [
        {"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": {"url": IMAGE.url, "detail": "low"}},
        {"type": "text", "text": "[source: A page]"},
    ]


@pytest.mark.parametrize("role", ["system", "assistant"])
def test_an_image_where_the_api_takes_none_is_named(role: str) -> None:
    assert content_of(role, IMAGE) == "[image: https://example.com/cat.png]"
    inside = ImagePart(url="data:image/png;base64,AAAA")
    assert content_of(role, TextPart(text="Here:"), inside) == "Here:\n[image: inside the message, image/png]"


def test_an_answer_with_an_image_a_file_and_its_sources_is_sent_whole_but_for_its_reasoning() -> None:
    parts = [ReasoningPart(text="hm"), TextPart(text="Here."), FilePart(file_id="f-1", name="a.txt"), SourcePart()]
    assert content_of("assistant", *parts) == "Here.\n[file: a.txt, application/octet-stream]\n[source: unnamed]"
    assert chat_messages("", [said("assistant", ReasoningPart(text="hm"))]) == []


@pytest.mark.parametrize("parts", [[], [TextPart(text="")]])
def test_a_message_of_nothing_says_so(parts: list[Part]) -> None:
    assert content_of("user", *parts) == EMPTY
    assert content_of("system", *parts) == EMPTY


def test_calls_are_sent_with_their_answers_alone() -> None:
    call = {"id": "c-1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
    assert chat_messages("Be brief.", [said("assistant", CALL), said("tool", RESULT)]) == [
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c-1", "content": '{"found": true}'},
    ]
    assert chat_messages("", [said("assistant", CALL)]) == []
    assert chat_messages("", [said("tool", RESULT)]) == []
    [asks, _] = chat_messages("", [said("assistant", CALL, CALL), said("tool", RESULT)])
    assert asks["tool_calls"] == [call]


def test_answers_come_right_behind_their_calls_whatever_was_said_in_between() -> None:
    both = [CALL, CALL.model_copy(update={"call_id": "c-2"})]
    of_second = RESULT.model_copy(update={"call_id": "c-2", "result": "second"})
    chat = chat_messages(
        "",
        [
            said("assistant", TextPart(text="I look."), *both),
            said("user", TextPart(text="By the way.")),
            said("tool", of_second),
            said("tool", RESULT),
            said("assistant", CALL),
            said("user", TextPart(text="And again.")),
            said("tool", RESULT.model_copy(update={"result": "again"})),
            said("tool", RESULT.model_copy(update={"result": "once more"})),
        ],
    )
    assert [(each["role"], each["content"]) for each in chat] == [
        ("assistant", "I look."),
        ("tool", "second"),
        ("tool", '{"found": true}'),
        ("user", "By the way."),
        ("assistant", None),
        ("tool", "again"),
        ("user", "And again."),
    ]


def test_what_is_sent_is_estimated_by_its_text_and_an_image_counts_as_one_whatever_it_weighs() -> None:
    heavy = ImagePart(url="data:image/png;base64," + "x" * 1_000_000)
    asked = [said("user", TextPart(text="x" * 20), heavy), said("assistant", CALL), said("tool", RESULT)]
    assert sent_tokens(chat_messages("y" * 20, asked[:1])) == 10 + IMAGE_TOKENS
    name_and_arguments, result = len("look_up{}"), len('{"found": true}')
    assert sent_tokens(chat_messages("", asked[1:])) == -(-(name_and_arguments + result) // 4)
    assert sent_tokens([]) == 0
