"""What the port promises of what is stored: once, whole after a kill, equal to the log."""

import asyncio
import functools
import operator
import random
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from schemas.http import UsageDigest
from schemas.usage import EXAMPLES, UsageRecorded
from services.runtime.errors import ConfigurationError, UnavailableError
from services.usage.clickhouse import ClickHouseUsageStore
from services.usage.fingerprint import hash_of, values_of
from services.usage.migrate import migrations, statements
from services.usage.queries import UsageQuery
from services.usage.rows import row_of
from tests.support.clickhouse import ClickHouseServer
from tests.support.installation import free_ports
from tests.support.usage_tables import EXACT_AND_SUMMED, START, Place, block, spent, total


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
    assert [(await total(store, **each)).events for each in EXACT_AND_SUMMED] == [11, 11, 11, 11]
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
    assert [(await total(store, **each)).events for each in EXACT_AND_SUMMED] == [1, 1, 1, 1]
    assert [each.refused_at for each in await store.conflicts(limit=10)] == [(0, 1)]


@pytest.mark.parametrize("missing", ["usage_minutes_a", "usage_hours_a", "usage_days_a", "all"])
async def test_a_block_that_a_kill_left_without_its_sums_becomes_whole_when_it_is_sent_again(
    place: Place, missing: str
) -> None:
    """Made by hand: while a view is away, a block is in the raw table and not in its sums."""
    events = [spent(number, occurred_at=START + timedelta(minutes=10 * number)) for number in range(12)]
    store = place.store()
    await store.open()
    await store.insert(block(*events[:4], spent(3)))
    await store.close()
    views = ["usage_minutes_a", "usage_hours_a", "usage_days_a"] if missing == "all" else [missing]
    made = [text for _, file in migrations() for text in statements(file)]
    with place.client() as client:
        for view in views:
            place.run(client, [f"DROP TABLE {view}_view SYNC"])
    store = place.store()
    await store.open()
    await store.insert(block(*events[2:], first=20, partition=3))
    await store.close()
    with place.client() as client:
        for view in views:
            begin = f"CREATE MATERIALIZED VIEW IF NOT EXISTS {view}_view "
            place.run(client, [text for text in made if text.startswith(begin)][-1:])
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
            assert [(await total(store, **each)).events for each in EXACT_AND_SUMMED] == [12, 12, 12, 12]
        assert (await store.positions()) == {0: 5, 3: 30}
    finally:
        await store.close()


async def test_a_kill_at_any_moment_leaves_at_most_the_last_block_to_be_sent_again(place: Place, seed: int) -> None:
    chance = random.Random(seed)
    size, first = 400, 0
    for _ in range(3):
        process = await place.process(f"[{first}, {size}, 1000, {0.1 + chance.random() / 4}]")
        assert await asyncio.wait_for(process.wait(), 60) == -signal.SIGALRM
        store = place.store()
        await store.open()
        bounds = await store.unsettled()
        if bounds is not None:  # else the machine was so slow that no block had come
            when = datetime(2026, 1, 1, tzinfo=UTC)
            offsets = range(bounds.first, bounds.last + 1)
            await store.insert(
                block(*(spent(offset, kind="tool", occurred_at=when) for offset in offsets), first=bounds.first)
            )
        assert await store.imbalances(limit=10) == []
        first = (await store.positions()).get(0, 0)
        assert [(await total(store, **each)).events for each in EXACT_AND_SUMMED] == [first] * 4
        await store.close()


async def rows_in(store: ClickHouseUsageStore) -> list[list[str | None]]:
    return [row for partition in range(4) for row in await store.rows(partition, 0, 2**62, limit=1000)]


async def test_a_row_reads_and_hashes_as_its_event_does(store: ClickHouseUsageStore) -> None:
    full = EXAMPLES[0].model_copy(update={"tool": "calculate", "first_token_ms": 3, "estimated": True})
    odd = spent(2, user_id="ü\x00\t'\\", billable=False, occurred_at=START + timedelta(microseconds=1))
    events = [full, spent(1), odd]
    await store.insert(block(*events, partition=2, first=9_999))
    values = [values_of(2, offset, row_of(event, 0)) for offset, event in enumerate(events, 9_999)]
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
    hashes = [hash_of(values_of(0, offset, row_of(event, 0))) for offset, event in enumerate(events)]
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


def in_month(number: int, month: int) -> UsageRecorded:
    return spent(number, occurred_at=datetime(2025, month, 15, 12, tzinfo=UTC))


async def months_of(store: ClickHouseUsageStore) -> list[list[tuple[str | None, int]]]:
    """By each of the four tables."""
    return [
        [
            (each.group["bucket"], each.events)
            for each in await store.query(UsageQuery("default", bucket="month", **how))
        ]
        for how in EXACT_AND_SUMMED
    ]


async def test_months_that_are_not_kept_go_from_all_tables_and_what_was_read_stays_known(
    store: ClickHouseUsageStore,
) -> None:
    await store.insert(block(in_month(0, 3), in_month(1, 4), in_month(2, 5), in_month(3, 6)))
    await store.insert(block(in_month(4, 3), in_month(5, 7), partition=1, first=70))
    positions = await store.positions()
    assert await store.purge(datetime(2025, 6, 1, tzinfo=UTC)) == [202503, 202504, 202505]
    assert await months_of(store) == [[("2025-06-01T00:00:00Z", 1), ("2025-07-01T00:00:00Z", 1)]] * 4
    assert await store.positions() == positions
    assert await store.imbalances(limit=10) == []
    assert await store.purge(datetime(2025, 6, 1, tzinfo=UTC)) == []
    await store.insert(block(in_month(6, 7), first=4))
    assert [(await total(store, **each)).events for each in EXACT_AND_SUMMED] == [3, 3, 3, 3]


async def test_a_month_that_alone_says_how_far_a_partition_was_read_stays_until_another_does(place: Place) -> None:
    store = place.store()
    await store.open()
    await store.insert(block(in_month(0, 3), in_month(1, 7)))
    await store.insert(block(in_month(2, 4), in_month(3, 5), partition=1, first=8))
    assert await store.purge(datetime(2025, 6, 1, tzinfo=UTC)) == [202503, 202504]
    assert await store.positions() == {0: 2, 1: 10}
    assert await store.digests([2, 10], datetime(2025, 6, 1, tzinfo=UTC)) == [
        UsageDigest(
            partition=0, first=0, beyond=False, rows=1, hash=hash_of(values_of(0, 1, row_of(in_month(1, 7), 0)))
        )
    ]
    assert await store.imbalances(limit=10) == []
    await store.close()
    store = place.store()
    await store.open()
    try:
        assert await store.positions() == {0: 2, 1: 10}
        await store.insert(block(in_month(4, 8), partition=1, first=10))
        assert await store.purge(datetime(2025, 6, 1, tzinfo=UTC)) == [202505]
        assert await store.positions() == {0: 2, 1: 11}
        assert [(await total(store, **each)).events for each in EXACT_AND_SUMMED] == [2, 2, 2, 2]
    finally:
        await store.close()


async def test_a_block_that_a_month_was_dropped_of_and_is_sent_again_adds_nothing_that_is_kept(
    store: ClickHouseUsageStore,
) -> None:
    both = block(in_month(0, 3), in_month(1, 7))
    await store.insert(both)
    assert await store.purge(datetime(2025, 6, 1, tzinfo=UTC)) == [202503]
    await store.insert(both)
    await store.purge(datetime(2025, 6, 1, tzinfo=UTC))
    assert await months_of(store) == [[("2025-07-01T00:00:00Z", 1)]] * 4
    assert await store.positions() == {0: 2}
    assert await store.imbalances(limit=10) == []


async def test_sums_of_a_month_that_is_not_looked_at_are_no_imbalance(place: Place) -> None:
    store = place.store()
    await store.open()
    await store.insert(block(in_month(0, 3), in_month(1, 7)))
    await store.close()
    with place.client() as client:
        place.run(client, ["ALTER TABLE usage_events_a DROP PARTITION 202503"])
    store = place.store()
    await store.open()
    try:
        assert {each.table for each in await store.imbalances(limit=10)} == {
            "usage_days",
            "usage_hours",
            "usage_minutes",
        }
        assert await store.imbalances(limit=10, kept_from=datetime(2025, 4, 1, tzinfo=UTC)) == []
    finally:
        await store.close()
