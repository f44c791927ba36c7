"""What the port promises, on chDB in process and on a server over HTTP.

The server is TURNLOG_TEST_CLICKHOUSE_URL (without a database; each test makes its own), else the stand-in of
`tests.support.clickhouse`. chDB takes one folder a process at a time and another one after it was closed, so each test
has a folder of its own here; what needs a second process, or one to kill, starts it.
"""

import asyncio
import functools
import json
import operator
import os
import random
import signal
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import astuple, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import clickhouse_connect
import pytest

from schemas.http import UsageDigest, UsageDimension
from schemas.usage import EXAMPLES, UsageRecorded
from services.runtime.errors import ConfigurationError, UnavailableError
from services.usage.clickhouse import ClickHouseUsageStore
from services.usage.fingerprint import hash_of, values_of
from services.usage.migrate import migrations, statements
from services.usage.pricing.cells import Boundaries, Cell, cell_of
from services.usage.queries import COLUMNS, EARLIEST, FILTERS, UsageGroup, UsageQuery
from services.usage.rows import EVENT_COLUMNS, check_event
from services.usage.store import Block, ReadBounds, TooMuchAskedError
from tests.support.clickhouse import ClickHouseServer
from tests.support.installation import free_ports

START = datetime(2026, 1, 31, 23, 30, tzinfo=UTC)

EXACT_AND_SUMMED: list[dict[str, Any]] = [
    {"since": datetime(1970, 1, 1, 0, 0, 0, 1, tzinfo=UTC)},
    {"since": datetime(1970, 1, 1, 0, 1, tzinfo=UTC)},
    {},
]
"""Questions about everything that the rows answer, the sums of minutes, and those of days."""

CHILD = """
import asyncio, json, signal, sys
from pathlib import Path
from schemas.usage import UsageRecorded
from services.runtime.errors import ConfigurationError
from services.usage.clickhouse import ClickHouseUsageStore
from services.usage.queries import UsageQuery
from services.usage.store import Block, ReadBounds, TooMuchAskedError

url, folder, what = sys.argv[1:]

async def main():
    store = ClickHouseUsageStore(url=url or None, folder=Path(folder))
    await store.open()
    if what == "query":
        rows = await store.query(UsageQuery("default", bucket="day"))
        print(json.dumps([row.group for row in rows]), flush=True)
        await store.close()
        return
    first, size, count, *seconds = json.loads(what)
    if seconds:
        signal.setitimer(signal.ITIMER_REAL, *seconds)  # nothing handles it: it ends the process as a kill does
    for begin in range(first, first + size * count, size):
        events = [
            (offset, UsageRecorded(usage_id=f"u{offset}", kind="tool", input_tokens=1, occurred_at="2026-01-01T00:00Z"))
            for offset in range(begin, begin + size)
        ]
        await store.insert(Block(0, begin, begin + size - 1, events))
        print(begin + size, flush=True)
    signal.pause()

try:
    asyncio.run(main())
except ConfigurationError as error:
    sys.exit(f"refused: {error}")
"""


@dataclass(frozen=True)
class Place:
    """Where the tables of one test are. `url` None is chDB."""

    url: str | None
    folder: Path

    def store(self) -> ClickHouseUsageStore:
        return ClickHouseUsageStore(url=self.url, folder=self.folder)

    def client(self) -> Any:
        if self.url is None:
            return clickhouse_connect.get_client(interface="chdb", path=str(self.folder / "chdb"))
        return clickhouse_connect.get_client(dsn=self.url)

    async def process(self, what: str, **environment: str) -> asyncio.subprocess.Process:
        """A process that has the same tables open."""
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", CHILD, self.url or "", str(self.folder), what),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | environment,
            cwd=Path(__file__).parents[2],
        )


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if given := os.environ.get("TURNLOG_TEST_CLICKHOUSE_URL"):
        yield given.rstrip("/")
        return
    stand_in = ClickHouseServer(tmp_path_factory.mktemp("clickhouse"), port=free_ports(1))
    stand_in.start()
    yield stand_in.url
    stand_in.kill()


@pytest.fixture(params=["chdb", "server"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "chdb":
        yield Place(None, tmp_path / "usage")
        return
    url, name = request.getfixturevalue("server"), f"test_{uuid4().hex[:12]}"
    with clickhouse_connect.get_client(dsn=url) as admin:
        admin.command(f"CREATE DATABASE {name}")
        yield Place(f"{url}/{name}", tmp_path / "usage")
        admin.command(f"DROP DATABASE {name}")


@pytest.fixture
async def store(place: Place) -> AsyncIterator[ClickHouseUsageStore]:
    opened = place.store()
    await opened.open()
    yield opened
    await opened.close()


def spent(number: int = 0, **fields: Any) -> UsageRecorded:
    fields = {"usage_id": f"u{number}", "kind": "completion", "input_tokens": 1, "occurred_at": START} | fields
    return UsageRecorded.model_validate(fields)


def block(*events: UsageRecorded, partition: int = 0, first: int = 0) -> Block:
    return Block(partition, first, first + len(events) - 1, list(enumerate(events, first)))


async def total(store: ClickHouseUsageStore, **filters: Any) -> UsageGroup:
    (row,) = await store.query(UsageQuery("default", **filters))
    return row


async def test_a_new_store_is_empty(store: ClickHouseUsageStore) -> None:
    assert await store.positions() == {}
    nothing = await total(store)
    assert (nothing.group, nothing.events, nothing.input_tokens, nothing.latency_ms_avg) == ({}, 0, 0, None)
    assert await store.query(UsageQuery("default", ["user"])) == []


async def test_rows_and_positions_survive_a_reopening(place: Place) -> None:
    first = place.store()
    await first.open()
    await first.insert(block(spent(0), spent(1)))
    await first.insert(block(spent(2), partition=3, first=70))
    await first.insert(block(spent(3), spent(4), first=2))
    await first.close()
    second = place.store()
    await second.open()
    try:
        assert await second.positions() == {0: 4, 3: 71}
        assert (await total(second)).events == 5
    finally:
        await second.close()


async def test_what_was_acknowledged_survives_a_kill_of_the_process(place: Place) -> None:
    process = await place.process("[0, 50, 200]")
    assert process.stdout is not None
    acknowledged = [int(await asyncio.wait_for(process.stdout.readline(), 60)) for _ in range(5)][-1]
    process.send_signal(signal.SIGKILL)
    assert await process.wait() == -signal.SIGKILL
    store = place.store()
    await store.open()
    try:
        events = (await total(store)).events
        assert events >= acknowledged
        position = (await store.positions())[0]
        assert acknowledged <= position == events
    finally:
        await store.close()


async def test_a_repeated_block_counts_once(store: ClickHouseUsageStore) -> None:
    events = [spent(number) for number in range(10)]
    await store.insert(block(*events))
    await store.insert(block(*events))
    assert (await total(store)).events == 10
    assert await store.positions() == {0: 10}
    await store.insert(block(*events[3:], spent(10), first=3))
    assert [(await total(store, **each)).events for each in EXACT_AND_SUMMED] == [11, 11, 11]
    assert await store.positions() == {0: 11}
    assert await store.imbalances(limit=10) == []


async def test_a_fact_counts_once_where_it_was_read_first(store: ClickHouseUsageStore) -> None:
    await store.insert(block(spent(7, input_tokens=1)))
    await store.insert(block(spent(7, input_tokens=1), spent(8, input_tokens=3), partition=1, first=5))
    await store.insert(block(spent(8, input_tokens=3), spent(9), spent(9), partition=2, first=1))
    for each in EXACT_AND_SUMMED:
        row = await total(store, **each)
        assert (row.events, row.input_tokens) == (3, 5)
    assert await store.conflicts(limit=10) == []
    assert await store.imbalances(limit=10) == []


async def test_a_fact_that_comes_again_with_other_values_is_a_conflict_and_the_first_counts(
    store: ClickHouseUsageStore,
) -> None:
    later = START + timedelta(days=90)
    await store.insert(block(spent(7, input_tokens=1), spent(7, tenant_id="other")))
    for _ in range(2):  # a block that was sent again is no second conflict
        await store.insert(block(spent(7, input_tokens=2, occurred_at=later), spent(8), partition=1, first=5))
    for each in EXACT_AND_SUMMED:
        assert ((await total(store, **each)).events, (await total(store, **each)).input_tokens) == (2, 2)
    (conflict,) = await store.conflicts(limit=10)
    assert (conflict.tenant_id, conflict.usage_id, conflict.kept_at, conflict.refused_at) == (
        "default",
        "u7",
        (0, 0),
        (1, 5),
    )
    assert conflict.fields == ["input_tokens", "occurred_at"]
    assert (conflict.kept[0], conflict.refused[0]) == ("1", "2")


async def test_a_conflict_within_a_block_is_one_too(store: ClickHouseUsageStore) -> None:
    await store.insert(block(spent(7, user_id="ann"), spent(7, user_id=None), spent(7, user_id="ann")))
    assert [(await total(store, **each)).events for each in EXACT_AND_SUMMED] == [1, 1, 1]
    assert [each.refused_at for each in await store.conflicts(limit=10)] == [(0, 1)]


@pytest.mark.parametrize("missing", ["usage_minutes_a", "usage_days_a", "both"])
async def test_a_block_that_a_kill_left_without_its_sums_becomes_whole_when_it_is_sent_again(
    place: Place, missing: str
) -> None:
    """Made by hand: while a view is away, a block is in the raw table and not in its sums."""
    events = [spent(number, occurred_at=START + timedelta(minutes=10 * number)) for number in range(12)]
    store = place.store()
    await store.open()
    await store.insert(block(*events[:4], spent(3)))
    await store.close()
    views = ["usage_minutes_a", "usage_days_a"] if missing == "both" else [missing]
    with place.client() as client:
        for view in views:
            client.command(f"DROP TABLE {view}_view SYNC")
    store = place.store()
    await store.open()
    await store.insert(block(*events[2:], first=20, partition=3))
    await store.close()
    with place.client() as client:
        for statement in statements(migrations()[1][1]):
            if any(statement.startswith(f"CREATE MATERIALIZED VIEW IF NOT EXISTS {view}_view ") for view in views):
                client.command(statement)
    store = place.store()
    await store.open()
    try:
        assert await store.imbalances(limit=10) != []
        bounds = await store.unsettled()
        assert bounds is not None
        assert (bounds.partition, bounds.first, bounds.last) == (3, 20, 29)
        for _ in range(2):
            await store.insert(block(*events[2:], first=20, partition=3))
            assert await store.imbalances(limit=10) == []
            assert [(await total(store, **each)).events for each in EXACT_AND_SUMMED] == [12, 12, 12]
        assert (await store.positions()) == {0: 5, 3: 30}
    finally:
        await store.close()


@pytest.mark.parametrize("seed", [random.randrange(10**6)])
async def test_a_kill_at_any_moment_leaves_at_most_the_last_block_to_be_sent_again(place: Place, seed: int) -> None:
    chance = random.Random(seed)
    size, first = 400, 0
    for _ in range(3):
        process = await place.process(f"[{first}, {size}, 1000, {0.1 + chance.random() / 4}]")
        assert await asyncio.wait_for(process.wait(), 60) == -signal.SIGALRM
        store = place.store()
        await store.open()
        bounds = await store.unsettled()
        assert bounds is not None
        when = datetime(2026, 1, 1, tzinfo=UTC)
        await store.insert(
            block(
                *(spent(offset, kind="tool", occurred_at=when) for offset in range(bounds.first, bounds.last + 1)),
                first=bounds.first,
            )
        )
        assert await store.imbalances(limit=10) == []
        first = (await store.positions())[0]
        assert [(await total(store, **each)).events for each in EXACT_AND_SUMMED] == [first] * 3
        await store.close()


async def test_a_tenant_sees_its_own_usage_alone(store: ClickHouseUsageStore) -> None:
    await store.insert(block(spent(7), spent(7, tenant_id="other", input_tokens=5)))
    assert (await total(store)).input_tokens == 1
    (row,) = await store.query(UsageQuery("other", ["tenant"]))
    assert (row.group, row.input_tokens) == ({"tenant": "other"}, 5)


async def test_every_dimension_and_filter_has_its_column(store: ClickHouseUsageStore) -> None:
    event = EXAMPLES[0].model_copy(update={"tool": "calculate"})
    await store.insert(block(event, spent(1, kind="embedding", outcome="error", billable=False)))
    for dimension, column in COLUMNS.items():
        values = {row.group[dimension] for row in await store.query(UsageQuery("default", [dimension]))}
        assert getattr(event, column) in values
    for name in FILTERS:
        row = await total(store, filters={name: getattr(event, name)})
        assert row.input_tokens == event.input_tokens
        assert (await total(store, filters={name: "another"})).events == 0
    rows = await store.query(UsageQuery("default", ["user", "outcome"]))
    assert [(row.group, row.billable_events) for row in rows] == [
        ({"user": "u-1", "outcome": "ok"}, 1),
        ({"user": None, "outcome": "error"}, 0),
    ]


@pytest.mark.parametrize("seed", [random.randrange(10**6)])
async def test_sums_are_those_of_the_events(store: ClickHouseUsageStore, seed: int) -> None:
    chance = random.Random(seed)
    events = [
        spent(
            number,
            user_id=chance.choice([None, "ann", "bob"]),
            model=chance.choice(["small", "large"]),
            kind=chance.choice(["completion", "tool"]),
            input_tokens=chance.randrange(1000),
            cached_input_tokens=chance.randrange(10),
            output_tokens=chance.randrange(100),
            reasoning_tokens=chance.randrange(5),
            latency_ms=chance.randrange(5000),
            billable=chance.random() < 0.5,
            occurred_at=START + timedelta(minutes=chance.randrange(10_000)),
        )
        for number in range(300)
    ]
    for first in range(0, 300, 60):
        await store.insert(block(*events[first : first + 60], first=first))
    for dimensions in ([], ["user"], ["model", "user"], ["kind", "model", "user"]):
        asked: list[UsageDimension] = dimensions  # pyright: ignore
        groups: dict[tuple[Any, ...], list[UsageRecorded]] = defaultdict(list)
        for event in events:
            groups[tuple(getattr(event, COLUMNS[name]) for name in asked)].append(event)
        rows = await store.query(UsageQuery("default", asked))
        assert {tuple(row.group.values()) for row in rows} == groups.keys()
        for row in rows:
            group = groups[tuple(row.group.values())]
            assert row.events == len(group)
            assert row.billable_events == sum(event.billable for event in group)
            assert row.input_tokens == sum(event.input_tokens for event in group)
            assert row.cached_input_tokens == sum(event.cached_input_tokens for event in group)
            assert row.output_tokens == sum(event.output_tokens for event in group)
            assert row.reasoning_tokens == sum(event.reasoning_tokens for event in group)
            assert row.latency_ms_avg == pytest.approx(sum(event.latency_ms for event in group) / len(group))
        tokens = [row.input_tokens + row.output_tokens for row in rows]
        assert tokens == sorted(tokens, reverse=True)


@pytest.mark.parametrize("seed", [random.randrange(10**6)])
async def test_cells_are_those_of_the_events(store: ClickHouseUsageStore, seed: int) -> None:
    chance = random.Random(seed)
    boundaries = Boundaries.at([START, START + timedelta(microseconds=1), START + timedelta(days=1)], [1, 10, 11])
    events = [
        spent(
            number,
            kind=chance.choice(["completion", "tool"]),
            provider=chance.choice([None, "", "p"]),
            model=chance.choice([None, "m"]),
            tool=chance.choice([None, "t"]),
            billable=chance.random() < 0.5,
            input_tokens=chance.randrange(13),
            cached_input_tokens=chance.randrange(3),
            output_tokens=chance.randrange(3),
            reasoning_tokens=chance.randrange(3),
            occurred_at=chance.choice([EARLIEST, *boundaries.times[1:]]) + timedelta(microseconds=chance.randrange(2)),
        )
        for number in range(1000)
    ]
    await store.insert(block(*events))
    (whole,) = await store.query(UsageQuery("default", boundaries=boundaries))
    rows = await store.query(UsageQuery("default", ["model", "kind"], bucket="day", boundaries=boundaries))
    for cells in (whole.cells, [cell for row in rows for cell in row.cells]):
        assert sum_of(cells) == sum_of(cell_of(event, boundaries) for event in events)
    for row in rows:
        assert {(cell.model, cell.kind) for cell in row.cells} == {(row.group["model"], row.group["kind"])}
        assert sum(cell.events for cell in row.cells) == row.events


async def test_the_rows_of_a_month_add_up_to_its_sums(store: ClickHouseUsageStore) -> None:
    """What an invoice is made of is what later months compare it with."""
    events = [
        spent(
            number % 90,
            model=f"m{number % 3}",
            input_tokens=number % 90,
            occurred_at=START + timedelta(minutes=number % 90),
        )
        for number in range(100)
    ]
    await store.insert(block(*events))
    months = await store.query(UsageQuery("default", bucket="month"))
    assert [(month.group["bucket"], month.events) for month in months] == [
        ("2026-01-01T00:00:00Z", 30),
        ("2026-02-01T00:00:00Z", 60),
    ]
    for number, month in enumerate(months, 1):
        since, until = datetime(2026, number, 1, tzinfo=UTC), datetime(2026, number + 1, 1, tzinfo=UTC)
        rows = await total(store, since=since, until=until, from_rows=True)
        assert sum_of(rows.cells) == sum_of(month.cells)


def sum_of(cells: Iterable[Cell]) -> dict[tuple[Any, ...], tuple[int, ...]]:
    """The counts of each cell, by what tells it apart."""
    counts: defaultdict[tuple[Any, ...], list[int]] = defaultdict(lambda: [0] * 5)
    for cell in cells:
        *names, events, given, cached, output, reasoning = astuple(cell)
        for place, count in enumerate((events, given, cached, output, reasoning)):
            counts[tuple(names)][place] += count
    return {names: tuple(each) for names, each in counts.items()}


async def test_buckets_begin_in_utc_and_come_in_order(store: ClickHouseUsageStore) -> None:
    times = [START, START + timedelta(minutes=29, seconds=59), START + timedelta(minutes=30)]
    await store.insert(block(*(spent(number, occurred_at=time) for number, time in enumerate(times))))
    expected = {
        "hour": [("2026-01-31T23:00:00Z", 2), ("2026-02-01T00:00:00Z", 1)],
        "day": [("2026-01-31T00:00:00Z", 2), ("2026-02-01T00:00:00Z", 1)],
        "month": [("2026-01-01T00:00:00Z", 2), ("2026-02-01T00:00:00Z", 1)],
    }
    for bucket, wanted in expected.items():
        rows = await store.query(UsageQuery("default", ["kind"], bucket=bucket))  # pyright: ignore
        assert [(row.group["bucket"], row.events) for row in rows] == wanted
        assert [*rows[0].group] == ["bucket", "kind"]


async def test_buckets_do_not_depend_on_the_zone_of_the_machine(place: Place) -> None:
    store = place.store()
    await store.open()
    await store.insert(block(spent()))
    await store.close()
    process = await place.process("query", TZ="Asia/Tokyo")
    output, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, errors.decode()
    assert json.loads(output) == [{"bucket": "2026-01-31T00:00:00Z"}]


async def test_times_are_half_open_to_the_microsecond(store: ClickHouseUsageStore) -> None:
    times = [START + timedelta(microseconds=number) for number in range(5)]
    await store.insert(block(*(spent(number, occurred_at=time) for number, time in enumerate(times))))
    assert (await total(store, since=times[2])).events == 3
    assert (await total(store, until=times[2])).events == 2
    assert (await total(store, since=times[1], until=times[3])).events == 2
    assert (await total(store, since=times[1], until=times[1])).events == 0


@pytest.mark.parametrize(
    "text",
    [
        "' OR 1=1 --",
        "a'); DROP TABLE usage_events; --",
        "back\\slash",
        "tab\tline\nend",
        "{tenant_id:String}",
        "\\N",
        "ü%_",
    ],
)
async def test_text_from_outside_is_never_sql(store: ClickHouseUsageStore, text: str) -> None:
    await store.insert(block(spent(0, user_id=text), spent(1, user_id="someone")))
    (row,) = await store.query(UsageQuery("default", ["user"], filters={"user_id": text}))
    assert (row.group, row.events) == ({"user": text}, 1)
    assert (await total(store, filters={"model": text})).events == 0
    assert (await store.query(UsageQuery(text)))[0].events == 0
    assert (await total(store)).events == 2


async def test_a_block_may_span_any_number_of_months(store: ClickHouseUsageStore) -> None:
    months = [spent(number, occurred_at=START - timedelta(days=31 * number)) for number in range(120)]
    await store.insert(block(*months))
    assert (await total(store)).events == 120


async def test_the_largest_events_that_pass_the_check_are_stored_and_add_up(store: ClickHouseUsageStore) -> None:
    most = 10**12
    numbers = dict.fromkeys(("input_tokens", "output_tokens", "latency_ms", "first_token_ms"), most)
    early, late = datetime(1970, 1, 1, tzinfo=UTC), datetime(2105, 12, 31, 23, 59, 59, tzinfo=UTC)
    events = [
        spent(0, occurred_at=early, step=2**32 - 1, attempt=2**32 - 1, **numbers),
        spent(1, occurred_at=late, **numbers),
    ]
    for event in events:
        check_event(event, 0)
    await store.insert(block(*events))
    row = await total(store)
    assert (row.input_tokens, row.output_tokens, row.latency_ms_avg) == (2 * most, 2 * most, most)
    rows = await store.query(UsageQuery("default", bucket="hour"))
    assert [row.group["bucket"] for row in rows] == ["1970-01-01T00:00:00Z", "2105-12-31T23:00:00Z"]


async def test_groups_come_in_the_order_that_is_asked_for(store: ClickHouseUsageStore) -> None:
    many = [spent(number, user_id="often") for number in range(5)]
    await store.insert(block(*many, spent(9, user_id="much", input_tokens=99)))
    for order, users in (("tokens", ["much", "often"]), ("events", ["often", "much"])):
        rows = await store.query(UsageQuery("default", ["user"], order_by=order))  # pyright: ignore
        assert [row.group["user"] for row in rows] == users


async def test_outcomes_are_counted_by_rows_and_sums_alike(store: ClickHouseUsageStore) -> None:
    outcomes = ["ok", "error", "lost", "error", "ok", "ok"]
    await store.insert(block(*(spent(number, outcome=each) for number, each in enumerate(outcomes))))
    for each in EXACT_AND_SUMMED:
        row = await total(store, **each)
        assert (row.events, row.error_events, row.lost_events) == (6, 2, 1)


async def test_a_question_may_read_so_many_rows_and_no_more(place: Place) -> None:
    store = ClickHouseUsageStore(url=place.url, folder=place.folder, bounds=ReadBounds(rows=9))
    await store.open()
    try:
        await store.insert(block(*(spent(number) for number in range(9))))
        assert (await total(store, **EXACT_AND_SUMMED[0])).events == 9
        await store.insert(block(*(spent(number) for number in range(9, 12)), first=9))
        with pytest.raises(TooMuchAskedError, match="more than 9 rows or take more than 20 s: ask for a shorter time"):
            await total(store, **EXACT_AND_SUMMED[0])
        assert (await total(store)).events == 12
    finally:
        await store.close()


async def test_pages_hold_every_group_once(store: ClickHouseUsageStore) -> None:
    await store.insert(block(*(spent(number, user_id=f"user-{number}") for number in range(25))))
    pages = [await store.query(UsageQuery("default", ["user"], limit=10, offset=offset)) for offset in (0, 10, 20, 30)]
    assert [len(page) for page in pages] == [10, 10, 5, 0]
    assert len({row.group["user"] for page in pages for row in page}) == 25


async def rows_in(store: ClickHouseUsageStore) -> list[list[str | None]]:
    return [row for partition in range(4) for row in await store.rows(partition, 0, 2**62, limit=1000)]


async def test_a_row_reads_and_hashes_as_its_event_does(store: ClickHouseUsageStore) -> None:
    full = EXAMPLES[0].model_copy(update={"tool": "calculate", "first_token_ms": 3, "estimated": True})
    odd = spent(2, user_id="ü\x00\t'\\", billable=False, occurred_at=START + timedelta(microseconds=1))
    events = [full, spent(1), odd]
    await store.insert(block(*events, partition=2, first=9_999))
    values = [values_of(2, offset, event) for offset, event in enumerate(events, 9_999)]
    assert await store.rows(2, 0, 20_000, limit=10) == [list(each) for each in values]
    assert await store.rows(2, 10_000, 10_001, limit=10) == [list(values[1])]
    assert await store.rows(2, 0, 20_000, limit=1) == [list(values[0])]
    assert await store.rows(1, 0, 20_000, limit=10) == []
    assert await store.facts([("default", odd.usage_id), ("other", "u1")]) == [list(values[2])]
    assert await store.digests([0, 0, 10_001]) == [
        UsageDigest(partition=2, first=0, beyond=False, rows=1, hash=hash_of(values[0])),
        UsageDigest(partition=2, first=10_000, beyond=False, rows=1, hash=hash_of(values[1])),
        UsageDigest(partition=2, first=10_000, beyond=True, rows=1, hash=hash_of(values[2])),
    ]


async def test_a_digest_is_of_many_rows_whatever_blocks_they_came_in(store: ClickHouseUsageStore) -> None:
    events = [spent(number, input_tokens=number) for number in range(50)]
    await store.insert(block(*events[20:], first=20))
    await store.insert(block(*events[:20]))
    hashes = [hash_of(values_of(0, offset, event)) for offset, event in enumerate(events)]
    (digest,) = await store.digests([50])
    assert (digest.rows, digest.hash, digest.beyond) == (50, functools.reduce(operator.xor, hashes), False)


async def test_a_fact_that_was_written_twice_is_where_it_was_read_first(store: ClickHouseUsageStore) -> None:
    await store.insert(block(spent(7)))
    await store.insert(block(spent(7), partition=1, first=5))
    assert [(each.partition, each.rows) for each in await store.digests([1, 6])] == [(0, 1)]
    (row,) = await store.facts([("default", "u7")])
    assert row[-2:] == ["0", "0"]


async def test_rows_of_a_partition_that_the_log_does_not_have_are_beyond(store: ClickHouseUsageStore) -> None:
    await store.insert(block(spent(7), partition=3))
    assert [(each.partition, each.beyond) for each in await store.digests([1])] == [(3, True)]


async def test_a_build_is_beside_the_live_table_until_the_switch(store: ClickHouseUsageStore) -> None:
    await store.insert(block(spent(0), spent(1)))
    build = await store.begin_build()
    await build.insert(block(spent(0, input_tokens=5), first=3))
    await store.insert(block(spent(2), first=2))
    assert ((await total(store)).events, await store.positions()) == (3, {0: 3})
    await store.switch()
    for _ in range(2):
        assert ((await total(store)).events, (await total(store)).input_tokens) == (1, 5)
        assert await store.positions() == {0: 4}
        await store.clean()
    await store.insert(block(spent(3), first=4))
    assert (await total(store)).events == 2


@pytest.mark.parametrize("switched", [False, True])
async def test_a_build_outlives_the_process_from_the_switch_on_and_not_before(place: Place, switched: bool) -> None:
    first = place.store()
    await first.open()
    await first.insert(block(spent(0)))
    await (await first.begin_build()).insert(block(spent(1), spent(2)))
    if switched:
        await first.switch()
    await first.close()  # without having cleaned: what remains is the next start's to remove
    second = place.store()
    await second.open()
    assert (await total(second)).events == (2 if switched else 1)
    await second.close()
    with place.client() as client:
        counts = [client.query(f"SELECT count() FROM usage_events_{slot}").result_rows[0][0] for slot in "ab"]
    assert counts == ([0, 2] if switched else [1, 0])


async def test_a_table_that_was_built_from_the_same_events_is_the_same(store: ClickHouseUsageStore) -> None:
    events = [spent(number, input_tokens=number, tenant_id=f"tenant-{number % 3}") for number in range(40)]
    for first in range(0, 40, 8):
        await store.insert(block(*events[first : first + 8], first=first))
    digests, rows = await store.digests([40]), await rows_in(store)
    build = await store.begin_build()
    await build.insert(block(*events[:33]))
    await build.insert(block(*events[33:], first=33))
    await store.switch()
    await store.clean()
    assert (await store.digests([40]), await rows_in(store)) == (digests, rows)


async def test_rows_of_the_first_release_are_taken_over_and_read_on_at_their_last_block(place: Place) -> None:
    """Whether the last block of a partition was whole, nobody knew then: its facts are read again, and not doubled."""
    columns = [*EVENT_COLUMNS, "source_partition", "source_offset", "block_first", "block_last"]
    place.folder.mkdir(parents=True)
    events = [spent(number, input_tokens=number) for number in range(9)]
    with place.client() as client:
        for statement in statements(migrations()[0][1]):
            client.command(statement)
        client.command(
            "CREATE TABLE schema_version (version UInt32, applied_at DateTime) ENGINE = MergeTree ORDER BY version"
        )
        client.insert("schema_version", [[1]], column_names=["version"])
        for first, last, offsets in ((0, 3, range(4)), (0, 3, range(4)), (4, 8, (4, 6))):
            rows = [[*(getattr(events[at], name) for name in EVENT_COLUMNS), 2, at, first, last] for at in offsets]
            client.insert("usage_events", rows, column_names=columns)
    for _ in range(2):
        store = place.store()
        await store.open()
        assert (await store.unsettled(), await store.positions()) == (None, {2: 4})
        assert [(await total(store, **each)).events for each in EXACT_AND_SUMMED] == [6, 6, 6]
        await store.close()
    store = place.store()
    await store.open()
    await store.insert(block(*events[4:], partition=2, first=4))
    assert [(await total(store, **each)).input_tokens for each in EXACT_AND_SUMMED] == [36, 36, 36]
    assert (await store.positions(), await store.conflicts(limit=1), await store.imbalances(limit=1)) == (
        {2: 9},
        [],
        [],
    )
    await store.close()


async def test_a_migration_that_was_killed_in_the_middle_begins_again(place: Place) -> None:
    place.folder.mkdir(parents=True)
    done = statements(migrations()[0][1]) + statements(migrations()[1][1])
    with place.client() as client:
        for statement in done:
            client.command(statement)
            if statement == done[0]:
                rows = [[*(getattr(spent(), name) for name in EVENT_COLUMNS), 0, 0, 0, 0]]
                columns = [*EVENT_COLUMNS, "source_partition", "source_offset", "block_first", "block_last"]
                client.insert("usage_events", rows, column_names=columns)
        client.command(
            "CREATE TABLE schema_version (version UInt32, applied_at DateTime) ENGINE = MergeTree ORDER BY version"
        )
        client.insert("schema_version", [[1]], column_names=["version"])
    store = place.store()
    await store.open()
    assert [(await total(store, **each)).events for each in EXACT_AND_SUMMED] == [1, 1, 1]
    assert await store.imbalances(limit=1) == []
    await store.close()


async def test_a_migration_is_applied_once(place: Place) -> None:
    for _ in range(2):
        store = place.store()
        await store.open()
        await store.close()
    with place.client() as client:
        found = client.query("SELECT version FROM schema_version ORDER BY version").result_rows
    assert [version for (version,) in found] == [version for version, _ in migrations()]


async def test_tables_of_a_later_release_are_refused(place: Place) -> None:
    store = place.store()
    await store.open()
    await store.close()
    with place.client() as client:
        client.insert("schema_version", [[999]], column_names=["version"])
    store = place.store()
    with pytest.raises(
        ConfigurationError, match=r"have version 999, this release of Turnlog knows \d+: run the release"
    ):
        await store.open()
    await store.close()


async def test_a_store_that_is_not_open_is_unavailable(place: Place) -> None:
    store = place.store()
    with pytest.raises(UnavailableError, match="not connected yet"):
        await store.query(UsageQuery("default"))
    await store.close()


async def test_a_second_process_on_a_folder_gets_one_clear_error(tmp_path: Path) -> None:
    place = Place(None, tmp_path / "usage")
    holder = await place.process("[0, 1, 1]")
    assert holder.stdout is not None
    assert await asyncio.wait_for(holder.stdout.readline(), 60) == b"1\n"
    second = await place.process("query")
    _, errors = await asyncio.wait_for(second.communicate(), 60)
    assert second.returncode == 1
    assert errors.decode() == (
        f"refused: another process ({holder.pid}) has {place.folder} open: stop it or set TURNLOG_DATA_DIR\n"
    )
    holder.kill()
    await holder.wait()
    third = place.store()
    await third.open()
    assert (await total(third)).events == 1
    await third.close()


async def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    store = ClickHouseUsageStore(url=None, folder=tmp_path / "file" / "usage")
    with pytest.raises(ConfigurationError, match=r"cannot write to .*usage: Not a directory; set TURNLOG_DATA_DIR"):
        await store.open()
    await store.close()


async def test_a_server_that_is_away_is_unavailable_and_may_be_tried_again(tmp_path: Path) -> None:
    port = free_ports(1)
    server = ClickHouseServer(tmp_path / "server", port=port)
    store = ClickHouseUsageStore(url=f"{server.url}/default", folder=tmp_path)
    with pytest.raises(
        UnavailableError, match=rf"ClickHouse at http://127.0.0.1:{port}/default does not answer"
    ) as caught:
        await store.open()
    assert "secret" not in str(caught.value)
    server.start()
    try:
        await store.open()
        await store.insert(block(spent()))
        server.kill()
        for call in (store.positions(), store.query(UsageQuery("default")), store.insert(block(spent(1)))):
            with pytest.raises(UnavailableError):
                await call
        server.start()
        assert (await total(store)).events == 1
    finally:
        await store.close()
        server.kill()


@pytest.mark.parametrize("change", [("secret@", "wrong@"), ("/default", "/nowhere")])
async def test_a_server_that_refuses_the_connection_is_a_wrong_setting(tmp_path: Path, change: tuple[str, str]) -> None:
    server = ClickHouseServer(tmp_path / "server", port=free_ports(1))
    server.start()
    store = ClickHouseUsageStore(url=f"{server.url}/default".replace(*change), folder=tmp_path)
    try:
        with pytest.raises(ConfigurationError, match="cannot be used: ") as caught:
            await store.open()
        assert "secret" not in str(caught.value)
        assert "wrong" not in str(caught.value)
    finally:
        await store.close()
        server.kill()
