"""Thousands of turns while everything is killed and paused: nothing is lost, nothing doubled, nothing out of order."""

import asyncio
import time
from pathlib import Path

import pytest

from tests.chaos.checker import violations
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
    "zombie",
)
"""Each of these happens in every run of some length, by the plan."""

FAMILIES = ("takeover.", "intake.", "commit.", "tools.", "projection.")
"""Of each of these kinds of failpoint at least one strikes."""

ENOUGH_MINUTES = 2
"""A run of this length has time for every fault."""


async def test_nothing_is_lost_or_doubled_whatever_dies(
    model: ScriptedModel, tmp_path: Path, chaos_minutes: float, chaos_seed: int
) -> None:
    plan = make_plan(chaos_seed, minutes=chaos_minutes)
    print(f"\nchaos seed {plan.seed}, {plan.seconds:g} s, {len(plan.prompts)} prompts, {len(plan.faults)} faults")
    began = time.monotonic()
    async with cluster(tmp_path, model_url=model.base_url) as under_test:
        async with Workload(plan, under_test) as workload:
            async with asyncio.TaskGroup() as chaos:
                chaos.create_task(workload.run())
                chaos.create_task(Nemesis(under_test, plan.faults).run())
            print(f"chaos is over after {time.monotonic() - began:.0f} s")
            await under_test.until_ready()
            await until_settled(under_test.turnlog.log, minutes=chaos_minutes)
        print(f"settled after {time.monotonic() - began:.0f} s")
        gateway = Gateway(under_test.turnlog.http, under_test.turnlog.base_url)
        evidence = await gather(under_test.turnlog.log, gateway, under_test.executions)
        evidence.acknowledged, evidence.answers = workload.acknowledged, workload.answers
        evidence.allowed = allowed_ends(plan)
        print(summary(plan, under_test, turns=len(evidence.completions), seconds=time.monotonic() - began))
        found = violations(evidence)
    assert not found, f"seed {plan.seed}: {len(found)} violations\n" + "\n".join(found[:20])
    assert evidence.answers or plan.seconds < 60
    if chaos_minutes >= ENOUGH_MINUTES:
        missing = [fault for fault in FAULTS if not under_test.happened[fault]]
        missing += [name for name in FAMILIES if not any(fault.startswith(name) for fault in under_test.happened)]
        assert not missing, f"seed {plan.seed}: these faults did not happen: {missing}"
        fenced = any("partition_fenced" in life.output for life in under_test.turnlog.started)
        assert fenced, f"seed {plan.seed}: no worker was fenced"


def summary(plan: Plan, under_test: Cluster, *, turns: int, seconds: float) -> str:
    """One line of figures and one of what befell whom."""
    happened = ", ".join(f"{name} {count}" for name, count in sorted(under_test.happened.items()))
    starts = sum(len(member.lives) for member in under_test.members.values())
    return f"chaos seed {plan.seed}: {turns} turns ended in {seconds:.0f} s, {starts} starts of processes\n{happened}"
