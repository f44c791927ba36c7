"""What is stored is there under every later release."""

import re
from datetime import timedelta

import pytest
from clickhouse_connect.driver.exceptions import ClickHouseError

from services.runtime.errors import ConfigurationError
from services.usage.blocks import INSERT_SETTINGS
from services.usage.migrate import FIRST_WITH_NUMBERS, VERSIONS, migrations, statements
from services.usage.placement import TIMES, Placement
from services.usage.queries import UsageQuery
from services.usage.rows import EVENT_COLUMNS, SENT_AS, columns_of
from services.usage.store import Bounds
from tests.support.usage_tables import EXACT_AND_SUMMED, START, Place, block, spent, total

FIRST_COLUMNS = [name for name in EVENT_COLUMNS if f"    {name} " in migrations()[0][1]]


async def test_rows_of_the_first_release_are_taken_over_and_read_on_at_their_last_block(place: Place) -> None:
    """Whether the last block of a partition was whole, nobody knew then: its facts are read again, and not doubled."""
    columns = [*FIRST_COLUMNS, "source_partition", "source_offset", "block_first", "block_last"]
    place.folder.mkdir(parents=True)
    events = [spent(number, input_tokens=number) for number in range(9)]
    with place.client() as client:
        place.run(client, [*statements(migrations()[0][1]), VERSIONS])
        client.insert("schema_version", [[1]], column_names=["version"])
        for first, last, offsets in ((0, 3, range(4)), (0, 3, range(4)), (4, 8, (4, 6))):
            rows = [[*(getattr(events[at], name) for name in FIRST_COLUMNS), 2, at, first, last] for at in offsets]
            client.insert("usage_events", rows, column_names=columns)
    for _ in range(2):
        store = place.store()
        await store.open()
        assert (await store.unsettled(), await store.positions()) == (None, {2: 4})
        assert [(await total(store, **each)).events for each in EXACT_AND_SUMMED] == [6, 6, 6, 6]
        await store.close()
    store = place.store()
    await store.open()
    await store.insert(block(*events[4:], partition=2, first=4))
    assert [(await total(store, **each)).input_tokens for each in EXACT_AND_SUMMED] == [36, 36, 36, 36]
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
            place.run(client, [statement])
            if statement == done[0]:
                rows = [[*(getattr(spent(), name) for name in FIRST_COLUMNS), 0, 0, 0, 0]]
                columns = [*FIRST_COLUMNS, "source_partition", "source_offset", "block_first", "block_last"]
                client.insert("usage_events", rows, column_names=columns)
        place.run(client, [VERSIONS])
        client.insert("schema_version", [[1]], column_names=["version"])
    store = place.store()
    await store.open()
    assert [(await total(store, **each)).events for each in EXACT_AND_SUMMED] == [1, 1, 1, 1]
    assert await store.imbalances(limit=1) == []
    await store.close()


@pytest.mark.parametrize("half_there", [None, "usage_days_a", "usage_minutes_a"])
@pytest.mark.parametrize("version", range(FIRST_WITH_NUMBERS, len(migrations())))
async def test_what_an_earlier_version_has_stored_is_there_and_its_last_block_counts_once(
    place: Place, version: int, half_there: str | None
) -> None:
    """The sums know a block by the view that brings it: one that a migration has changed would count it twice.

    Half there is a block that a kill has left without its sums of days, or of minutes; made by hand, while that view
    is away.
    """
    events = [spent(number, input_tokens=number, occurred_at=START + timedelta(minutes=number)) for number in range(9)]
    made = [statement for _, text in migrations()[:version] for statement in statements(text)]
    view = [text for text in made if text.startswith(f"CREATE MATERIALIZED VIEW IF NOT EXISTS {half_there}_view ")]
    place.folder.mkdir(parents=True)
    with place.client() as client:
        place.run(client, [*made, VERSIONS])
        client.insert("schema_version", [[number + 1] for number in range(version)], column_names=["version"])
        there = {name for name, *_ in client.query("DESCRIBE TABLE usage_events_a").result_rows}
        columns = [name for name in SENT_AS if name in there]
        for number, (first, last) in enumerate(((0, 4), (5, 8)), 1):
            if number == 2 and half_there:
                place.run(client, [f"DROP TABLE {half_there}_view SYNC"])
            values = columns_of(Bounds(0, first, last), number, block(*events).rows[first : last + 1])
            named = dict(zip(SENT_AS, values, strict=True))
            settings = INSERT_SETTINGS | {"insert_deduplication_token": f"1-0-{first}-{last}"}
            client.insert(
                "usage_events_a",
                [named[name] for name in columns],
                column_names=columns,
                column_oriented=True,
                settings=settings,
            )
        if half_there:
            place.run(client, view[-1:])
    for _ in range(2):
        store = place.store()
        await store.open()
        assert await store.imbalances(limit=1) == []
        bounds = await store.unsettled()
        first = (await store.positions())[0] if bounds is None else bounds.first
        assert first == 5
        await store.insert(block(*events[5:], first=5))
        assert [(await total(store, **each)).input_tokens for each in EXACT_AND_SUMMED] == [36, 36, 36, 36]
        assert await store.imbalances(limit=1) == []
        await store.close()
    store = place.store()
    await store.open()
    await store.insert(block(spent(9, team_id="blue", completes_turn=True), first=9))
    for each in EXACT_AND_SUMMED:
        rows = await store.query(UsageQuery("default", ["team"], per=["completed_turn"], **each))
        assert [(row.group["team"], row.events, row.units["completed_turn"]) for row in rows] == [
            (None, 9, 0),
            ("blue", 1, 1),
        ]
    assert await store.imbalances(limit=1) == []
    await store.close()


async def test_the_hours_are_made_once_however_often_their_migration_begins(place: Place) -> None:
    """A kill between its last statement and the record of it: all of it is there, and is made again."""
    before, (_, hours) = migrations()[:6], migrations()[6]
    assert "CREATE TABLE IF NOT EXISTS usage_hours_{slot}" in hours
    times = [START + timedelta(minutes=20 * number) for number in range(9)]
    events = [spent(number, input_tokens=number, occurred_at=at) for number, at in enumerate(times)]
    place.folder.mkdir(parents=True)
    with place.client() as client:
        place.run(client, [*(each for _, text in before for each in statements(text)), VERSIONS])
        client.insert("schema_version", [[number] for number, _ in before], column_names=["version"])
        client.insert(
            "usage_events_a",
            columns_of(Bounds(0, 0, len(events) - 1), 1, block(*events).rows),
            column_names=[*SENT_AS],
            column_oriented=True,
            settings=INSERT_SETTINGS | {"insert_deduplication_token": f"1-0-0-{len(events) - 1}"},
        )
        for _ in range(2):
            place.run(client, statements(hours))
    store = place.store()
    await store.open()
    assert [(await total(store, **each)).events for each in EXACT_AND_SUMMED] == [9, 9, 9, 9]
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


@pytest.mark.parametrize("sharded", [False, True])
async def test_every_statement_of_a_cluster_is_one_that_clickhouse_reads(place: Place, sharded: bool) -> None:
    """There is no cluster here: the engine reads the text, and makes nothing of it."""
    cluster = Placement(cluster="main-1", sharded=sharded, cold_days=30)
    as_it_is = {"engine_full": "MergeTree", "storage_policy": "default"}
    made = [placed for _, text in migrations() for each in statements(text) for placed in cluster.placed(each)]
    made += [text for table, time in TIMES.items() for text in cluster.storage(f"{table}_a", time, as_it_is)]
    place.folder.mkdir(parents=True)
    with place.client() as client:
        for statement in made:
            if not statement.startswith("INSERT"):
                assert client.command(f"EXPLAIN AST {statement}")
        with pytest.raises(ClickHouseError):
            client.command("EXPLAIN AST ALTER TABLE usage_days_a ON CLUSTER main-1 REMOVE TTL")


async def test_old_usage_moves_to_another_volume_as_the_settings_say_and_back(place: Place) -> None:
    """The embedded engine has one volume, `default`: what is shown is that tables take the settings, and keep rows."""
    ttls: list[set[str]] = []
    names = [place.placement.stored(f"{table}_{slot}") for table in TIMES for slot in "ab"]
    for days in (30, 30, 40, None):
        store = place.store(cold_volume="default", cold_days=days)
        await store.open()
        await store.insert(block(spent(len(ttls)), first=len(ttls)))
        assert (await total(store)).events == len(ttls) + 1
        assert await store.imbalances(limit=1) == []
        await store.close()
        with place.client() as client:
            tables = client.query(
                "SELECT engine_full FROM system.tables "
                "WHERE database = currentDatabase() AND has({names:Array(String)}, name)",
                parameters={"names": names},
            ).result_rows
        assert len(tables) == len(names)
        ttls.append({match[1] if (match := re.search(r"toIntervalDay\((\d+)\)", text)) else "" for (text,) in tables})
    assert ttls == [{"30"}, {"30"}, {"40"}, {""}]
