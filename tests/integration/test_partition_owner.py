"""The partition owner on the real broker: who may write, what survives which death, and who works when."""

import asyncio
import base64
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import get_args

import pytest
from prometheus_client import REGISTRY

from schemas.topics import DEAD_LETTERS, PROMPTS, TURNS
from services.runtime.failpoints import Failpoint
from services.runtime.kafka import ProducerFenced
from services.runtime.owner.partition import MAX_GROUP
from tests.support.counting import Counting, counting, text_of
from tests.support.counting_actor import CountingActor
from tests.support.waiting import until

pytestmark = pytest.mark.broker

TAKEOVER = ["takeover.before_fence", "takeover.after_fence", "takeover.after_offsets", "takeover.after_restore"]


@pytest.fixture
async def bench(kafka: str, prefix: str, tmp_path: Path) -> AsyncIterator[Counting]:
    async with counting(kafka, prefix, tmp_path) as made:
        yield made


async def test_a_partition_is_taken_in_the_order_that_loses_nothing(bench: Counting) -> None:
    """A worker halts at each step of taking a partition that another one still owns."""
    async with bench.owning() as old:
        child = await bench.child(",".join(f"{point}=stop@1" for point in TAKEOVER))
        await child.stopped()
        await bench.give("t-1")
        await bench.until_counted("counted", 1)

        child.signal(signal.SIGCONT)
        await child.stopped()
        await bench.give("t-1")
        with pytest.raises(ProducerFenced):
            await asyncio.wait_for(old, 10)

        for _ in TAKEOVER[2:]:
            child.signal(signal.SIGCONT)
            await child.stopped()
        assert len(await bench.numbers()) == 1, "nothing is taken in before all of the partition is known"
        child.signal(signal.SIGCONT)
        await bench.until_done()


async def test_a_fenced_owner_cannot_write(bench: Counting) -> None:
    """Both read the same input; the one that was replaced fails, and nothing of it is visible."""
    async with bench.owning() as zombie:
        await bench.give("t-1")
        await bench.until_done()
        async with bench.owning():
            await bench.give("t-1")
            with pytest.raises(ProducerFenced):
                await asyncio.wait_for(zombie, 10)
            await bench.until_done()


async def test_what_a_halted_owner_left_open_is_never_seen(bench: Counting) -> None:
    """It wakes in the middle of a transaction, after another one has taken the partition and done the work."""
    child = await bench.child("commit.inside=stop@1", session_timeout_ms=1500)
    await bench.give("t-1")
    await child.stopped()
    async with bench.working(session_timeout_ms=1500):
        await bench.until_done()
        child.signal(signal.SIGCONT)
        await child.says("partition_fenced")
        await bench.give("t-1")
        await bench.until_done()


@pytest.mark.parametrize(
    "failpoint",
    [
        *(f"{point}=kill@1" for point in TAKEOVER),
        *(f"intake.after_consume=kill@{hit}" for hit in (1, 2)),
        *(f"commit.{where}=kill@{hit}" for where in ("before", "sending", "inside", "after") for hit in (1, 2, 3)),
    ],
)
async def test_an_input_has_one_effect_wherever_the_owner_dies(bench: Counting, failpoint: str) -> None:
    async with bench.owning():
        await bench.give("t-1")
        await bench.give("t-2", "ring:0.5")
        await bench.until_counted("counted", 2)
    child = await bench.child(failpoint)
    await bench.give("t-3", "call")
    await bench.until_counted_or_dead(child, 3)
    await bench.tell("t-1")
    await bench.give("t-1")
    assert await child.died() == -signal.SIGKILL
    await bench.child()
    await bench.give("t-3")
    await bench.until_done()


@pytest.mark.parametrize("failpoint", ["commit.before=kill@1", "commit.inside=kill@1", "commit.after=kill@1"])
async def test_a_bad_record_is_one_dead_letter_wherever_the_owner_dies(bench: Counting, failpoint: str) -> None:
    await bench.log.publish(PROMPTS.name, b"{not json", key="t-1")
    child = await bench.child(failpoint)
    assert await child.died() == -signal.SIGKILL
    await bench.child()
    await bench.give("t-1")
    await bench.until_done()
    letters = await bench.log.events(DEAD_LETTERS.name)
    assert [(each["reason"], base64.b64decode(each["value"])) for each in letters] == [("not_json", b"{not json")]


async def test_what_is_no_state_on_the_state_topic_stops_no_takeover(bench: Counting) -> None:
    for key, value in (("t-9", b"{not json"), ("t-8", b"[]"), ("t-7", b'{"type": "turn.state", "thread_id": 7}')):
        await bench.log.publish(TURNS.name, value, key=key)
    for _ in range(2):
        async with bench.working():
            await bench.give("t-1")
            await bench.until_done()
    letters = await bench.log.events(DEAD_LETTERS.name)
    assert [each["reason"] for each in letters] == ["not_json", "not_an_event", "not_an_event"]


async def test_a_state_of_a_later_release_is_left_to_that_release(bench: Counting) -> None:
    await bench.log.publish(TURNS.name, b'{"type": "turn.state.v2"}', key="t-1")
    worker = bench.worker()
    await worker.start()
    try:
        await until(lambda: "does not know" in (worker.health().detail or ""), "the worker to say why it waits")
    finally:
        await worker.stop(grace_seconds=0)
    assert await bench.log.events(DEAD_LETTERS.name) == []


async def test_intake_waits_and_says_so_while_what_it_needs_is_away(bench: Counting) -> None:
    actor = CountingActor()
    async with bench.working(actor) as worker:
        actor.away = "memory does not answer"
        await bench.give("t-1")
        await until(lambda: worker.health().detail == actor.away, "the worker to say what it waits for")
        assert not worker.health().ready
        assert await bench.numbers() == []
        actor.away = None
        await bench.until_done()
        assert worker.health().ready


async def test_a_partition_whose_actor_has_a_fault_is_taken_again_and_says_so(bench: Counting) -> None:
    actor = CountingActor()
    async with bench.working(actor) as worker:
        actor.faults = 2
        await bench.give("t-1")
        await until(lambda: "a fault of the actor" in (worker.health().detail or ""), "the worker to name the fault")
        assert not worker.health().ready
        await bench.until_done()
        await until(lambda: worker.health().ready, "the worker to be ready again")


async def test_what_waited_by_the_thousand_is_prepared_in_parts(bench: Counting) -> None:
    for thread in range(30):
        for _ in range(50):
            await bench.give(f"t-{thread}")
    actor = CountingActor()
    async with bench.working(actor):
        await bench.until_done()
    assert max(actor.prepared) <= MAX_GROUP


async def test_what_is_ready_at_once_is_one_transaction(bench: Counting) -> None:
    for thread in range(200):
        await bench.give(f"t-{thread}")
    before = _transactions()
    async with bench.working():
        await bench.until_done()
    assert _transactions() - before < 20


async def test_at_the_cap_of_open_actors_prompts_wait_and_results_do_not(bench: Counting) -> None:
    actor = CountingActor()
    held = [f"t-{number}" for number in range(3)]
    actor.gates = {thread: asyncio.Event() for thread in held}
    async with bench.working(actor, max_open=3):
        for thread in held:
            await bench.give(thread, "call")
        await until(lambda: _sample("turnlog_turns_in_flight") == 3, "three open actors")
        await bench.give("late")
        await bench.tell("other")
        await bench.until_counted("told", 1)
        assert not [each for each in await bench.numbers() if each["thread_id"] == "late"]
    async with bench.working():
        await bench.until_done()


async def test_a_worker_that_stops_lets_its_calls_end_and_takes_nothing_in(bench: Counting) -> None:
    actor = CountingActor()
    gate = actor.gates["t-1"] = asyncio.Event()
    async with bench.working(actor) as worker:
        await bench.give("t-1", "call")
        await until(lambda: bool(actor.positions), "the call")
        stopping = asyncio.create_task(worker.stop(grace_seconds=20))
        await asyncio.sleep(0)
        await bench.give("t-2")
        gate.set()
        await stopping
    assert [text_of(each) for each in await bench.numbers()] == ["counted", "answered"]
    async with bench.working():
        await bench.until_done()


async def test_a_call_is_told_a_journal_position_behind_all_that_came_before(bench: Counting) -> None:
    """Also when what came before is in the transaction of the call's own input, which makes the call wait for it."""
    actor = CountingActor()
    await bench.give("t-1", "end")
    await bench.give("t-1", "call")
    async with bench.working(actor):
        await bench.until_done()
        await bench.give("t-1", "call")
        await bench.until_done()
    assert [text_of(each) for each in await bench.numbers()] == ["ended", *["counted", "answered"] * 2]
    assert actor.positions[0] > 0
    assert actor.positions[1] > (await bench.until_counted("answered", 1))[0]["position"][1]


def _sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0


def _transactions() -> float:
    return _sample("turnlog_transactions_total", outcome="committed")


def test_every_failpoint_of_the_owner_is_died_at() -> None:
    marked = test_an_input_has_one_effect_wherever_the_owner_dies.pytestmark
    tested = {failpoint.partition("=")[0] for mark in marked for failpoint in mark.args[1]}
    assert tested == {point for point in get_args(Failpoint) if point.split(".")[0] in ("takeover", "intake", "commit")}
