"""Thousands of turns while everything is killed and paused: nothing is lost, nothing doubled, nothing out of order."""

import asyncio
import re
import time
from pathlib import Path

import pytest

from tests.chaos.checker import Evidence, violations
from tests.chaos.cluster import Cluster, cluster
from tests.chaos.evidence import Gateway, gather, until_settled
from tests.chaos.nemesis import Nemesis
from tests.chaos.plan import MEMBERS, Plan, make_plan
from tests.chaos.workload import Workload, allowed_ends
from tests.scripted_model.server import ScriptedModel

pytestmark = [pytest.mark.broker, pytest.mark.chaos]

FAULTS = (
    *(f"kill {service}" for service in dict.fromkeys(MEMBERS.values())),
    *(f"pause {service}" for service in dict.fromkeys(MEMBERS.values())),
    "kill kafka",
    "pause kafka",
    "kill model",
    "zombie",
)
"""Each of these happens in every run of some length, by the plan."""

FAMILIES = ("takeover.", "intake.", "commit.", "tools.", "projection.")
"""Of each of these kinds of failpoint at least one strikes."""

FENCED = re.compile("partition_fenced|ProducerFenced")
"""What a worker says whose transaction the broker has refused; the second one if the group has told it first that the
partition is another's."""

ENOUGH_MINUTES, ENOUGH_TURNS = 2, 2000
"""A run of this length has time for every fault, and has so many turns."""


async def test_nothing_is_lost_or_doubled_whatever_dies(
    model: ScriptedModel, tmp_path: Path, chaos_minutes: float, chaos_seed: int
) -> None:
    plan = make_plan(chaos_seed, minutes=chaos_minutes)
    print(f"\nchaos seed {plan.seed}, {plan.seconds:g} s, {len(plan.prompts)} prompts, {len(plan.faults)} faults")
    async with cluster(tmp_path, model) as under_test:
        began = time.monotonic()
        try:
            evidence = await live_through(plan, under_test)
        finally:
            print(f"chaos seed {plan.seed}: {time.monotonic() - began:.0f} s, {summary(under_test)}")
    print(f"{len(evidence.completions)} turns ended, {len(evidence.executions)} executions of tools")
    found = violations(evidence)
    assert not found, f"seed {plan.seed}: {len(found)} violations\n" + "\n".join(found[:20])
    if chaos_minutes >= ENOUGH_MINUTES:
        assert len(evidence.completions) >= ENOUGH_TURNS
        assert evidence.answers, "nobody who waited over HTTP got an answer"
        missing = [fault for fault in FAULTS if not under_test.happened[fault]]
        missing += [name for name in FAMILIES if not any(fault.startswith(name) for fault in under_test.happened)]
        assert not missing, f"seed {plan.seed}: these faults did not happen: {missing}"
        fenced = any(FENCED.search(life.output) for life in under_test.turnlog.started)
        assert fenced, f"seed {plan.seed}: no worker was fenced"


async def live_through(plan: Plan, under_test: Cluster) -> Evidence:
    """Prompts and faults at once, then peace until everything has ended; what is left is the evidence."""
    turnlog = under_test.turnlog
    async with Workload(plan, under_test) as workload:
        async with asyncio.TaskGroup() as chaos:
            faults = chaos.create_task(Nemesis(under_test, plan.faults).run())
            await workload.run()
            more = chaos.create_task(workload.run_on())
            await faults
            more.cancel()
        await under_test.until_ready()
        await until_settled(turnlog.log, minutes=plan.seconds / 60)
    evidence = await gather(turnlog.log, Gateway(turnlog.http, turnlog.base_url), under_test.executions)
    evidence.acknowledged, evidence.answers = workload.acknowledged, workload.answers
    evidence.allowed = allowed_ends(plan)
    return evidence


def summary(under_test: Cluster) -> str:
    """What befell whom."""
    starts = sum(len(member.lives) for member in under_test.members.values())
    happened = ", ".join(f"{name} {count}" for name, count in sorted(under_test.happened.items()))
    return f"{starts} starts of processes; {happened}"
