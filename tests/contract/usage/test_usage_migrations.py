"""What is stored is there under every later release."""

import pytest

from services.runtime.errors import ConfigurationError
from services.usage.migrate import migrations, statements
from services.usage.rows import EVENT_COLUMNS
from tests.support.usage_tables import EXACT_AND_SUMMED, Place, block, spent, total


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
