"""Whatever clients, models and tools write, a decision is made, and what it writes can be read again.

`Story` reads back every event and every state record, so each line here is also a check of that.
"""

import json
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.agents import AgentSpec, Limits
from schemas.envelope import encode_event
from schemas.ids import EPOCH, time_of, turn_id_of
from schemas.parts import SourcePart
from schemas.prompts import TurnOptions
from services.agents.turn.state import next_due
from services.agents.turn.values import END_OF_TIME, MAX_NESTING, json_value, later, nested_too_deeply, writable
from tests.unit.turn.story import NOON, Story, asks, texts, types

HALF = "\ud83d"
OTHER_HALF = "\ude00"

ANY_TEXT = st.text(st.characters(codec=None, categories=None), max_size=20)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=8,
)


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("seconds", [1e9, 1e12, 1e15, float("inf"), -1e15, -5.0, float("nan")])
def test_any_retry_after_is_taken(seconds: float) -> None:
    story = Story()
    story.prompt()
    story.model_fails("rate_limited", retry_after=seconds)
    if seconds > 0:
        assert [each.error.code for each in story.ends] == ["rate_limited"]
    else:
        assert next_due(story.state) == NOON


@pytest.mark.parametrize("seconds", [1e-9, 1e11, 1e15, 1e300])
def test_any_limit_of_seconds_is_taken(seconds: float) -> None:
    story = Story()
    story.prompt(options=TurnOptions(limits=Limits(max_seconds=seconds)))
    assert NOON <= story.turn.deadline_at <= END_OF_TIME
    story.answers("done")


def test_a_turn_without_end_is_still_cancelled_and_taken_over() -> None:
    story = Story()
    story.prompt(options=TurnOptions(limits=Limits(max_seconds=1e300)))
    story.crashes()
    assert types(story.cancels()) == ["usage.recorded", "turn.closed", "turn.cancelled"]


@pytest.mark.parametrize("where", ["response_schema", "call"])
@pytest.mark.parametrize("levels", [MAX_NESTING - 2, MAX_NESTING + 1, 170, 195])
def test_a_prompt_is_opened_or_rejected_by_how_deep_its_options_are(where: str, levels: int) -> None:
    story = Story()
    written = story.prompt(options=TurnOptions.model_validate({where: {"a": nested(levels - 1)}}))
    if levels < MAX_NESTING:
        assert types(written) == ["turn.opened", "message.added"]
        story.crashes()
    else:
        assert types(written) == ["turn.rejected"]
        assert (written[0].error.code, written[0].error.retryable) == ("bad_request", False)
        assert story.state is None


@pytest.mark.parametrize("levels", [50, 197])
def test_a_queued_prompt_nested_as_deeply_as_can_be_read_does_not_stop_a_takeover(levels: int) -> None:
    story = Story()
    story.prompt()
    story.prompt([SourcePart(metadata={"a": nested(levels - 4)})], metadata={"b": nested(levels - 2)})
    story.crashes()
    story.answers("done")
    story.crashes()


def test_a_text_that_was_cut_within_a_character_is_made_whole_or_marked() -> None:
    story = Story()
    story.prompt()
    written = story.answers(f"smile {HALF}{OTHER_HALF}, cut {HALF}", reasoning=HALF, finish_reason=HALF, model=HALF)
    assert written[-1].text == "smile 😀, cut �"
    assert texts(written[1:2]) == ["�"]


def test_a_failure_may_say_anything() -> None:
    story = Story()
    story.prompt()
    story.model_fails("bad_request", retryable=False, message=f"cut {HALF}")
    assert story.ends[0].error.message == "cut �"


@pytest.mark.parametrize("prompt_id", ["ffffffff-ffff-7fff-bfff-ffffffffffff", "e677d21f-dc00-7000-8000-000000000000"])
def test_a_prompt_id_that_looks_like_a_time_beyond_the_calendar_is_a_prompt_id(prompt_id: str) -> None:
    assert time_of(prompt_id) == EPOCH
    story = Story()
    story.prompt(prompt_id=prompt_id)
    assert story.turn.turn_id == turn_id_of("default", "t-1", prompt_id)
    story.answers("done")


@given(ANY_TEXT, st.lists(st.tuples(ANY_TEXT, ANY_TEXT | ANY_JSON.map(json.dumps)), max_size=3), st.booleans())
def test_whatever_a_model_answers_is_decided_and_readable(
    text: str, tools: list[tuple[str, str]], offered: bool
) -> None:
    story = Story([AgentSpec(name="assistant", tools=["look"], response_schema=None if tools else {})])
    story.prompt()
    story.answers(text, *(asks("look" if offered else name, arguments, name) for name, arguments in tools))
    story.crashes()
    story.cancels()
    assert story.state is None


@given(ANY_JSON)
def test_a_value_that_is_read_can_be_written_and_read(value: Any) -> None:
    text = writable(json.dumps(value))
    try:
        read = json_value(text)
    except ValueError:
        return
    story = Story()
    story.prompt()
    story.answers("", asks("look", json.dumps({"a": read})))
    assert story.calls[0].arguments == {"a": read}
    assert json.loads(encode_event(story.written("tool.called")[0]))["arguments"] == {"a": read}


@given(ANY_TEXT)
def test_writable_text_is_utf8_and_good_text_stays(text: str) -> None:
    assert writable(text).encode().decode() == writable(text)
    good = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore")
    assert writable(good) == good


@given(st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(2100, 1, 1)), st.floats())
@example(datetime(2026, 1, 1), float("nan"))
def test_later_is_a_time_for_any_number_of_seconds(naive: datetime, seconds: float) -> None:
    at = naive.replace(tzinfo=NOON.tzinfo)
    after = later(at, seconds)
    assert after.tzinfo is not None
    if 0 <= seconds < 1e9:
        assert after - at == timedelta(seconds=seconds)


def test_nesting_is_counted_by_arrays_and_objects() -> None:
    assert not nested_too_deeply(nested(MAX_NESTING))
    assert nested_too_deeply(nested(MAX_NESTING + 1))
    assert nested_too_deeply({"a": nested(MAX_NESTING)})
    assert not nested_too_deeply([nested(1)] * 1000)
