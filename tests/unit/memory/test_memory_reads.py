"""Threads, messages, turns, calls and search, read through the engine."""

import asyncio
from datetime import UTC, datetime

import pytest

from schemas.http import MessageView, SearchMode, SeenPrompt
from schemas.ids import message_id_of, turn_id_of
from schemas.journal import PromptDropped
from services.memory.cursors import BadCursorError
from services.memory.reads import NotFoundError
from services.memory.store import Range
from services.runtime.tasks import end_task
from tests.unit.memory.journal import (
    Told,
    added,
    answers,
    asks,
    at,
    closed,
    created,
    deleted,
    opened,
    removed,
    updated,
    waiting,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def pages_of_messages(told: Told, limit: int, **options: object) -> list[list[str]]:
    pages: list[list[str]] = []
    cursor: str | None = None
    while True:
        page = await told.reads.messages(told.tenant, "t-1", cursor=cursor, limit=limit, **options)
        pages.append([each.message_id for each in page.items])
        cursor = page.next_cursor
        if cursor is None:
            return pages


async def pages_of_threads(told: Told, limit: int, user_id: str | None = None) -> list[list[str]]:
    pages: list[list[str]] = []
    cursor: str | None = None
    while True:
        page = await told.reads.threads(told.tenant, user_id=user_id, query=None, cursor=cursor, limit=limit)
        pages.append([each.thread_id for each in page.items])
        cursor = page.next_cursor
        if cursor is None:
            return pages


async def test_messages_come_page_by_page_in_either_order(told: Told) -> None:
    await told.tell(*(added(f"m-{number}") for number in range(5)), added("other", thread_id="t-2"))
    assert await pages_of_messages(told, 2) == [["m-0", "m-1"], ["m-2", "m-3"], ["m-4"]]
    assert await pages_of_messages(told, 2, descending=True) == [["m-4", "m-3"], ["m-2", "m-1"], ["m-0"]]
    assert await pages_of_messages(told, 5) == [["m-0", "m-1", "m-2", "m-3", "m-4"]]


async def test_a_page_goes_on_though_messages_come_and_go_meanwhile(told: Told) -> None:
    await told.tell(*(added(f"m-{number}") for number in range(4)))
    first = await told.reads.messages(told.tenant, "t-1", limit=2)
    await told.tell(removed("m-1", "m-2"), added("m-4"))
    second = await told.reads.messages(told.tenant, "t-1", limit=9, cursor=first.next_cursor)
    assert [each.message_id for each in second.items] == ["m-3", "m-4"]
    assert second.next_cursor is None


async def test_messages_are_chosen_by_position_page_by_page(told: Told) -> None:
    await told.tell(*(added(f"m-{number}") for number in range(6)))
    assert await pages_of_messages(told, 2, positions=Range(above=0, below=4)) == [["m-1", "m-2"], ["m-3"]]
    assert await pages_of_messages(told, 2, positions=Range(above=2), descending=True) == [["m-5", "m-4"], ["m-3"]]
    assert await pages_of_messages(told, 2, positions=Range(above=9)) == [[]]


async def test_a_message_is_read_in_its_own_thread_alone(told: Told) -> None:
    await told.tell(added("m-1", "hi"))
    assert (await told.reads.message(told.tenant, "t-1", "m-1")).text == "hi"
    for thread_id, message_id in (("t-2", "m-1"), ("t-1", "m-2")):
        with pytest.raises(NotFoundError):
            await told.reads.message(told.tenant, thread_id, message_id)


async def test_messages_are_chosen_by_status_and_agent(told: Told) -> None:
    await told.tell(
        added("m-1", "hi"),
        added("m-2", "Hello", role="assistant", agent="helper"),
        added("m-3", "He", role="assistant", agent="other", status="failed"),
    )
    assert await pages_of_messages(told, 9, status="success") == [["m-1", "m-2"]]
    assert await pages_of_messages(told, 9, agent="other") == [["m-3"]]
    assert await pages_of_messages(told, 9, agent="helper", status="failed") == [[]]


async def test_threads_are_chosen_by_status_also_where_they_are_searched(told: Told) -> None:
    await told.tell(created("t-1", title="Lisbon"), created("t-2", title="Lisbon again"))
    await told.tell(updated("t-2", status="archived"))
    for query in (None, "lisbon"):
        for status, found in (("active", ["t-1"]), ("archived", ["t-2"])):
            page = await told.reads.threads(told.tenant, status=status, query=query)
            assert [each.thread_id for each in page.items] == found


async def test_a_thread_is_listed_for_everybody_who_took_part(told: Told) -> None:
    await told.tell(created("t-1", user_id="u-1"), created("t-2", user_id="u-2"), added("m-1", "hi", user_id="u-2"))
    for user_id, found in (("u-1", ["t-1"]), ("u-2", ["t-1", "t-2"]), ("u-3", [])):
        for query in (None, "hi"):
            page = await told.reads.threads(told.tenant, user_id=user_id, query=query)
            assert sorted(each.thread_id for each in page.items) == [
                each for each in found if query is None or each == "t-1"
            ]


async def test_threads_come_by_their_last_change_or_their_creation(told: Told) -> None:
    await told.tell(created("t-1"), created("t-2", seconds=1), updated("t-1", seconds=2, title="changed"))
    for order, found in (("updated", ["t-1", "t-2"]), ("created", ["t-2", "t-1"])):
        page = await told.reads.threads(told.tenant, query=None, order=order)
        assert [each.thread_id for each in page.items] == found


async def test_messages_are_chosen_by_role_and_turn(told: Told) -> None:
    await told.tell(
        added("m-1", "hi", turn_id="turn-1"),
        asks("m-2", "c-1"),
        answers("m-3", "c-1"),
        asks("m-4", "c-2", text="Soon."),
        added("m-5", "again", turn_id="turn-2"),
    )
    assert await pages_of_messages(told, 9, role="user") == [["m-1", "m-5"]]
    assert await pages_of_messages(told, 9, role="tool") == [["m-3"]]
    assert await pages_of_messages(told, 9, turn_id="turn-2") == [["m-5"]]
    assert await pages_of_messages(told, 9, exclude_tool=True) == [["m-1", "m-4", "m-5"]]
    assert await pages_of_messages(told, 2, exclude_tool=True) == [["m-1", "m-4"], ["m-5"]]


async def test_threads_come_last_changed_first(told: Told) -> None:
    await told.tell(
        created("t-1", seconds=1, user_id="u-1"),
        created("t-2", seconds=2, user_id="u-2"),
        created("t-3", seconds=3, user_id="u-1"),
        added("m-1", "hi", thread_id="t-1", seconds=4),
    )
    assert await pages_of_threads(told, 2) == [["t-1", "t-3"], ["t-2"]]
    assert await pages_of_threads(told, 9, "u-1") == [["t-1", "t-3"]]
    assert await pages_of_threads(told, 9, "nobody") == [[]]
    assert await pages_of_threads(told, 9, "") == [[]]


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 12])
async def test_no_thread_is_left_out_though_many_changed_at_the_same_moment(told: Told, limit: int) -> None:
    moments = [1, 2, 2, 2, 2, 2, 2, 3, 3, 4, 4]
    await told.tell(*(created(f"t-{number}", seconds=moment) for number, moment in enumerate(moments)))
    pages = await pages_of_threads(told, limit)
    names = [name for page in pages for name in page]
    assert sorted(names) == sorted(f"t-{number}" for number in range(len(moments)))
    changed = [moments[int(name.removeprefix("t-"))] for name in names]
    assert changed == sorted(moments, reverse=True)
    assert {len(page) for page in pages[:-1]} <= {limit}


async def test_a_cursor_is_short_however_many_threads_changed_at_the_same_moment(told: Told) -> None:
    await told.tell(*(created(f"t-{number}") for number in range(300)))
    first = await told.reads.threads(told.tenant, limit=290)
    assert first.next_cursor is not None
    assert len(first.next_cursor) < 100
    second = await told.reads.threads(told.tenant, limit=290, cursor=first.next_cursor)
    assert len({each.thread_id for each in (*first.items, *second.items)}) == 300
    assert second.next_cursor is None


async def test_threads_of_any_time_are_listed_page_by_page(told: Told) -> None:
    times = [datetime(year, 12, 31, 23, 59, 59, 999999, tzinfo=UTC) for year in (1, 1969, 1969, 2026, 9999, 9999)]
    events = [created(f"t-{number}").model_copy(update={"created_at": each}) for number, each in enumerate(times)]
    await told.tell(*events)
    names = [name for page in await pages_of_threads(told, 1) for name in page]
    assert [times[int(name.removeprefix("t-"))] for name in names] == times[::-1]
    assert len(set(names)) == len(times)


async def test_a_thread_that_is_gone_hides_no_other_of_the_same_moment(told: Told) -> None:
    await told.tell(*(created(f"t-{number}") for number in range(6)))
    first = await told.reads.threads(told.tenant, user_id=None, query=None, cursor=None, limit=3)
    given = [each.thread_id for each in first.items]
    await told.tell(deleted(given[0]), deleted(given[2]))
    second = await told.reads.threads(told.tenant, user_id=None, query=None, cursor=first.next_cursor, limit=9)
    assert {each.thread_id for each in second.items} == {f"t-{number}" for number in range(6)} - set(given)


async def test_threads_are_searched_by_title_and_summary(told: Told) -> None:
    await told.tell(
        created("t-1", title="Holiday in Lisbon"),
        created("t-2", summary="They asked about Lisbon and Porto", user_id="u-2"),
        created("t-3", title="Invoices"),
        added("m-1", "Lisbon", thread_id="t-3"),
    )
    page = await told.reads.threads(told.tenant, user_id=None, query="lisbon", cursor=None, limit=9)
    assert {each.thread_id for each in page.items} == {"t-1", "t-2"}
    page = await told.reads.threads(told.tenant, user_id="u-2", query="lisbon", cursor=None, limit=9)
    assert [each.thread_id for each in page.items] == ["t-2"]


@pytest.mark.parametrize(
    ("query", "found"), [("to do", {"t-1", "t-2"}), ("Do!", {"t-1", "t-2"}), ("what to do in Rome", {"t-2", "t-3"})]
)
async def test_a_title_of_words_that_say_nothing_is_found_by_them(told: Told, query: str, found: set[str]) -> None:
    titles = {"t-1": "To do", "t-2": "Things to do in Rome", "t-3": "Rome"}
    await told.tell(*(created(thread_id, title=title) for thread_id, title in titles.items()))
    page = await told.reads.threads(told.tenant, user_id=None, query=query, cursor=None, limit=9)
    assert {each.thread_id for each in page.items} == found


async def test_threads_that_match_are_found_page_by_page(told: Told) -> None:
    await told.tell(*(created(f"t-{number}", title="Lisbon") for number in range(7)))
    read: list[list[str]] = []
    cursor = None
    while len(read) < 9:
        page = await told.reads.threads(told.tenant, query="lisbon", cursor=cursor, limit=3)
        read.append([each.thread_id for each in page.items])
        cursor = page.next_cursor
        if cursor is None:
            break
    assert [len(page) for page in read] == [3, 3, 1]
    assert {each for page in read for each in page} == {f"t-{number}" for number in range(7)}
    with pytest.raises(BadCursorError, match="leave it out"):
        await told.reads.threads(told.tenant, query="lisbon", cursor="MQ")


async def test_what_an_open_turn_has_yet_to_answer_is_pending_under_the_id_that_it_will_have(told: Told) -> None:
    async def pending(**asked: str) -> list[MessageView]:
        return (await told.reads.messages(told.tenant, "t-1", status="pending", **asked)).items

    await told.tell(created())
    assert await pending() == []
    await told.tell(opened(), added("m-1", "Where is it?", turn_id="turn-1"))
    [first] = await pending()
    assert (first.role, first.step, first.agent, first.text) == ("assistant", 1, "assistant", "")
    assert first.message_id == message_id_of("turn-1", 1, "assistant", 0, opened_at=at(0))
    assert len((await told.reads.messages(told.tenant, "t-1")).items) == 1

    await told.tell(asks("m-2", "c-1", step=1), waiting())
    [second] = await pending(turn_id="turn-1", role="assistant")
    assert (second.step, second.message_id == first.message_id) == (2, False)
    assert await pending(role="user") == await pending(agent="other") == await pending(turn_id="turn-2") == []
    await told.tell(closed(outcome="cancelled"))
    assert await pending() == []


async def test_messages_are_searched_over_all_threads_or_one_users_or_in_one(told: Told) -> None:
    await told.tell(
        added("m-1", "the red kite", user_id="u-1"),
        added("m-2", "a kite", thread_id="t-2", user_id="u-1"),
        added("m-3", "kites, kites", thread_id="t-3", user_id="u-2"),
        added("m-4", "the weather"),
    )

    async def found(query: str = "red kite", **options: str | None) -> list[str]:
        scope = {"user_id": None, "thread_id": None} | options
        page = await told.reads.search(told.tenant, query, limit=9, **scope)
        assert [hit.score for hit in page.items] == sorted((hit.score for hit in page.items), reverse=True)
        return [hit.message.message_id for hit in page.items]

    assert (await found())[0] == "m-1"
    assert set(await found()) == {"m-1", "m-2", "m-3"}
    assert set(await found(user_id="u-1")) == {"m-1", "m-2"}
    assert await found(thread_id="t-2") == ["m-2"]
    assert await found(thread_id="t-1", user_id="u-2") == []
    assert await found("zeppelin") == []


async def test_what_does_not_exist_is_not_found(told: Told) -> None:
    await told.tell(opened(), asks("m-1", "c-1"))
    stranger = Told(told.store, told.tenant + "-other")
    for reads, tenant in ((told.reads, told.tenant), (stranger.reads, stranger.tenant)):
        mine = tenant == told.tenant
        for call, name in ((reads.thread, "t-1"), (reads.turn, "turn-1"), (reads.tool_call, "c-1")):
            if mine:
                assert (await call(tenant, name)).thread_id == "t-1"
            with pytest.raises(NotFoundError, match="nobody" if mine else name):
                await call(tenant, "nobody" if mine else name)


async def test_a_deleted_thread_is_gone_and_its_turn_is_known(told: Told) -> None:
    await told.tell(opened(), asks("m-1", "c-1"), closed(), deleted())
    assert (await told.reads.turn(told.tenant, "turn-1")).closed_at == at(2)
    for call, name in ((told.reads.thread, "t-1"), (told.reads.tool_call, "c-1")):
        with pytest.raises(NotFoundError):
            await call(told.tenant, name)


async def test_prompts_that_had_a_turn_are_seen_also_when_the_thread_is_deleted(told: Told) -> None:
    prompts = [
        SeenPrompt(tenant_id=told.tenant, thread_id=thread, prompt_id=prompt)
        for thread in ("t-1", "t-2")
        for prompt in ("order-17", "order-18")
    ]
    turn_id = turn_id_of(told.tenant, "t-1", "order-17")
    await told.tell(opened(turn_id, prompt_id="order-17"))
    assert await told.reads.seen(prompts) == prompts[:1]
    await told.tell(closed(turn_id), deleted())
    assert await told.reads.seen(prompts) == prompts[:1]
    assert await told.reads.seen([]) == []
    assert await told.reads.seen([prompts[0].model_copy(update={"tenant_id": "other"})]) == []


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "é",
        "AAAA",
        "dHJ1ZQ",
        "MQ",
        "LTEuMA",
        "MS4w" * 50,
        "W1tbW1tbW1s",
        "MTIzNDU2Nzg5MDEyMzQ1Njc4OTAuMQ",
        "MS4xMDAwMDAwMA",
    ],
)
async def test_a_cursor_of_somebodys_own_making_is_refused(told: Told, cursor: str) -> None:
    with pytest.raises(BadCursorError, match="leave it out"):
        await told.reads.messages(told.tenant, "t-1", cursor=cursor)
    with pytest.raises(BadCursorError, match="leave it out"):
        await told.reads.threads(told.tenant, user_id=None, query=None, cursor=cursor, limit=1)


async def test_a_prompt_that_was_dropped_is_known_though_it_never_had_a_turn(told: Told) -> None:
    turn_id = turn_id_of(told.tenant, "t-1", "order-17")
    fields = {"turn_id": turn_id, "prompt_id": "order-17", "agent": "assistant", "dropped_at": at(1)}
    await told.tell(PromptDropped(thread_id="t-1", **fields))
    asked = SeenPrompt(tenant_id=told.tenant, thread_id="t-1", prompt_id="order-17")
    assert await told.reads.seen([asked, asked.model_copy(update={"prompt_id": "order-18"})]) == [asked]
    assert (await told.reads.turn(told.tenant, turn_id)).status == "cancelled"


@pytest.mark.parametrize("limit", [1, 7, 20])
@pytest.mark.parametrize("mode", ["text", "hybrid"])
async def test_hits_that_are_equally_good_come_once_each_page_by_page(told: Told, limit: int, mode: SearchMode) -> None:
    await told.tell(*(added(f"m-{number}", "the same words") for number in range(60)))
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = await told.reads.search(told.tenant, "words", mode=mode, cursor=cursor, limit=limit)
        found += [each.message.message_id for each in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert sorted(found) == sorted(f"m-{number}" for number in range(60))


async def test_threads_that_match_equally_well_come_once_each_page_by_page(told: Told) -> None:
    await told.tell(*(created(f"t-{number}", title="To Lisbon") for number in range(30)))
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = await told.reads.threads(told.tenant, query="lisbon", cursor=cursor, limit=4)
        found += [each.thread_id for each in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert sorted(found) == sorted(f"t-{number}" for number in range(30))


async def test_the_answers_in_a_users_threads_are_found_for_that_user(told: Told) -> None:
    await told.tell(
        added("m-1", "what is the capital of Zog", user_id="u-1"),
        added("m-2", "the capital is Plumbopolis", role="assistant"),
        added("m-3", "Plumbopolis, says a colleague", user_id="u-2"),
        added("m-4", "Plumbopolis elsewhere", thread_id="t-2", user_id="u-2"),
    )
    found = await told.reads.search(told.tenant, "plumbopolis", user_id="u-1")
    assert sorted(each.message.message_id for each in found.items) == ["m-2", "m-3"]
    assert (await told.reads.search(told.tenant, "plumbopolis", user_id="nobody")).items == []


async def test_a_cursor_of_another_list_is_refused(told: Told) -> None:
    await told.tell(*(added(f"m-{number}", thread_id=f"t-{number}") for number in range(3)), added("m-9"))
    messages = await told.reads.messages(told.tenant, "t-1", limit=1)
    updated_first = await told.reads.threads(told.tenant, limit=1)
    for cursor in (messages.next_cursor, f"{updated_first.next_cursor}."):
        with pytest.raises(BadCursorError):
            await told.reads.threads(told.tenant, cursor=cursor, limit=1)
    with pytest.raises(BadCursorError):
        await told.reads.threads(told.tenant, cursor=updated_first.next_cursor, order="created", limit=1)
    for cursor in (updated_first.next_cursor, messages.next_cursor):
        with pytest.raises(BadCursorError):
            await told.reads.messages(told.tenant, "t-1", cursor=cursor, limit=1, descending=True)


async def test_messages_that_were_appended_as_pending_are_listed_before_what_is_yet_to_come(told: Told) -> None:
    await told.tell(added("m-1", status="pending"), opened("turn-1"), added("m-2"), added("m-3", status="pending"))
    assert [page[0] for page in await pages_of_messages(told, 1, status="pending")] == ["m-1", "m-3"]
    whole = (await told.reads.messages(told.tenant, "t-1", status="pending")).items
    assert [each.message_id for each in whole[:2]] == ["m-1", "m-3"]
    assert [each.turn_id for each in whole[2:]] == ["turn-1"]
    backwards = (await told.reads.messages(told.tenant, "t-1", status="pending", descending=True)).items
    assert backwards == whole[::-1]
    early = await told.reads.messages(told.tenant, "t-1", status="pending", positions=Range(below=3))
    assert [each.message_id for each in early.items] == ["m-1"]
    with pytest.raises(BadCursorError):
        await told.reads.messages(told.tenant, "t-1", status="pending", cursor="zzz")


async def test_others_have_a_turn_between_two_hits_of_a_page(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    await told.tell(*(added(f"m-{number}", "plum") for number in range(10)))
    turns, marked_at = 0, list[int]()

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def mark(text: str) -> list[tuple[int, int]]:
        marked_at.append(turns)
        return []

    monkeypatch.setattr(told.store, "marker", lambda query: mark)
    busy = asyncio.create_task(others())
    assert len((await told.reads.search(told.tenant, "plum")).items) == 10
    await end_task(busy)
    assert marked_at == sorted({*marked_at})
    assert len(marked_at) == 10
