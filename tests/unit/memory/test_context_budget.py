"""A context that must not have more tokens than asked for."""

from hypothesis import given
from hypothesis import strategies as st

from schemas.http import ContextMessage
from schemas.parts import TextPart, ToolCallPart, ToolResultPart
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
