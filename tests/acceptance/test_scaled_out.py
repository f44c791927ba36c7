"""More workers, fewer workers, killed workers: every prompt ends once and every step is metered once."""

import os
import signal

import pytest

from tests.support.installation import Installation
from tests.support.traffic import partitions_taken, traffic
from tests.support.waiting import until

pytestmark = [pytest.mark.broker, pytest.mark.asyncio(loop_scope="session")]

QUICK_DEATHS = {"TURNLOG_SESSION_TIMEOUT_MS": "3000"}

PATIENCE = {"TURNLOG_SESSION_TIMEOUT_MS": "60000"}
"""More than a restart takes on any machine."""


def worker_log(turnlog: Installation, number: int) -> str:
    file = turnlog.folder / "data" / "logs" / f"agents-{number}.log"
    return file.read_text() if file.exists() else ""


async def test_workers_join_and_leave_without_a_lost_or_doubled_turn(fresh: Installation) -> None:
    up = await fresh.up("--workers", "2")
    await until(
        lambda: bool(partitions_taken(worker_log(fresh, 1))) and bool(partitions_taken(worker_log(fresh, 2))),
        "both workers to have partitions",
    )
    async with traffic(fresh) as prompts:
        third = await fresh.start("run", "agents")
        await until(lambda: bool(partitions_taken(third.output)), "the third worker to take a partition")
        await prompts.goes_on()
        assert await third.interrupt() == 0, third.output
        await prompts.goes_on()
    assert await up.interrupt() == 0, up.output


async def test_a_killed_worker_loses_and_doubles_nothing(fresh: Installation) -> None:
    await fresh.up("--no-agents")
    workers = [await fresh.start("run", "agents", **QUICK_DEATHS) for _ in range(2)]
    await until(lambda: all(partitions_taken(each.output) for each in workers), "both workers to have partitions")
    async with traffic(fresh) as prompts:
        await prompts.goes_on(prompts=100)
        os.kill(workers[0].process.pid, signal.SIGKILL)
        taken = len(partitions_taken(workers[1].output))
        await until(lambda: len(partitions_taken(workers[1].output)) > taken, "its partitions to be taken over")


async def test_a_worker_that_is_started_again_under_its_name_moves_no_partition_of_the_others(
    fresh: Installation,
) -> None:
    await fresh.up("--no-agents")
    first = await fresh.start("run", "agents", TURNLOG_INSTANCE_ID="first", **PATIENCE)
    await until(lambda: len(partitions_taken(first.output)) == 4, "the first worker to have all partitions")
    second = await fresh.start("run", "agents", TURNLOG_INSTANCE_ID="second", **PATIENCE)
    await until(lambda: len(partitions_taken(second.output)) == 2, "the second worker to have its half")
    before = first.output

    assert await second.interrupt() == 0, second.output
    again = await fresh.start("run", "agents", TURNLOG_INSTANCE_ID="second", **PATIENCE)
    async with traffic(fresh) as prompts:
        await until(lambda: len(partitions_taken(again.output)) == 2, "it to have its half again")
        await prompts.goes_on()

    assert sorted(partitions_taken(again.output)) == sorted(partitions_taken(second.output))
    assert "partitions_assigned" not in first.output[len(before) :]


async def test_prompts_that_waited_for_a_worker_by_the_thousand_have_one_turn_each(fresh: Installation) -> None:
    await fresh.up("--no-agents")
    ids = [f"p-{number}" for number in range(1_500)]
    for prompt_id in [*ids, *ids[:500]]:
        await fresh.prompt("crowd", "[[say ok]]", prompt_id=prompt_id, agent="nobody")
    await fresh.start("run", "agents")

    ended = await fresh.log.wait_for("completions", lambda event: event["thread_id"] == "crowd", count=len(ids))
    assert sorted(event["prompt_id"] for event in ended) == sorted(ids)
