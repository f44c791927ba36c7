"""What each event of the journal does to the documents, and that replays and batches make no difference."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import RFC_4122, UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.base import TokenCounts
from schemas.http import MessageView, ThreadView
from schemas.ids import microseconds
from schemas.journal import EXAMPLES, ForkedFrom, JournalEvent, MessageAdded
from schemas.parts import ImagePart, ReasoningPart, TextPart, ToolCallPart, ToolResultPart, text_of
from services.memory.projector import (
    CallView,
    TurnView,
    call_point,
    message_point,
    points_read,
    project,
    thread_point,
    turn_point,
)
from services.memory.store import Document, point_id
from tests.unit.memory.journal import (
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


class Documents:
    """Applies changes as the port says: whole threads are deleted, then documents, then those that stay written."""

    def __init__(self) -> None:
        self.all: dict[str, Document] = {}
        self.offset = 0

    def tell(self, *events: JournalEvent) -> "Documents":
        self.batch(self.offset, events)
        return self

    def batch(self, first: int, events: Sequence[JournalEvent]) -> None:
        existing = {point: self.all[point] for point in points_read(events) if point in self.all}
        changes = project(list(enumerate(events, start=first)), existing)
        for find in changes.delete_all:
            for document in list(self.all.values()):
                if find.matches(document):
                    del self.all[document.point_id]
        for point in changes.deletes:
            self.all.pop(point, None)
        self.all |= {document.point_id: document for document in changes.upserts}
        self.offset = first + len(events)

    def thread(self, thread_id: str = "t-1", tenant_id: str = "default") -> ThreadView:
        return ThreadView.model_validate_json(self.all[thread_point(tenant_id, thread_id)].body)

    def turn(self, turn_id: str = "turn-1") -> TurnView:
        return TurnView.model_validate_json(self.all[turn_point("default", turn_id)].body)

    def message(self, message_id: str) -> MessageView:
        return MessageView.model_validate_json(self.all[message_point("default", "t-1", message_id)].body)

    def kinds(self) -> list[str]:
        return sorted(document.kind for document in self.all.values())


def test_a_fork_says_where_it_is_from() -> None:
    source = ForkedFrom(thread_id="t-0", message_id="m-7")
    documents = Documents().tell(created(forked_from=source), updated(title="another way"))
    assert documents.thread().forked_from == source


def test_a_thread_names_everybody_who_took_part_once() -> None:
    documents = Documents().tell(
        created(user_id="u-1"),
        added("m-1", user_id="u-2"),
        opened(user_id="u-1", agent="helper"),
        added("m-2", role="assistant", agent="helper"),
        added("m-3", role="assistant", agent="other"),
        added("m-4", user_id="u-2"),
    )
    thread = documents.thread()
    assert (thread.user_id, thread.users, thread.agents) == ("u-1", ["u-1", "u-2"], ["helper", "other"])


def test_times_are_kept_to_the_microsecond() -> None:
    assert microseconds(datetime(2026, 1, 1, 12, 0, 0, 7, tzinfo=UTC)) == 1_767_268_800_000_007
    assert microseconds(datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)) == 253_402_300_799_999_999


def test_a_message_is_found_by_what_it_belongs_to_and_read_with_all_that_it_says() -> None:
    event = next(each for each in EXAMPLES if isinstance(each, MessageAdded))
    documents = Documents()
    documents.batch(41, [event])
    document = documents.all[message_point("default", "t-1", event.message_id)]
    assert document.fields == {
        "thread_id": "t-1",
        "position": 41,
        "status": "success",
        "role": "assistant",
        "created": microseconds(event.created_at),
        "turn_id": event.turn_id,
        "agent": "assistant",
    }
    assert document.text == "Hello!"
    view = documents.message(event.message_id)
    assert (view.position, view.text) == (41, "Hello!")
    said = event.model_dump(mode="json", exclude={"type"}, exclude_none=True)
    assert json.loads(document.body).items() >= said.items()


OPTIONAL = st.none() | st.text(max_size=3)
NUMBERS = st.integers(0, 10)
METADATA = st.dictionaries(
    st.text(max_size=3),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
        max_leaves=4,
    ),
    max_size=3,
)
PARTS = st.one_of(
    st.builds(TextPart, text=st.text(max_size=9)),
    st.builds(ReasoningPart, text=st.text(max_size=9)),
    st.builds(ToolCallPart, call_id=st.just("c"), name=st.just("look_up"), arguments=st.text(max_size=9)),
    st.builds(ToolResultPart, call_id=st.just("c"), name=st.just("look_up"), result=METADATA),
)


@settings(deadline=None, max_examples=300)
@given(
    st.builds(
        MessageAdded,
        message_id=st.just("m"),
        thread_id=st.just("t-1"),
        turn_id=st.none() | st.just("turn-1"),
        step=NUMBERS,
        role=st.sampled_from(["user", "assistant", "tool"]),
        status=st.sampled_from(["success", "failed"]),
        parts=st.lists(PARTS, max_size=3),
        agent_version=OPTIONAL,
        provider=OPTIONAL,
        model=OPTIONAL,
        usage=st.none() | st.builds(TokenCounts, input_tokens=NUMBERS),
        latency_ms=st.none() | NUMBERS,
        finish_reason=OPTIONAL,
        metadata=METADATA,
        created_at=st.datetimes(timezones=st.just(UTC)),
        appended_at=st.none() | st.datetimes(timezones=st.just(UTC)),
    )
)
def test_what_is_stored_of_a_message_is_its_view(event: MessageAdded) -> None:
    documents = Documents()
    documents.batch(41, [event])
    said = {name: getattr(event, name) for name in MessageView.model_fields.keys() & MessageAdded.model_fields.keys()}
    view = MessageView(**said, position=41, text=text_of(event.parts))
    stored = json.loads(documents.all[message_point("default", "t-1", "m")].body)
    assert stored == json.loads(view.model_dump_json(exclude_none=True))


def test_an_id_names_a_message_of_its_thread_alone() -> None:
    """Threads are on partitions that are read in no common order: one must not depend on the other."""
    documents = Documents().tell(added("m-1", "mine"), added("m-1", "theirs", thread_id="t-2"))
    assert documents.message("m-1").text == "mine"
    documents.tell(removed("m-1", thread_id="t-2"))
    assert documents.message("m-1").text == "mine"
    assert documents.kinds().count("message") == 1


def test_only_what_was_said_is_searched() -> None:
    documents = Documents().tell(
        added(
            "m-1", [TextPart(text="one"), ReasoningPart(text="hidden"), ImagePart(url="data:,"), TextPart(text="two")]
        )
    )
    assert documents.all[message_point("default", "t-1", "m-1")].text == "one\ntwo"


def test_tools_answers_and_messages_that_only_call_tools_are_marked() -> None:
    documents = Documents().tell(
        asks("only-calls", "c-1"),
        answers("answer", "c-1"),
        asks("says-and-calls", "c-2", text="A moment."),
        added("m", "hi"),
    )
    marked = {name for name in ("only-calls", "answer", "says-and-calls", "m") if _about(documents, name) == "tools"}
    assert marked == {"only-calls", "answer"}


def _about(documents: Documents, message_id: str) -> Any:
    return documents.all[message_point("default", "t-1", message_id)].fields.get("about")


def test_a_tool_call_is_known_with_its_thread_and_turn() -> None:
    documents = Documents().tell(asks("m-1", "c-1", "c-2"), asks("m-2", "c-3", turn_id=None))
    call = CallView.model_validate_json(documents.all[call_point("default", "c-2")].body)
    assert (call.thread_id, call.turn_id, call.name) == ("t-1", "turn-1", "look_up")
    assert documents.kinds().count("call") == 2


def test_a_thread_that_nobody_created_exists_from_its_first_message() -> None:
    documents = Documents().tell(added("m-1", "Where is my order?\nIt is late.", user_id="u-1", seconds=5))
    thread = documents.thread()
    assert (thread.title, thread.user_id, thread.status) == ("Where is my order?", "u-1", "active")
    assert thread.created_at == thread.updated_at == at(5)


def test_a_thread_that_nobody_created_exists_from_its_first_turn() -> None:
    thread = Documents().tell(opened(user_id="u-1", seconds=4)).thread()
    assert (thread.title, thread.user_id, thread.created_at) == (None, "u-1", at(4))


def test_a_title_that_was_given_is_not_replaced_by_a_message() -> None:
    documents = Documents().tell(created(title="Plans", user_id="u-1"), added("m-1", "Hello", user_id="u-2"))
    assert (documents.thread().title, documents.thread().user_id) == ("Plans", "u-1")


@pytest.mark.parametrize(("role", "text"), [("assistant", "Hello"), ("system", "Be kind"), ("user", "  \n ")])
def test_only_what_a_user_says_becomes_a_title(role: str, text: str) -> None:
    assert Documents().tell(added("m-1", text, role=role)).thread().title is None


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("\n  " + "x" * 300 + "\nmore", "x" * 80),
        ("Dear all,\r\nmore", "Dear all,"),
        ("Dear all, \u2028more", "Dear all,"),
        ("x" * 79 + " y", "x" * 79),
    ],
)
def test_a_title_from_a_message_is_its_first_line_cut_short(text: str, title: str) -> None:
    assert Documents().tell(added("m-1", text)).thread().title == title


TITLED = [added("m-0", "Hello", role="assistant"), added("m-1", "my password is hunter2"), added("m-2", "Thanks")]


@pytest.mark.parametrize(
    "deletion",
    [
        removed("m-1"),
        removed("m-2", "m-1"),
        removed(from_position=1, to_position=1),
        removed(to_position=1),
        removed(from_position=0),
    ],
)
def test_a_title_goes_with_the_message_that_it_is_from_until_a_user_speaks_again(deletion: JournalEvent) -> None:
    documents = Documents().tell(*TITLED)
    assert documents.thread().title_message_id == "m-1"
    before = documents.thread().updated_at
    documents.tell(deletion)
    assert (documents.thread().title, documents.thread().title_message_id) == (None, None)
    assert "hunter2" not in str(documents.all[thread_point("default", "t-1")])
    assert documents.thread().updated_at == before
    assert documents.tell(added("m-3", "Something else")).thread().title == "Something else"


@pytest.mark.parametrize("deletion", [removed("m-0", "m-2"), removed(from_position=2), removed(to_position=0)])
def test_a_title_stays_where_other_messages_go(deletion: JournalEvent) -> None:
    assert Documents().tell(*TITLED, deletion).thread().title == "my password is hunter2"


@pytest.mark.parametrize("deletion", [removed("m-1"), removed(from_position=0)])
def test_a_title_that_was_given_stays_whatever_goes(deletion: JournalEvent) -> None:
    documents = Documents().tell(*TITLED, updated(title="Plans"), deletion)
    assert (documents.thread().title, documents.thread().title_message_id) == ("Plans", None)


@pytest.mark.parametrize("deletion", [removed("m-1"), removed(from_position=1, to_position=1)])
def test_a_title_goes_though_a_process_died_when_its_message_had_gone(deletion: JournalEvent) -> None:
    documents = Documents().tell(*TITLED)
    del documents.all[message_point("default", "t-1", "m-1")]
    assert documents.tell(deletion).thread().title is None


def test_a_thread_is_created_with_all_that_was_said_of_it() -> None:
    documents = Documents().tell(created(title="Plans", summary="What comes", user_id="u-1", metadata={"a": [1]}))
    thread = documents.thread()
    assert (thread.title, thread.summary, thread.user_id, thread.metadata) == ("Plans", "What comes", "u-1", {"a": [1]})
    document = documents.all[thread_point("default", "t-1")]
    assert document.text == "Plans What comes"
    then = int(at(0).timestamp() * 1e6)
    assert document.fields == {
        "thread_id": "t-1",
        "position": 0,
        "user_id": ["u-1"],
        "status": "active",
        "created": then,
        "updated": then,
    }


def test_a_thread_that_is_created_again_keeps_what_is_not_said_again() -> None:
    documents = Documents().tell(created(title="Plans", metadata={"kept": 1}), created(user_id="u-1"))
    thread = documents.thread()
    assert (thread.title, thread.user_id, thread.metadata) == ("Plans", "u-1", {"kept": 1})


def test_a_thread_that_is_created_again_stays_whose_it_is_and_takes_what_nobody_has_said() -> None:
    source = ForkedFrom(thread_id="t-0")
    first = created(title="Plans", user_id="u-1", metadata={"a": 1})
    again = created(
        title="taken", summary="What comes", user_id="mallory", metadata={"b": 2}, forked_from=source, seconds=9
    )
    thread = Documents().tell(first, again).thread()
    assert (thread.user_id, thread.users, thread.title, thread.metadata) == ("u-1", ["u-1"], "Plans", {"a": 1})
    assert (thread.summary, thread.forked_from, thread.created_at) == ("What comes", source, at(0))


def test_a_thread_that_came_into_being_by_itself_stays_its_users_and_takes_the_title_that_it_is_created_with() -> None:
    thread = Documents().tell(added("m-1", "Hello", user_id="u-1"), created(title="Plans", user_id="u-2")).thread()
    assert (thread.user_id, thread.users, thread.title, thread.title_message_id) == ("u-1", ["u-1"], "Plans", None)


def test_an_update_changes_what_it_names_and_leaves_the_rest() -> None:
    documents = Documents().tell(
        created(title="Plans", summary="What comes", metadata={"a": 1}),
        updated(title="Plans for Monday", seconds=9),
        updated(status="archived", metadata={"b": 2}, seconds=8),
    )
    thread = documents.thread()
    assert (thread.title, thread.summary, thread.status) == ("Plans for Monday", "What comes", "archived")
    assert thread.metadata == {"b": 2}
    assert thread.updated_at == at(9)
    assert documents.all[thread_point("default", "t-1")].text == "Plans for Monday What comes"


def test_an_update_clears_what_it_names() -> None:
    documents = Documents().tell(
        created(title="Plans", summary="What comes", metadata={"a": 1}, user_id="u-1"),
        updated(cleared=["title", "metadata"]),
    )
    thread = documents.thread()
    assert (thread.title, thread.summary, thread.metadata, thread.user_id) == (None, "What comes", {}, "u-1")
    assert documents.all[thread_point("default", "t-1")].text == "What comes"
    assert documents.tell(updated(cleared=["summary"])).thread().summary is None
    assert documents.tell(added("m-1", "Hello")).thread().title == "Hello"
    documents.tell(updated(cleared=["title"]))
    assert (documents.thread().title, documents.thread().title_message_id) == (None, None)


def test_an_update_of_a_thread_that_is_not_there_makes_none() -> None:
    documents = Documents().tell(updated(title="Nobody's"))
    assert documents.all == {}
    documents.tell(created(title="Plans"), deleted(), updated(title="Nobody's"))
    assert documents.all == {}


def test_the_first_message_of_an_id_stays_as_it_is_and_where_it_is() -> None:
    documents = Documents().tell(created(), added("m-1", "first", user_id="u-1", seconds=1), added("m-2", "second"))
    before, thread = dict(documents.all), documents.thread()
    documents.tell(added("m-1", "another", user_id="u-2", seconds=60), asks("m-2", "c-1", seconds=61))
    assert documents.thread() == thread
    point = thread_point("default", "t-1")
    assert {**documents.all, point: before[point]} == before


def test_an_id_that_was_deleted_is_free_again() -> None:
    documents = Documents().tell(added("m-1", "first"), removed("m-1"), added("m-1", "another"))
    assert (documents.message("m-1").text, documents.message("m-1").position) == ("another", 2)
    documents.tell(deleted(), added("m-1", "a third"))
    assert (documents.message("m-1").text, documents.message("m-1").position) == ("a third", 4)


def test_a_deleted_message_takes_its_tool_calls_with_it_and_no_others() -> None:
    documents = Documents().tell(asks("m-1", "c-1", "c-2"), asks("m-2", "c-3"), answers("m-3", "c-1"), removed("m-1"))
    assert documents.kinds() == ["call", "message", "message", "thread"]
    assert call_point("default", "c-3") in documents.all


@pytest.mark.parametrize(
    ("first", "last", "left"), [(1, 2, ["m-0", "m-3"]), (2, None, ["m-0", "m-1"]), (None, 0, ["m-1", "m-2", "m-3"])]
)
def test_messages_are_deleted_by_position_with_their_calls(
    first: int | None, last: int | None, left: list[str]
) -> None:
    documents = Documents().tell(
        *(asks(f"m-{number}", f"c-{number}") for number in range(4)),
        removed(from_position=first, to_position=last),
        added("m-5", "later"),
        added("m-6", thread_id="t-2"),
    )
    named = {json.loads(each.body)["message_id"] for each in documents.all.values() if each.kind == "message"}
    assert named == {*left, "m-5", "m-6"}
    assert documents.kinds().count("call") == len(left)


def test_a_deletion_by_position_takes_nothing_that_came_behind_it() -> None:
    documents = Documents().tell(added("m-0"), removed(from_position=0, to_position=9), added("m-2"))
    assert documents.message("m-2").position == 2
    documents.batch(1, [removed(from_position=0, to_position=9)])
    assert documents.message("m-2")


def test_a_message_moves_its_thread_to_the_front() -> None:
    documents = Documents().tell(created(), added("m-1", "hi", seconds=60))
    assert documents.thread().updated_at == at(60)
    assert documents.thread().created_at == at(0)


def test_messages_are_deleted_one_by_one() -> None:
    documents = Documents().tell(added("m-1"), added("m-2"), added("m-3"), removed("m-1", "m-3", "unknown"))
    assert documents.kinds() == ["message", "thread"]
    assert documents.message("m-2")


def test_a_deleted_thread_takes_its_messages_and_calls_with_it_and_no_others() -> None:
    documents = Documents().tell(
        opened(), added("m-1"), asks("m-2", "c-1"), added("m-3", thread_id="t-2"), asks("m-4", "c-2", thread_id="t-2")
    )
    for again in (False, True):
        documents.tell(deleted())
        assert documents.kinds() == ["call", "message", "message", "thread", "turn"], again
        assert documents.thread("t-2")


def test_the_turns_of_a_deleted_thread_are_still_known() -> None:
    documents = Documents().tell(opened(), closed(), deleted())
    assert documents.turn().status == "completed"


def test_a_thread_begins_anew_after_it_was_deleted() -> None:
    documents = Documents().tell(
        created(title="Old", user_id="u-1"), added("m-1", "old"), deleted(), added("m-2", "New", seconds=9)
    )
    assert (documents.thread().title, documents.thread().user_id, documents.thread().created_at) == ("New", None, at(9))
    assert documents.kinds() == ["message", "thread"]


def test_a_turn_is_open_then_waits_then_is_closed() -> None:
    documents = Documents().tell(opened(user_id="u-1"))
    turn = documents.turn()
    assert (turn.status, turn.prompt_id, turn.agent, turn.user_id) == ("open", "prompt of turn-1", "assistant", "u-1")
    assert documents.tell(waiting()).turn().status == "waiting"
    assert documents.tell(closed(outcome="cancelled", seconds=7)).turn().status == "cancelled"
    assert documents.turn().closed_at == at(7)


@pytest.mark.parametrize("outcome", ["completed", "failed", "cancelled"])
def test_a_turn_ends_with_its_outcome_in_one_batch_too(outcome: str) -> None:
    assert Documents().tell(opened(), closed(outcome=outcome)).turn().status == outcome


def test_a_turn_that_was_never_opened_is_not_invented() -> None:
    assert Documents().tell(waiting("nobody's"), closed("nobody's")).all == {}


def test_tenants_have_documents_of_their_own() -> None:
    documents = Documents().tell(added("m-1", "mine", tenant_id="a"), added("m-1", "theirs", tenant_id="b"))
    documents.tell(deleted(tenant_id="a"))
    assert {document.tenant_id for document in documents.all.values()} == {"b"}
    assert documents.thread(tenant_id="b").title == "theirs"


def test_every_event_of_the_contract_is_projected() -> None:
    assert Documents().tell(*EXAMPLES).kinds() == ["thread", "turn"]


def _asks(message_id: str, call_id: str, *, thread_id: str, seconds: int) -> MessageAdded:
    """The id of a call is derived from its message, and no other's."""
    return asks(message_id, f"{thread_id}/{message_id}/{call_id}", thread_id=thread_id, seconds=seconds)


THREADS = st.sampled_from(["t-1", "t-2"])
SECONDS = st.integers(0, 9)
USERS = st.sampled_from([None, "u-1", "u-2"])
TEXTS = st.sampled_from(["", "hello", "bye"])
IDS = st.sampled_from(["1", "2", "3"])
HISTORIES = st.lists(
    st.one_of(
        st.builds(added, IDS, TEXTS, thread_id=THREADS, seconds=SECONDS, user_id=USERS),
        st.builds(_asks, IDS, IDS, thread_id=THREADS, seconds=SECONDS),
        st.builds(created, THREADS, seconds=SECONDS, title=st.sampled_from([None, "A", "B"]), user_id=USERS),
        st.builds(
            updated,
            THREADS,
            seconds=SECONDS,
            title=st.sampled_from([None, "C"]),
            cleared=st.sampled_from([[], ["title"], ["title", "metadata"]]),
            status=st.sampled_from([None, "archived"]),
        ),
        st.builds(deleted, THREADS),
        st.builds(removed, IDS, thread_id=THREADS),
        st.builds(removed, thread_id=THREADS, from_position=st.integers(0, 20), to_position=st.integers(0, 20)),
        st.builds(opened, IDS, thread_id=THREADS, seconds=SECONDS, user_id=USERS),
        st.builds(waiting, IDS, thread_id=THREADS),
        st.builds(closed, IDS, thread_id=THREADS),
    ),
    max_size=25,
)


@settings(deadline=None, max_examples=300)
@given(history=HISTORIES, data=st.data())
def test_batches_and_replays_after_crashes_make_no_difference(history: list[JournalEvent], data: st.DataObject) -> None:
    once = Documents()
    for event in history:
        once.tell(event)
    crashing = Documents()
    stored = 0
    for _ in range(data.draw(st.integers(0, 4), label="crashes")):
        end = data.draw(st.integers(stored, len(history)), label="killed at")
        for first, size in _batches(data, stored, end):
            crashing.batch(first, history[first : first + size])
        stored = data.draw(st.integers(stored, end), label="offset stored by then")
    for first, size in _batches(data, stored, len(history)):
        crashing.batch(first, history[first : first + size])
    assert crashing.all == once.all


def _batches(data: st.DataObject, begin: int, end: int) -> list[tuple[int, int]]:
    batches: list[tuple[int, int]] = []
    while begin < end:
        size = data.draw(st.integers(1, end - begin), label="batch")
        batches.append((begin, size))
        begin += size
    return batches


@given(st.text(), st.text())
def test_a_point_is_a_uuid_of_the_fifth_version(tenant: str, name: str) -> None:
    point = point_id("message", tenant, name)
    assert (str(UUID(point)), UUID(point).version, UUID(point).variant) == (point, 5, RFC_4122)
