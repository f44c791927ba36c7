"""A context that must not have more tokens than asked for."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.http import ContextMessage
from schemas.parts import FilePart, ImagePart, Part, ReasoningPart, SourcePart, TextPart, ToolCallPart, ToolResultPart
from schemas.tokens import IMAGE_TOKENS
from services.memory.context import tokens_of, within_budget
from tests.unit.memory.journal import view_of


def because(reason: str, number: int, size: int = 0, *, score: float | None = None) -> ContextMessage:
    message = view_of(f"{reason}-{number}", number).model_copy(update={"parts": [TextPart(text="x" * 4 * size)]})
    return ContextMessage.model_validate({"message": message, "reason": reason, "score": score})


def test_a_budget_leaves_out_neighbours_first_then_weak_hits_then_old_messages_and_never_the_turn() -> None:
    strongest_last = [
        because("neighbour", 1),
        because("neighbour", 5),
        because("hit", 6, score=0.1),
        because("hit", 2, score=0.9),
        because("recent", 7),
        because("recent", 8),
        because("turn", 9),
    ]
    in_order = sorted(strongest_last, key=lambda each: each.message.position)
    each_tokens = tokens_of(in_order[:1])
    for count in range(1, 8):
        kept = within_budget(in_order, count * each_tokens)
        assert kept == [each for each in in_order if each in strongest_last[-count:]]
    assert within_budget(in_order, 1) == [strongest_last[-1]]


def tool_messages(first: int, call_id: str) -> list[ContextMessage]:
    call = ToolCallPart(call_id=call_id, name="look_up", arguments="{}")
    result = ToolResultPart(call_id=call_id, name="look_up", result="found")
    return [
        ContextMessage(message=each, reason="recent")
        for each in (
            view_of(f"call-{first}", first).model_copy(update={"role": "assistant", "parts": [call]}),
            view_of(f"result-{first}", first + 1).model_copy(update={"role": "tool", "parts": [result]}),
        )
    ]


@given(
    st.lists(st.tuples(st.sampled_from(["neighbour", "hit", "recent", "turn", "tools"]), st.integers(0, 30))), st.data()
)
def test_a_budget_is_kept_with_calls_whole_and_order_as_it_was(
    given_: list[tuple[str, int]], data: st.DataObject
) -> None:
    messages: list[ContextMessage] = []
    for position, (reason, size) in enumerate(given_):
        if reason == "tools":
            messages += tool_messages(1000 + 2 * position, f"c-{position}")
        else:
            messages.append(because(reason, position, size, score=size / 10 if reason == "hit" else None))
    budget = data.draw(st.integers(1, max(2, tokens_of(messages) + 10)))
    kept = within_budget(messages, budget)
    assert [each for each in messages if each in kept] == kept
    turn = [each for each in messages if each.reason == "turn"]
    assert [each for each in kept if each.reason == "turn"] == turn
    assert tokens_of(kept) <= budget or kept == turn
    assert within_budget(kept, budget) == kept
    calls = {part.call_id for each in kept for part in each.message.parts if isinstance(part, ToolCallPart)}
    results = {part.call_id for each in kept for part in each.message.parts if isinstance(part, ToolResultPart)}
    assert results == calls


def of_parts(role: str, *parts: Part, **fields: Any) -> ContextMessage:
    changed = {"role": role, "parts": [*parts], **fields}
    return ContextMessage(message=view_of("m-1", 1).model_copy(update=changed), reason="recent")


@pytest.mark.parametrize(
    ("role", "part", "tokens"),
    [
        ("user", TextPart(text="x" * 40), 10),
        ("assistant", ReasoningPart(text="x" * 4000), 0),
        ("user", ImagePart(url="data:image/png;base64," + "x" * 4000), IMAGE_TOKENS),
        ("assistant", ImagePart(url="https://example.com/cats.png"), len("[image: https://example.com/cats.png]") / 4),
        ("user", FilePart(file_id="f-1", name="a.txt", media_type="text/plain"), len("[file: a.txt, text/plain]") / 4),
        ("assistant", SourcePart(title="x" * 30), len("[source: " + "x" * 30 + "]") / 4),
        ("assistant", ToolCallPart(call_id="c-1", name="look_up", arguments='{"a":1}'), len('look_up{"a":1}') / 4),
        ("tool", ToolResultPart(call_id="c-1", name="look_up", result={"a": 1}), len('{"a": 1}') / 4),
    ],
)
def test_what_counts_is_what_the_model_is_sent(role: str, part: Part, tokens: float) -> None:
    nothing, all_of_it = tokens_of([of_parts(role)]), tokens_of([of_parts(role, part)])
    assert all_of_it - nothing == -(-tokens // 1)


def test_the_oldest_neighbour_goes_first_whatever_its_position_in_another_thread() -> None:
    old = of_parts("user", thread_id="t-2", position=1_000_000, created_at=datetime(2025, 1, 1, tzinfo=UTC))
    new = of_parts("user", thread_id="t-3", position=0, created_at=datetime(2026, 1, 1, tzinfo=UTC))
    around = [each.model_copy(update={"reason": "neighbour"}) for each in (old, new)]
    assert within_budget(around, tokens_of(around) - 1) == [around[1]]


def test_an_answer_goes_with_its_call_and_not_to_an_earlier_one_of_the_same_id() -> None:
    call = ToolCallPart(call_id="c-1", name="look_up", arguments="x" * 400)
    answer = ToolResultPart(call_id="c-1", name="look_up", result="found")
    earlier = of_parts("assistant", call, message_id="m-1").model_copy(update={"reason": "turn"})
    asks = of_parts("assistant", TextPart(text="I look."), call.model_copy(), message_id="m-2")
    answers = of_parts("tool", answer, message_id="m-3").model_copy(update={"reason": "turn"})
    says = of_parts("tool", answer.model_copy(), TextPart(text="found"), message_id="m-3")
    assert within_budget([earlier, asks, answers], 1) == [earlier]
    kept = within_budget([asks, says.model_copy(update={"reason": "turn"})], 1)
    assert [each.message.parts for each in kept] == [[TextPart(text="found")]]
