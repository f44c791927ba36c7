"""What a model sees of a thread: the present turn, recent messages, what a search finds and what is around it."""

from typing import Any

import pytest

from schemas.agents import ContextOptions, MessageRange, SearchOptions
from schemas.http import ContextMessage, ContextRequest
from services.memory import reads
from services.memory.context import MessageHit, assemble
from tests.unit.memory.journal import Told, added, answers, asks, opened, removed, view_of

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def seen(told: Told, **request: Any) -> list[ContextMessage]:
    options = ContextOptions.model_validate(request.pop("options", {}))
    asked = ContextRequest(**({"tenant_id": told.tenant, "thread_id": "t-1", "options": options} | request))
    return (await told.reads.context(asked)).messages


def ids(messages: list[ContextMessage]) -> list[str]:
    return [each.message.message_id for each in messages]


def reasons(messages: list[ContextMessage]) -> dict[str, str]:
    return {each.message.message_id: each.reason for each in messages}


async def test_the_most_recent_messages_come_in_thread_order(told: Told) -> None:
    await told.tell(*(added(f"m-{number}", f"number {number}") for number in range(6)), added("other", thread_id="t-2"))
    assert ids(await seen(told, options={"recent_messages": 3})) == ["m-3", "m-4", "m-5"]
    assert ids(await seen(told, options={"recent_messages": 0})) == []
    assert set(reasons(await seen(told)).values()) == {"recent"}


async def test_a_thread_that_does_not_exist_has_no_past(told: Told) -> None:
    assert await seen(told, thread_id="nobody's", turn_id="nobody's", query="anything") == []


async def test_tool_messages_of_earlier_turns_are_left_out_and_do_not_count(told: Told) -> None:
    await told.tell(
        added("m-1", "Where is it?"),
        asks("m-2", "c-1"),
        answers("m-3", "c-1"),
        asks("m-4", "c-2", text="One moment."),
        answers("m-5", "c-2"),
        added("m-6", "There.", role="assistant"),
    )
    assert ids(await seen(told)) == ["m-1", "m-4", "m-6"]
    assert ids(await seen(told, options={"recent_messages": 3})) == ["m-1", "m-4", "m-6"]


async def test_tool_messages_come_where_they_are_wanted(told: Told) -> None:
    await told.tell(added("m-1", "Where is it?"), asks("m-2", "c-1"), answers("m-3", "c-1"))
    assert ids(await seen(told, options={"exclude_tool_messages": False})) == ["m-1", "m-2", "m-3"]


async def test_an_answer_whose_call_is_too_old_stays_behind(told: Told) -> None:
    await told.tell(asks("m-1", "c-1"), answers("m-2", "c-1"), added("m-3", "Thanks."))
    assert ids(await seen(told, options={"exclude_tool_messages": False, "recent_messages": 2})) == ["m-3"]


async def test_a_call_whose_answer_was_deleted_is_not_shown_nor_an_answer_without_its_call(told: Told) -> None:
    await told.tell(
        asks("m-1", "c-1", "c-2", text="One moment."),
        answers("m-2", "c-1"),
        answers("m-3", "c-2"),
        asks("m-4", "c-3"),
        answers("m-5", "c-3"),
        asks("m-6", "c-4"),
        answers("m-7", "c-4"),
        removed("m-3", "m-5", "m-6"),
    )
    found = await seen(told, options={"exclude_tool_messages": False})
    assert ids(found) == ["m-1", "m-2"]
    assert [each.type for each in found[0].message.parts] == ["text", "tool_call"]
    [text_alone] = await seen(told)
    assert [each.type for each in text_alone.message.parts] == ["text"]


async def test_the_present_turn_comes_whole_whatever_the_options(told: Told) -> None:
    await told.tell(
        added("old", "Before."),
        opened("turn-2"),
        added("m-1", "Now?", turn_id="turn-2"),
        asks("m-2", "c-1", turn_id="turn-2"),
        answers("m-3", "c-1", turn_id="turn-2"),
        asks("m-4", "c-2", turn_id="turn-2"),
    )
    found = await seen(told, turn_id="turn-2", options={"recent_messages": 1})
    assert reasons(found) == dict.fromkeys(["m-1", "m-2", "m-3", "m-4"], "turn")
    assert ids(await seen(told, turn_id="turn-2", options={"recent_messages": 0})) == ["m-1", "m-2", "m-3", "m-4"]
    assert reasons(await seen(told, turn_id="turn-2"))["old"] == "recent"


async def test_a_turn_of_any_length_comes_whole(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "OWN_MESSAGES", 3)
    calls = [(asks(f"a-{number}", f"c-{number}"), answers(f"r-{number}", f"c-{number}")) for number in range(4)]
    await told.tell(added("m-1", "go", turn_id="turn-1"), *(each for both in calls for each in both))
    assert [each.message.position for each in await seen(told, turn_id="turn-1")] == list(range(9))


async def conversation(told: Told) -> None:
    await told.tell(
        *(added(f"m-{number}", f"small talk {number}", user_id="u-1") for number in range(4)),
        added("m-4", "My parcel is at the lighthouse", user_id="u-1"),
        *(added(f"m-{number}", f"small talk {number}", user_id="u-1") for number in range(5, 12)),
        added("elsewhere", "The lighthouse is closed on Mondays", thread_id="t-2", user_id="u-1"),
        added("theirs", "A lighthouse of somebody else", thread_id="t-3", user_id="u-2"),
    )


async def test_a_search_finds_older_messages_and_what_is_around_them(told: Told) -> None:
    await conversation(told)
    search = SearchOptions(limit=3, message_range=MessageRange(before=2, after=1))
    found = await seen(told, query="lighthouse", options={"recent_messages": 2, "search": search})
    assert reasons(found) == {
        "m-2": "neighbour",
        "m-3": "neighbour",
        "m-4": "hit",
        "m-5": "neighbour",
        "m-10": "recent",
        "m-11": "recent",
    }
    assert ids(found) == ["m-2", "m-3", "m-4", "m-5", "m-10", "m-11"]
    assert [each.message.message_id for each in found if each.score is not None] == ["m-4"]


@pytest.mark.parametrize("recent", [0, 1, 6, 7, 8, 9, 10, 11, 12, 13])
async def test_around_a_hit_is_the_same_however_much_of_it_is_recent(told: Told, recent: int) -> None:
    await conversation(told)
    search = SearchOptions(message_range=MessageRange(before=2, after=1))
    found = await seen(told, query="lighthouse", options={"recent_messages": recent, "search": search})
    wanted = {2, 3, 4, 5, *range(12)[12 - min(recent, 12) :]}
    assert ids(found) == [f"m-{number}" for number in sorted(wanted)]


async def test_around_a_hit_nothing_may_be_asked_for(told: Told) -> None:
    await conversation(told)
    search = SearchOptions(message_range=MessageRange(before=0, after=0))
    assert ids(await seen(told, query="lighthouse", options={"recent_messages": 0, "search": search})) == ["m-4"]


async def test_a_recent_hit_is_recent_and_keeps_its_score(told: Told) -> None:
    await conversation(told)
    found = await seen(told, query="lighthouse", options={"search": SearchOptions()})
    (hit,) = [each for each in found if each.message.message_id == "m-4"]
    assert hit.reason == "recent"
    assert hit.score is not None
    assert len(ids(found)) == len(set(ids(found)))


async def test_other_threads_of_the_user_come_first_and_nobody_elses(told: Told) -> None:
    await conversation(told)
    search = SearchOptions(other_threads=True, message_range=MessageRange(before=0, after=0))
    options = {"recent_messages": 1, "search": search}
    assert ids(await seen(told, query="lighthouse", user_id="u-1", options=options)) == ["elsewhere", "m-4", "m-11"]
    assert ids(await seen(told, query="lighthouse", options=options)) == ["m-4", "m-11"]


async def test_other_threads_come_first_even_where_nothing_of_the_thread_is_recent(told: Told) -> None:
    await conversation(told)
    search = SearchOptions(other_threads=True, message_range=MessageRange(before=0, after=0))
    found = await seen(
        told, query="Mondays lighthouse", user_id="u-1", options={"recent_messages": 0, "search": search}
    )
    assert ids(found) == ["elsewhere", "m-4"]


@pytest.mark.parametrize(
    "search", [None, SearchOptions(limit=0), SearchOptions(text=False), SearchOptions(score_threshold=1e9)]
)
async def test_a_search_that_is_off_finds_nothing(told: Told, search: SearchOptions | None) -> None:
    await conversation(told)
    assert await seen(told, query="lighthouse", options={"recent_messages": 0, "search": search}) == []


async def test_nothing_to_search_for_is_no_search(told: Told) -> None:
    search = {"recent_messages": 0, "search": SearchOptions()}
    await told.tell(added("m-1", "The lighthouse", role="assistant"))
    assert await seen(told, options=search) == []
    await conversation(told)
    assert await seen(told, query="the of", options=search) == []
    assert await seen(told, turn_id="nobody's", options=search) == []


@pytest.mark.parametrize("query", [None, ""])
async def test_without_a_query_and_a_turn_what_a_user_has_said_last_is_searched_for(
    told: Told, query: str | None
) -> None:
    await conversation(told)
    await told.tell(
        added("asks", "lighthouse lighthouse", user_id="u-1"), added("answer", "Which lighthouse?", role="assistant")
    )
    nothing_around = MessageRange(before=0, after=0)
    one = {"recent_messages": 0, "search": SearchOptions(limit=1, message_range=nothing_around)}
    assert ids(await seen(told, query=query, options=one)) == ["answer"]
    more = {"recent_messages": 0, "search": SearchOptions(message_range=nothing_around)}
    assert ids(await seen(told, query=query, options=more)) == ["m-4", "answer"]


async def test_what_asks_is_no_hit_of_itself_and_takes_no_place_of_one(told: Told) -> None:
    await conversation(told)
    await told.tell(
        opened("turn-9"), added("asks", "lighthouse lighthouse lighthouse", turn_id="turn-9", user_id="u-1")
    )
    search = SearchOptions(limit=1, message_range=MessageRange(before=0, after=0))
    found = await seen(told, turn_id="turn-9", query="lighthouse", options={"recent_messages": 0, "search": search})
    assert reasons(found) == {"m-4": "hit", "asks": "turn"}


async def test_without_a_query_the_turns_own_prompt_is_searched_for(told: Told) -> None:
    await conversation(told)
    await told.tell(opened("turn-9"), added("asks", "Which lighthouse?", turn_id="turn-9", user_id="u-1"))
    search = SearchOptions(message_range=MessageRange(before=0, after=0))
    found = await seen(told, turn_id="turn-9", options={"recent_messages": 0, "search": search})
    assert reasons(found) == {"m-4": "hit", "asks": "turn"}


async def test_tool_messages_are_left_out_of_hits_and_their_surroundings(told: Told) -> None:
    await told.tell(
        added("m-1", "Look for the lighthouse"),
        asks("m-2", "c-1"),
        answers("m-3", "c-1"),
        added("m-4", "Found."),
        *(added(f"m-{n}") for n in range(5, 9)),
    )
    search = SearchOptions(message_range=MessageRange(before=1, after=2))
    found = await seen(told, query="lighthouse", options={"recent_messages": 1, "search": search})
    assert ids(found) == ["m-1", "m-4", "m-5", "m-8"]
    with_tools = {"recent_messages": 1, "search": search, "exclude_tool_messages": False}
    assert ids(await seen(told, query="lighthouse", options=with_tools)) == ["m-1", "m-2", "m-3", "m-8"]


async def test_another_tenants_past_is_not_seen(told: Told) -> None:
    await conversation(told)
    other = Told(told.store, told.tenant + "-other")
    search = SearchOptions(other_threads=True)
    assert await seen(other, query="lighthouse", user_id="u-1", turn_id="turn-1", options={"search": search}) == []


async def test_every_message_comes_once_for_its_strongest_reason() -> None:
    a, b, c, d = (view_of(name, position) for position, name in enumerate("abcd"))
    hits = [MessageHit(message, score, ("text",)) for message, score in ((d, 3.0), (c, 2.0), (b, 1.0))]
    found = assemble("t-1", turn=[d], recent=[d, c], hits=hits, neighbours=[d, c, b, a])
    assert [(each.message.message_id, each.reason, each.score) for each in found] == [
        ("a", "neighbour", None),
        ("b", "hit", 1.0),
        ("c", "recent", 2.0),
        ("d", "turn", 3.0),
    ]


async def test_a_context_says_how_many_tokens_it_has_and_what_was_left_out(told: Told) -> None:
    await told.tell(*(added(f"m-{number}", "x" * 400) for number in range(5)))
    options = ContextOptions(max_tokens=250)
    answer = await told.reads.context(ContextRequest(tenant_id=told.tenant, thread_id="t-1", options=options))
    assert ids(answer.messages) == ["m-3", "m-4"]
    assert (answer.tokens, answer.left_out) == (208, 3)


async def test_meaning_that_nobody_can_search_by_is_said_and_words_are_found(told: Told) -> None:
    await conversation(told)
    options = ContextOptions(recent_messages=0, search=SearchOptions(vector=True, message_range=MessageRange(before=0)))
    request = ContextRequest(tenant_id=told.tenant, thread_id="t-1", query="lighthouse", options=options)
    answer = await told.reads.context(request)
    assert ids(answer.messages)[0] == "m-4"
    assert "TURNLOG_EMBEDDING_MODEL" in (answer.without_vector or "")


async def test_messages_of_one_id_in_two_threads_are_two(told: Told) -> None:
    await told.tell(
        *(
            added(str(number), f"a zebra {number}", thread_id=thread, user_id="u-1")
            for thread in ("t-1", "t-2")
            for number in range(3)
        ),
    )
    search = SearchOptions(other_threads=True)
    for recent, most in ((0, None), (5, None), (5, 1000)):
        options = {"recent_messages": recent, "search": search, "max_tokens": most}
        found = await seen(told, user_id="u-1", query="zebra", options=options)
        assert sorted((each.message.thread_id, each.message.message_id) for each in found) == [
            (thread, str(number)) for thread in ("t-1", "t-2") for number in range(3)
        ]


async def test_other_threads_of_a_user_take_no_hit_away_from_the_thread(told: Told) -> None:
    await told.tell(
        added("m-1", "what is the capital of Zog", user_id="u-1"),
        added("m-2", "it is Plumbopolis", role="assistant"),
        added("m-3", "Plumbopolis, says a colleague", user_id="u-2"),
        added("m-4", "an answer of Plumbopolis", role="assistant", thread_id="t-2"),
        added("m-5", "a question", thread_id="t-2", user_id="u-1"),
    )
    nothing_around = MessageRange(before=0, after=0)
    alone = {"recent_messages": 0, "search": SearchOptions(message_range=nothing_around)}
    assert ids(await seen(told, user_id="u-1", query="plumbopolis", options=alone)) == ["m-2", "m-3"]
    others = {"recent_messages": 0, "search": SearchOptions(message_range=nothing_around, other_threads=True)}
    assert ids(await seen(told, user_id="u-1", query="plumbopolis", options=others)) == ["m-4", "m-2", "m-3"]


async def test_calls_that_share_an_id_go_with_the_answers_that_follow_them(told: Told) -> None:
    await told.tell(
        answers("m-1", "c-0"),
        asks("m-2", "c-0"),
        answers("m-3", "c-0"),
        added("m-4", "again"),
        asks("m-5", "c-0"),
        added("m-6", "final"),
        asks("elsewhere", "c-0", thread_id="t-2"),
    )
    assert ids(await seen(told, options={"exclude_tool_messages": False})) == ["m-2", "m-3", "m-4", "m-6"]
