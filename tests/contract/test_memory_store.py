"""What memory's store promises, on the engine in process and on a cluster.

The cluster is TURNLOG_TEST_QDRANT_URL, each test with a collection of its own; else the mode of qdrant-client that
keeps everything in the process. It answers as a cluster does but forgets: what is durable there, a cluster shows.
"""

import asyncio
import os
import random
import shutil
import signal
import sys
import time
import unicodedata
import warnings
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import qdrant_edge
from qdrant_client import AsyncQdrantClient
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from services.memory import qdrant_optimise
from services.memory.qdrant_edge import EdgeMemoryStore
from services.memory.qdrant_server import CollectionLayout, ServerMemoryStore
from services.memory.qdrant_shard import BATCH
from services.memory.settings import Quantization
from services.memory.store import Changes, Document, Find, Hit, MemoryStore, Range, point_id
from services.runtime.errors import ConfigurationError, UnavailableError
from tests.support.installation import free_ports
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]

SERVER = os.environ.get("TURNLOG_TEST_QDRANT_URL")

CHILD = """
import asyncio, sys
from pathlib import Path
from services.memory.qdrant_edge import EdgeMemoryStore
from services.memory.store import Changes
from tests.contract.test_memory_store import message

async def main():
    store = EdgeMemoryStore(Path(sys.argv[1]))
    await store.open()
    for offset in range(int(sys.argv[2]), 1_000_000):
        await store.write(0, Changes([message(offset)]), offset + 1)
        print(offset + 1, flush=True)

asyncio.run(main())
"""


def message(
    position: int, text: str = "", *, tenant_id: str = "acme", thread_id: str = "t-1", **fields: Any
) -> Document:
    return Document(
        point_id("message", tenant_id, f"m-{position}"),
        "message",
        tenant_id,
        {"thread_id": thread_id, "position": position, "role": "user", **fields},
        f'{{"position": {position}}}',
        text,
    )


def messages(tenant_id: str = "acme", **where: str) -> Find:
    return Find("message", tenant_id, where)


async def positions_of(store: MemoryStore, find: Find, **options: Any) -> list[Any]:
    found = await store.scroll(find, **({"order_by": "position", "descending": False, "limit": 1_000_000} | options))
    return [each.value for each in found]


async def found_by(store: MemoryStore, hits: Sequence[Hit]) -> list[tuple[Document, Hit]]:
    """The documents of hits, in their order."""
    documents = {each.point_id: each for each in await store.get([hit.point_id for hit in hits])}
    return [(documents[hit.point_id], hit) for hit in hits]


async def texts_found(store: MemoryStore, find: Find, text: str, limit: int = 10) -> list[str]:
    found = await found_by(store, await store.search(find, text, limit))
    return [str(document.fields["position"]) for document, _ in found]


async def test_what_is_written_can_be_read_at_once(store: MemoryStore) -> None:
    written = message(7, "a text", user_id="u-1")
    await store.write(2, Changes([written]), 8)
    (read,) = await store.get([written.point_id, point_id("message", "acme", "nobody")])
    assert (read.point_id, read.kind, read.tenant_id, read.body) == (
        written.point_id,
        "message",
        "acme",
        '{"position": 7}',
    )
    assert read.fields == {"thread_id": "t-1", "position": 7, "role": "user", "user_id": "u-1"}


async def test_a_field_of_several_words_is_found_by_each_of_them(store: MemoryStore) -> None:
    written = Document(
        point_id("thread", "acme", "t-1"), "thread", "acme", {"user_id": ["u-1", "u-2"], "updated": 1}, "{}", "plans"
    )
    await store.write(0, Changes([written]), 1)
    for user_id, count in (("u-1", 1), ("u-2", 1), ("u-3", 0)):
        find = Find("thread", "acme", {"user_id": user_id})
        found = await store.scroll(find, order_by="updated", descending=True, limit=9)
        assert [each.fields for each in await store.get([each.point_id for each in found])] == [written.fields] * count
        assert len(await store.search(find, "plans", 9)) == count


async def test_nothing_asked_for_is_nothing_found(store: MemoryStore) -> None:
    assert await store.get([]) == []
    assert await store.bodies([]) == {}
    assert await store.positions() == {}
    assert await positions_of(store, messages()) == []
    assert await store.search(messages(), "anything", 10) == []


async def test_a_batch_of_any_size_is_written_whole(store: MemoryStore) -> None:
    count = 3 * BATCH + 1
    await store.write(0, Changes([message(position, f"number {position}") for position in range(count)]), count)
    assert await positions_of(store, messages()) == list(range(count))
    found = await store.get([message(position).point_id for position in range(count)])
    assert {each.fields["position"] for each in found} == set(range(count))
    bodies = await store.bodies([message(1).point_id, point_id("message", "acme", "nobody")])
    assert bodies == {message(1).point_id: message(1).body}


async def test_writing_again_changes_nothing(store: MemoryStore) -> None:
    changes = Changes(
        [message(1, "green apples"), message(2, "red apples"), message(3)],
        [message(4).point_id],
        [messages(thread_id="t-2")],
    )
    await store.write(0, Changes([message(4), message(5, thread_id="t-2")]), 1)
    for _ in range(3):
        await store.write(0, changes, 6)
        assert await positions_of(store, messages()) == [1, 2, 3]
        assert sorted(await texts_found(store, messages(), "apples")) == ["1", "2"]


async def test_a_document_replaces_the_one_of_its_identity(store: MemoryStore) -> None:
    old, new = message(1, "pears", user_id="u-1"), message(1, "plums")
    await store.write(0, Changes([old]), 2)
    await store.write(0, Changes([new]), 3)
    (read,) = await store.get([old.point_id])
    assert "user_id" not in read.fields
    assert await texts_found(store, messages(), "pears") == []
    assert await texts_found(store, messages(), "plums") == ["1"]


async def test_every_field_of_a_filter_must_hold(store: MemoryStore) -> None:
    await store.write(
        0,
        Changes(
            [
                message(1, user_id="u-1"),
                message(2, user_id="u-2"),
                message(3, user_id="u-1", thread_id="t-2"),
                message(4, role="tool", about="tools"),
            ]
        ),
        5,
    )
    assert await positions_of(store, messages(user_id="u-1")) == [1, 3]
    assert await positions_of(store, messages(user_id="u-1", thread_id="t-2")) == [3]
    assert await positions_of(store, messages(user_id="nobody")) == []
    assert await positions_of(store, Find("message", "acme", {}, {"about": "tools"})) == [1, 2, 3]
    assert await positions_of(store, Find("message", "acme", {"thread_id": "t-1"}, {"role": "user"})) == [4]


async def test_documents_are_counted_exactly(store: MemoryStore) -> None:
    await store.write(0, Changes([message(position, user_id=f"u-{position % 3}") for position in range(700)]), 700)
    assert await store.count(messages()) == 700
    assert await store.count(messages(user_id="u-0")) == 234
    assert await store.count(Find("message", "acme", between={"position": Range(above=9, below=20)})) == 10
    assert await store.count(messages("other")) == await store.count(Find("thread", "acme")) == 0


async def test_kinds_are_apart(store: MemoryStore) -> None:
    thread = Document(
        point_id("thread", "acme", "t-1"), "thread", "acme", {"thread_id": "t-1", "updated": 5}, "{}", "x"
    )
    await store.write(0, Changes([message(1, "x"), thread]), 2)
    assert await positions_of(store, messages()) == [1]
    listed = await store.scroll(Find("thread", "acme"), order_by="updated", descending=True, limit=9)
    assert [each.point_id for each in listed] == [thread.point_id]
    assert await texts_found(store, messages(), "x") == ["1"]


async def test_order_is_that_of_the_field_and_bounds_are_exclusive(store: MemoryStore) -> None:
    shuffled = list(range(0, 40, 2))
    random.Random(7).shuffle(shuffled)
    for position in shuffled:
        await store.write(0, Changes([message(position)]), 100)
    assert await positions_of(store, messages()) == list(range(0, 40, 2))
    assert await positions_of(store, messages(), descending=True, limit=3) == [38, 36, 34]
    assert await positions_of(store, messages(), limit=3, within=Range(above=4)) == [6, 8, 10]
    assert await positions_of(store, messages(), limit=3, within=Range(above=5)) == [6, 8, 10]
    assert await positions_of(store, messages(), descending=True, limit=3, within=Range(below=6)) == [4, 2, 0]
    assert await positions_of(store, messages(), within=Range(above=4, below=10)) == [6, 8]
    assert await positions_of(store, messages(), within=Range(above=38)) == []


async def test_microseconds_are_ordered_exactly(store: MemoryStore) -> None:
    now = 4_102_444_800_000_000
    await store.write(0, Changes([message(now + each) for each in (2, 0, 1)]), 1)
    assert await positions_of(store, messages()) == [now, now + 1, now + 2]
    assert await positions_of(store, messages(), within=Range(above=now, below=now + 2)) == [now + 1]


async def test_equal_documents_keep_their_order_whatever_the_limit(store: MemoryStore) -> None:
    equal = [Document(point_id("thread", "acme", str(n)), "thread", "acme", {"updated": 5}, "{}") for n in range(20)]
    await store.write(0, Changes(equal), 1)
    for descending in (False, True):
        orders = [
            [
                each.point_id
                for each in await store.scroll(
                    Find("thread", "acme"), order_by="updated", descending=descending, limit=limit
                )
            ]
            for limit in (3, 12, 20)
        ]
        assert len(set(orders[2])) == 20
        assert orders[0] == orders[2][:3]
        assert orders[1] == orders[2][:12]


async def test_deletes_remove_documents_and_what_they_were_found_by(store: MemoryStore) -> None:
    await store.write(0, Changes([message(each, "quinces") for each in range(4)]), 4)
    await store.write(0, Changes(deletes=[message(1).point_id, message(3).point_id, message(9).point_id]), 5)
    assert await store.get([message(1).point_id]) == []
    assert await positions_of(store, messages()) == [0, 2]
    assert sorted(await texts_found(store, messages(), "quinces")) == ["0", "2"]


async def test_whole_threads_are_deleted_before_the_rest_is_written(store: MemoryStore) -> None:
    await store.write(0, Changes([message(1), message(2), message(3, thread_id="t-2")]), 4)
    await store.write(0, Changes([message(5)], delete_all=[messages(thread_id="t-1")]), 6)
    assert await positions_of(store, messages()) == [3, 5]


async def test_tenants_are_apart(store: MemoryStore) -> None:
    mine, theirs = message(1, "figs"), message(1, "figs and dates", tenant_id="other")
    assert mine.point_id != theirs.point_id
    await store.write(0, Changes([mine, theirs, message(2, "figs")]), 3)
    assert await positions_of(store, messages()) == [1, 2]
    assert await positions_of(store, messages("other")) == [1]
    hits = await store.search(messages("other"), "figs", 10)
    assert [document.tenant_id for document, _ in await found_by(store, hits)] == ["other"]
    for find in (Find("message", "acme", {"tenant_id": "other"}), Find("message", "other", {"kind": "thread"})):
        assert await positions_of(store, find) == await positions_of(store, messages(find.tenant_id))
    await store.write(0, Changes(delete_all=[messages(thread_id="t-1")]), 4)
    assert await positions_of(store, messages()) == []
    assert await positions_of(store, messages("other")) == [1]


async def test_what_is_deleted_as_a_whole_may_be_bounded_and_goes_before_what_is_written(store: MemoryStore) -> None:
    await store.write(0, Changes([message(position) for position in range(6)]), 6)
    within = Find("message", "acme", {"thread_id": "t-1"}, between={"position": Range(above=0, below=4)})
    await store.write(0, Changes([message(2, "plums")], [message(5).point_id], [within]), 7)
    assert await positions_of(store, messages()) == [0, 2, 4]
    assert await texts_found(store, messages(), "plums") == ["2"]


async def test_text_search_gives_the_best_first(store: MemoryStore) -> None:
    await store.write(
        0,
        Changes(
            [
                message(1, "The invoice of March was paid"),
                message(2, "An invoice, and another invoice: which invoices are still unpaid?"),
                message(3, "The weather in Lisbon"),
                message(4, "Lisbon invoice"),
                message(5),
            ]
        ),
        6,
    )
    hits = await store.search(messages(), "Lisbon invoice", 10)
    positions = [document.fields["position"] for document, _ in await found_by(store, hits)]
    assert positions[0] == 4
    assert {*positions} == {1, 2, 3, 4}
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] > 0
    assert len(await store.search(messages(), "Lisbon invoice", 2)) == 2


async def test_a_hit_says_how_many_of_the_words_it_has(store: MemoryStore) -> None:
    texts = ["green apples and pears", "an apple", "pears, more pears", "Grünkohl"]
    await store.write(0, Changes([message(number, text) for number, text in enumerate(texts)]), 4)
    hits = await store.search(messages(), "the green apple or a pear tree", 10)
    found = await found_by(store, hits)
    assert {document.fields["position"]: hit.matched for document, hit in found} == {0: 0.75, 1: 0.25, 2: 0.25}


async def test_text_search_finds_words_in_other_forms_and_cases(store: MemoryStore) -> None:
    await store.write(
        0, Changes([message(1, "He was RUNNING to the stations"), message(2, "Ünïcode: naïve café 東京")]), 3
    )
    assert await texts_found(store, messages(), "runs station") == ["1"]
    assert await texts_found(store, messages(), "café") == ["2"]


@pytest.mark.parametrize("text", ["", "   ", "the of and", "?!", "\x00"])
async def test_text_without_a_word_finds_nothing(store: MemoryStore, text: str) -> None:
    await store.write(0, Changes([message(1, "the of and something")]), 2)
    assert await store.search(messages(), text, 10) == []


async def test_text_search_keeps_to_its_filter(store: MemoryStore) -> None:
    await store.write(
        0,
        Changes(
            [
                message(1, "plum", thread_id="t-1"),
                message(2, "plum", thread_id="t-2"),
                message(3, "plum", about="tools"),
            ]
        ),
        4,
    )
    assert await texts_found(store, messages(thread_id="t-2"), "plum") == ["2"]
    assert await texts_found(store, Find("message", "acme", {"thread_id": "t-1"}, {"about": "tools"}), "plum") == ["1"]


async def test_a_document_has_one_of_several_words(store: MemoryStore) -> None:
    said = [message(number, "plum", thread_id=f"t-{number}") for number in range(3)]
    await store.write(0, Changes([*said, message(9, "plum", tenant_id="other", thread_id="t-1")]), 4)
    for words, positions in ((["t-0", "t-2", "t-8"], [0, 2]), (["t-1"], [1]), ([], [])):
        find = Find("message", "acme", among={"thread_id": words})
        assert await positions_of(store, find) == positions
        assert sorted(await texts_found(store, find, "plum")) == [str(each) for each in positions]


async def test_a_document_has_what_is_required_and_one_of_several_words_of_the_same_field(store: MemoryStore) -> None:
    await store.write(0, Changes([message(number, "plum", thread_id=f"t-{number}") for number in range(3)]), 3)
    for words, positions in ((["t-1"], [1]), (["t-2"], []), (["t-0", "t-2"], []), (["t-0", "t-1"], [1]), ([], [])):
        find = Find("message", "acme", {"thread_id": "t-1"}, among={"thread_id": words})
        assert await positions_of(store, find) == positions
        assert await store.count(find) == len(positions)


ANY_WORDS = ["a b", "a=b", "kind=thread", "A", "a", "%20", "é", "e\u0301", "\u3000", "\x00", "", "[]", "長" * 200]


async def test_a_field_may_hold_any_text(store: MemoryStore) -> None:
    """Each is found by itself alone, and is read as it was written."""
    written = [message(number, "plum", user_id=text) for number, text in enumerate(ANY_WORDS)]
    listed = message(99, "plum", user_id=ANY_WORDS)
    await store.write(0, Changes([*written, listed, message(100, user_id=[])]), 101)
    for number, text in enumerate(ANY_WORDS):
        find = messages(user_id=text)
        assert await positions_of(store, find) == [number, 99], text
        assert await positions_of(store, Find("message", "acme", among={"user_id": [text, "nobody"]})) == [number, 99]
        assert number not in await positions_of(store, Find("message", "acme", without={"user_id": text}))
    read = {
        each.fields["position"]: each.fields["user_id"] for each in await store.of_partition(0, after=None, limit=99)
    }
    assert read == {**dict(enumerate(ANY_WORDS)), 99: ANY_WORDS, 100: []}


async def test_what_a_tenant_writes_moves_no_hit_of_another(store: MemoryStore) -> None:
    """A word that many use says little: whoever sees how little knows that others use it."""
    await store.write(0, Changes([message(1, "kestrel"), message(2, "plover plover")]), 3)
    before = await texts_found(store, Find("message", "acme"), "kestrel plover")
    score = (await store.search(Find("message", "acme"), "kestrel", 1))[0].score
    theirs = [message(number, "plover kestrel", tenant_id="other") for number in range(100, 200)]
    await store.write(0, Changes([*theirs, *(message(each, "kestrel", tenant_id="third") for each in range(99))]), 200)
    assert await texts_found(store, Find("message", "acme"), "kestrel plover") == before
    assert (await store.search(Find("message", "acme"), "kestrel", 1))[0].score >= score
    assert len(await store.search(Find("message", "other"), "kestrel", 500)) == 100


async def test_a_search_keeps_to_the_bounds_of_a_field(store: MemoryStore) -> None:
    now = 4_102_444_800_000_000
    await store.write(0, Changes([message(number, "plum", created=now + number) for number in range(4)]), 4)
    for bounds, found in (
        (Range(), ["0", "1", "2", "3"]),
        (Range(above=now), ["1", "2", "3"]),
        (Range(below=now + 1), ["0"]),
        (Range(above=now, below=now + 3), ["1", "2"]),
    ):
        find = Find("message", "acme", between={"created": bounds})
        assert sorted(await texts_found(store, find, "plum")) == found
        assert sorted(map(str, await positions_of(store, find))) == found


def test_words_of_a_query_are_marked_in_whatever_form(store: MemoryStore) -> None:
    text = "Running, the RUNNERS ran to the station; naïve café 🚲 run."
    marker = store.marker("runs to the CAFÉ or stations")
    assert [text[start:end] for start, end in marker(text)] == ["Running", "station", "café", "run"]
    assert marker("") == []
    assert store.marker("the of ?!")(text) == []


async def test_a_letter_and_its_accent_are_one_whether_written_as_one_character_or_as_two(store: MemoryStore) -> None:
    forms = {form: unicodedata.normalize(form, "Frau Müller") for form in ("NFC", "NFD")}
    await store.write(0, Changes([message(number, text) for number, text in enumerate(forms.values())]), 2)
    for query in forms.values():
        assert sorted(await texts_found(store, Find("message", "acme"), query)) == ["0", "1"]


async def everything(store: MemoryStore, partition: int | None, page: int = 3) -> list[Document]:
    """The documents of a partition, page by page."""
    found: list[Document] = []
    while True:
        some = await store.of_partition(partition, after=found[-1].point_id if found else None, limit=page)
        if not some:
            return found
        found += some


async def test_documents_are_listed_by_partition_in_pages_that_repeat_and_leave_out_none(store: MemoryStore) -> None:
    written = {0: [message(each) for each in range(10)], 5: [message(each) for each in range(10, 13)]}
    for partition, documents in written.items():
        await store.write(partition, Changes(documents), 20)
    for partition, documents in written.items():
        assert [each.point_id for each in await everything(store, partition)] == sorted(d.point_id for d in documents)
    assert [each.fields for each in await everything(store, 5)] == [
        each.fields for each in sorted(written[5], key=lambda document: document.point_id)
    ]
    assert await everything(store, 1) == []
    assert await everything(store, None) == []


async def test_a_page_begins_behind_a_document_that_is_gone(store: MemoryStore) -> None:
    ids = sorted(message(each).point_id for each in range(6))
    await store.write(0, Changes([message(each) for each in range(6)]), 6)
    await store.write(0, Changes(deletes=[ids[2]]), 7)
    assert [each.point_id for each in await store.of_partition(0, after=ids[2], limit=2)] == ids[3:5]


async def test_a_build_is_beside_the_live_store_until_the_switch(store: MemoryStore) -> None:
    await store.write(0, Changes([message(1, "old figs")]), 2)
    build = await store.begin_build()
    await build.write(0, Changes([message(7, "new figs"), message(8)]), 9)
    await build.write(3, Changes(), 4)
    await store.write(0, Changes([message(2)]), 3)
    assert await positions_of(store, messages()) == [1, 2]
    assert await texts_found(store, messages(), "figs") == ["1"]
    assert [each.fields["position"] for each in await build.get([message(7).point_id, message(1).point_id])] == [7]
    await store.switch()
    for _ in range(2):
        assert await positions_of(store, messages()) == [7, 8]
        assert await texts_found(store, messages(), "figs") == ["7"]
        assert await store.positions() == {0: 9, 3: 4}
        await store.clean()
    await store.write(0, Changes([message(9)]), 10)
    assert await positions_of(store, messages()) == [7, 8, 9]


async def test_a_build_is_optimised_and_goes_on(edge: EdgeMemoryStore) -> None:
    store, build = edge, await edge.begin_build()
    await build.write(0, Changes([message(position, f"number {position}") for position in range(300)]), 300)
    await store.optimise_build()
    await build.write(0, Changes([message(300, "one more")]), 301)
    assert await build.count(messages()) == 301
    await store.switch()
    assert await positions_of(store, messages()) == list(range(301))
    assert await texts_found(store, messages(), "number 7", 1) == ["7"]
    assert await store.positions() == {0: 301}


async def test_nothing_is_optimised_for_a_process_that_is_gone(tmp_path: Path) -> None:
    program = (sys.executable, "-m", qdrant_optimise.__name__, str(tmp_path), "1")
    child = await asyncio.create_subprocess_exec(*program, stderr=asyncio.subprocess.PIPE)
    _, said = await child.communicate()
    assert (child.returncode, said.decode().strip()) == (1, "whoever has started this is gone")


async def test_a_build_that_cannot_be_optimised_says_so_and_leaves_the_live_store(edge: EdgeMemoryStore) -> None:
    await edge.write(0, Changes([message(1)]), 2)
    with pytest.raises(UnavailableError, match="nothing was built"):
        await edge.optimise_build()
    await edge.begin_build()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("services.memory.qdrant_optimise.__name__", "no.such.module")
        with pytest.raises(UnavailableError, match=r"cannot be optimised \(1\)"):
            await edge.optimise_build()
    await edge.clean()
    assert await positions_of(edge, messages()) == [1]


async def test_a_build_that_is_not_to_be_leaves_no_trace(store: MemoryStore) -> None:
    await store.write(0, Changes([message(1)]), 2)
    for _ in range(2):
        build = await store.begin_build()
        assert await build.get([message(7).point_id]) == []
        await build.write(0, Changes([message(7)]), 8)
    await store.clean()
    assert await positions_of(store, messages()) == [1]
    with pytest.raises(UnavailableError, match="nothing was built"):
        await store.switch()


async def test_a_store_can_be_built_again_and_again(store: MemoryStore) -> None:
    for number in range(3):
        build = await store.begin_build()
        await build.write(0, Changes([message(number)]), number + 1)
        await store.switch()
        await store.clean()
        assert await positions_of(store, messages()) == [number]


async def test_a_store_that_is_not_open_says_that_it_is_unavailable(tmp_path: Path) -> None:
    store = EdgeMemoryStore(tmp_path / "memory")
    for call in (
        store.positions(),
        store.get([message(1).point_id]),
        positions_of(store, messages()),
        store.search(messages(), "word", 1),
        store.write(0, Changes([message(1)]), 2),
    ):
        with pytest.raises(UnavailableError, match="not open"):
            await call
    await store.close()


async def test_a_cluster_holds_the_offsets_at_once(server: ServerMemoryStore) -> None:
    await server.write(0, Changes([message(1)]), 2)
    await server.write(3, Changes(), 40)
    await server.write(0, Changes([message(2)]), 3)
    assert await server.positions() == {0: 3, 3: 40}


@pytest.mark.parametrize(
    ("quantization", "config"),
    [
        ("none", None),
        ("scalar", {"scalar": {"type": "int8", "always_ram": True}}),
        ("binary", {"binary": {"always_ram": True}}),
    ],
)
async def test_every_collection_of_a_cluster_is_made_as_the_settings_say(
    quantization: Quantization, config: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, made = AsyncQdrantClient(location=":memory:"), list[dict[str, Any]]()
    create = client.create_collection

    async def recording(name: str, **options: Any) -> bool:
        made.append(options)
        return await create(name, **options)

    monkeypatch.setattr(client, "create_collection", recording)
    store = ServerMemoryStore(":memory:", collection="test", layout=CollectionLayout(3, 2, quantization), client=client)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Payload indexes have no effect in the local Qdrant", UserWarning)
        await store.open()
        await store.begin_build()
    await store.close()
    assert len(made) == 2
    for options in made:
        given = options["quantization_config"]
        assert (options["shard_number"], options["replication_factor"]) == (3, 2)
        assert (given and given.model_dump(mode="json", exclude_none=True)) == config


async def test_opening_a_collection_again_leaves_it_as_it_is(server: ServerMemoryStore) -> None:
    await server.write(0, Changes([message(1)]), 2)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Payload indexes have no effect in the local Qdrant", UserWarning)
        await server.open()
    assert await positions_of(server, messages()) == [1]
    assert await server.positions() == {0: 2}


async def test_a_cluster_that_does_not_answer_is_unavailable_and_named() -> None:
    url = f"http://127.0.0.1:{free_ports(1)}"
    store = ServerMemoryStore(url, collection="c")
    calls: list[Callable[[], Awaitable[Any]]] = [
        store.open,
        store.positions,
        lambda: store.get([message(1).point_id]),
        lambda: positions_of(store, messages()),
        lambda: store.search(messages(), "word", 1),
        lambda: store.write(0, Changes([message(1)]), 2),
    ]
    for call in calls:
        with pytest.raises(UnavailableError, match=url):
            await call()
    await store.close()


class Refusing(AsyncQdrantClient):
    """Answers every question about collections with one error."""

    def __init__(self, error: Exception) -> None:
        super().__init__(location=":memory:")
        self._error = error

    async def collection_exists(self, collection_name: str, **_: Any) -> bool:
        raise self._error


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (UnexpectedResponse(401, "Unauthorized", b"no", None), ConfigurationError),
        (UnexpectedResponse(403, "Forbidden", b"no", None), ConfigurationError),
        (UnexpectedResponse(500, "Internal Server Error", b"no", None), UnavailableError),
        (ResponseHandlingException(TimeoutError("slow")), UnavailableError),
    ],
)
async def test_a_key_that_is_refused_is_no_outage(error: Exception, raised: type[Exception]) -> None:
    store = ServerMemoryStore("http://q:6333", collection="c", client=Refusing(error))
    with pytest.raises(raised, match="http://q:6333"):
        await store.open()
    await store.close()


def test_an_address_that_is_none_is_a_wrong_setting() -> None:
    with pytest.raises(ConfigurationError, match="TURNLOG_QDRANT_URL"):
        ServerMemoryStore("ftp://somewhere", collection="c")


async def test_what_was_written_is_there_when_the_folder_is_opened_again(tmp_path: Path) -> None:
    for start in (0, 300, 600):
        store = EdgeMemoryStore(tmp_path / "memory")
        await store.open()
        assert await store.positions() == ({0: start, 1: 7} if start else {})
        await store.write(
            0, Changes([message(each, f"apple {each}") for each in range(start, start + 300)]), start + 300
        )
        await store.write(1, Changes(), 7)
        assert await positions_of(store, messages()) == list(range(start + 300))
        await store.close()
    store = EdgeMemoryStore(tmp_path / "memory")
    await store.open()
    assert await texts_found(store, messages(), "apple 599", limit=1) == ["599"]
    await store.close()


async def test_offsets_are_stored_without_a_stop(edge: EdgeMemoryStore) -> None:
    await edge.write(0, Changes([message(1)]), 2)

    async def stored() -> bool:
        return await edge.positions() == {0: 2}

    await eventually(stored, "the offset of what was written", seconds=10)


async def test_a_process_that_is_killed_has_stored_no_offset_beyond_its_data(tmp_path: Path) -> None:
    """Every time it goes on where the store says, as a projection does, and is killed at some other moment."""
    folder, stored = tmp_path / "memory", 0
    for seconds in (0.3, 1.5, 2.8):
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CHILD, str(folder), str(stored), cwd=ROOT, stdout=asyncio.subprocess.PIPE
        )
        assert child.stdout is not None
        written = int(await child.stdout.readline())
        deadline = time.monotonic() + seconds
        async with asyncio.timeout(60):
            while time.monotonic() < deadline:
                written = int(await child.stdout.readline())
            child.send_signal(signal.SIGKILL)
            rest = await child.stdout.read()
            await child.wait()
        written = int((rest.split() or [b"%d" % written])[-1]) if rest.endswith(b"\n") else written
        store = EdgeMemoryStore(folder)
        await store.open()
        stored = (await store.positions()).get(0, 0)
        there = await positions_of(store, messages())
        await store.close()
        assert stored <= len(there)
        assert there == list(range(len(there)))
        assert len(there) >= written, "what a write has returned from outlives the process"
    assert stored > 0


async def test_a_folder_is_open_in_one_process_at_a_time(edge: EdgeMemoryStore, tmp_path: Path) -> None:
    other = EdgeMemoryStore(tmp_path / "memory")
    with pytest.raises(ConfigurationError, match="TURNLOG_DATA_DIR"):
        await other.open()
    await other.close()
    await edge.write(0, Changes([message(1)]), 2)
    assert await positions_of(edge, messages()) == [1]


async def test_a_folder_is_free_after_a_close(tmp_path: Path) -> None:
    for _ in range(2):
        store = EdgeMemoryStore(tmp_path / "memory")
        await store.open()
        await store.close()


async def test_a_first_start_that_was_killed_leaves_no_half_of_a_store(tmp_path: Path) -> None:
    half = tmp_path / "memory" / "shard-1" / "wal"
    half.mkdir(parents=True)
    store = EdgeMemoryStore(tmp_path / "memory")
    await store.open()
    await store.write(0, Changes([message(2), message(1)]), 3)
    assert await positions_of(store, messages()) == [1, 2]
    await store.close()


async def test_a_build_outlives_the_process_from_the_switch_on_and_not_before(tmp_path: Path) -> None:
    """What a process that is killed leaves in its folder is copied as it is, and opened by the next one."""
    store, moments = EdgeMemoryStore(tmp_path / "memory"), tmp_path / "moments"
    await store.open()
    await store.write(0, Changes([message(1)]), 2)
    build = await store.begin_build()
    await build.write(0, Changes([message(each) for each in range(5)]), 5)
    shutil.copytree(tmp_path / "memory", moments / "before")
    await store.switch()
    shutil.copytree(tmp_path / "memory", moments / "after")
    await store.clean()
    shutil.copytree(tmp_path / "memory", moments / "cleaned")
    await store.close()
    for moment, there, shard in (("before", [1], "shard-1"), ("after", [*range(5)], "shard-2")):
        left = EdgeMemoryStore(moments / moment)
        await left.open()
        assert await positions_of(left, messages()) == there
        assert [each.name for each in (moments / moment).glob("shard*")] == [shard]
        if moment == "after":
            assert await left.positions() == {0: 5}
        await left.close()
    assert [each.name for each in (moments / "cleaned").glob("shard*")] == ["shard-2"]


async def test_a_cluster_forgets_a_build_that_a_process_left_behind(server: ServerMemoryStore) -> None:
    await server.write(0, Changes([message(1)]), 2)
    await (await server.begin_build()).write(0, Changes([message(7)]), 8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Payload indexes have no effect in the local Qdrant", UserWarning)
        await server.open()
        assert await positions_of(server, messages()) == [1]
        build = await server.begin_build()
        assert await build.get([message(7).point_id]) == []


async def test_a_collection_that_has_the_name_of_the_alias_says_what_to_do() -> None:
    client = AsyncQdrantClient(url=SERVER) if SERVER else AsyncQdrantClient(location=":memory:")
    name = f"test-{uuid4().hex}"
    await client.create_collection(name, vectors_config={})
    store = ServerMemoryStore("http://q:6333", collection=name, client=client)
    with pytest.raises(ConfigurationError, match="TURNLOG_QDRANT_COLLECTION"):
        await store.open()
    await client.delete_collection(name)
    await store.close()


async def test_a_folder_that_cannot_be_read_says_what_to_do(tmp_path: Path) -> None:
    shard = tmp_path / "memory" / "shard-7"
    shard.mkdir(parents=True)
    (shard.parent / "current").write_text("shard-7")
    (shard / "edge_config.json").write_text("garbage")
    store = EdgeMemoryStore(tmp_path / "memory")
    with pytest.raises(ConfigurationError, match="remove it, and memory is rebuilt"):
        await store.open()
    await store.close()
    shutil.rmtree(tmp_path / "memory")
    again = EdgeMemoryStore(tmp_path / "memory")
    await again.open()
    await again.close()


async def test_what_an_earlier_release_has_stored_otherwise_is_read_from_the_log_again(tmp_path: Path) -> None:
    """One that is killed over it finds either the old shard or a new one that is empty."""
    (tmp_path / "shard-7").mkdir()
    earlier = qdrant_edge.EdgeShard.create(
        str(tmp_path / "shard-7"),
        qdrant_edge.EdgeConfig(sparse_vectors={"text": qdrant_edge.EdgeSparseVectorParams()}, wal_enabled=True),
    )
    earlier.update(qdrant_edge.UpdateOperation.create_field_index("kind", qdrant_edge.PayloadSchemaType.Keyword))
    offset = qdrant_edge.Point(id=0, vector={}, payload={"kind": "offset", "partition": 0, "next_offset": 300})
    earlier.update(qdrant_edge.UpdateOperation.upsert_points([offset]))
    earlier.flush()
    earlier.close()
    (tmp_path / "current").write_text("shard-7")
    for known in ({}, {0: 2}):
        store = EdgeMemoryStore(tmp_path)
        await store.open()
        assert await store.positions() == known
        await store.write(0, Changes([message(1, "figs")]), 2)
        assert await texts_found(store, messages(), "figs") == ["1"]
        await store.close()
    assert [each.name for each in tmp_path.iterdir() if each.is_dir()] == ["shard-8"]


async def test_a_folder_that_cannot_be_made_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = EdgeMemoryStore(tmp_path / "file" / "memory")
    with pytest.raises(ConfigurationError, match="TURNLOG_DATA_DIR"):
        await store.open()
    await store.close()
