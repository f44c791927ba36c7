"""The reader of server-sent events, for every way in which bytes may be cut."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.agents.failures import CallFailed
from services.agents.server_sent_events import MOST_EVENT_BYTES, EventReader


def read(*pieces: bytes) -> list[bytes]:
    reader = EventReader()
    return [event for piece in pieces for event in reader.feed(piece)]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_line_ends_with_any_of_three_endings(end: bytes) -> None:
    assert read(end.join([b"data: one", b"", b"data:two", b"", b""])) == [b"one", b"two"]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: one\ndata: two\n\n", [b"one\ntwo"]),
        (b"data:  spaced \n\n", [b" spaced "]),
        (b": a comment\n:\n\ndata: one\n\n", [b"one"]),
        (b"event: ping\nid: 1\nretry: 5\n\ndata: one\n\n", [b"one"]),
        (b"event: message\ndata: one\nid: 7\n\n", [b"one"]),
        (b"data\ndata: one\ndata\n\n", [b"\none\n"]),
        (b"data:\n\n", [b""]),
        (b"database: no\ndata : no\n data: no\n\n", []),
        (b"\xef\xbb\xbfdata: one\n\n", [b"one"]),
        ("data: a\u2028b\u2029c\x85d\x0be\n\n".encode(), ["a\u2028b\u2029c\x85d\x0be".encode()]),
        (b"data: one\r\n\ndata: two\r\n\r\ndata: three\n\r\n", [b"one", b"two", b"three"]),
        (b"data: no end\n", []),
        (b"", []),
    ],
)
def test_what_is_an_event_and_what_is_none(stream: bytes, events: list[bytes]) -> None:
    assert read(stream) == events
    assert read(*(stream[index : index + 1] for index in range(len(stream)))) == events


FIELDS = st.sampled_from([b"data: ", b"data:", b"data", b": ", b"event: ", b"id:", b""])
VALUES = st.just(b"") | st.binary(max_size=4).map(lambda value: value.replace(b"\n", b"").replace(b"\r", b""))
LINES = st.lists(st.tuples(FIELDS, VALUES, st.sampled_from([b"\n", b"\r\n", b"\r"])).map(b"".join), max_size=20)


@given(LINES.map(b"".join), st.lists(st.integers(0, 300)))
def test_where_the_bytes_are_cut_changes_nothing(stream: bytes, cuts: list[int]) -> None:
    at = sorted({0, *(cut for cut in cuts if cut < len(stream)), len(stream)})
    pieces = [stream[begin:end] for begin, end in pairwise(at)]
    whole, in_pieces = EventReader(), EventReader()

    events = whole.feed(stream)

    assert [event for piece in pieces for event in in_pieces.feed(piece)] == events
    assert in_pieces.rest() == whole.rest()
    assert read(*(stream[index : index + 1] for index in range(len(stream)))) == events


@pytest.mark.parametrize("rest", [b"data: last", b"data: last\n", b"data: last\r\n"])
def test_an_event_without_its_end_is_the_rest(rest: bytes) -> None:
    reader = EventReader()

    assert reader.feed(b"data: one\n\n" + rest) == [b"one"]
    assert reader.rest() == b"last"


def test_nothing_is_left_of_a_stream_that_ends_well() -> None:
    reader = EventReader()
    reader.feed(b"data: one\n\n: bye\n")

    assert reader.rest() is None


@pytest.mark.parametrize("piece", [b"x" * 65536, b"data: " + b"x" * 65530, b"data: " + b"x" * 65529 + b"\n"])
def test_an_event_that_never_ends_is_given_up(piece: bytes) -> None:
    reader = EventReader()
    for _ in range(MOST_EVENT_BYTES // len(piece)):
        reader.feed(piece)

    with pytest.raises(CallFailed) as caught:
        reader.feed(piece)

    assert (caught.value.code, caught.value.retryable) == ("malformed_response", False)
