"""A seed is a plan: the same one each time, with every kind of fault in it."""

import functools
import hashlib

import pytest

from tests.chaos.plan import BROKER, MEMBERS, MODEL, POINTS, Plan, make_plan

MINUTES = 2.0


planned = functools.cache(functools.partial(make_plan, minutes=MINUTES))


@pytest.fixture(params=range(10))
def plan(request: pytest.FixtureRequest) -> Plan:
    return planned(request.param)


def test_the_same_seed_gives_the_same_plan() -> None:
    assert make_plan(7, minutes=1) == make_plan(7, minutes=1)


def test_another_seed_gives_another_plan() -> None:
    one, other = make_plan(7, minutes=1), make_plan(8, minutes=1)
    assert one.prompts != other.prompts
    assert one.cancels != other.cancels
    assert one.faults != other.faults


def test_a_seed_keeps_its_plan_for_ever() -> None:
    """Another figure here makes another plan of every seed that was ever reported."""
    assert hashlib.sha256(repr(make_plan(4711, minutes=1)).encode()).hexdigest()[:12] == "e7bc07b52830"


def test_there_are_thousands_of_prompts(plan: Plan) -> None:
    assert len(plan.prompts) >= 2000
    assert len({prompt.marker for prompt in plan.prompts}) == len(plan.prompts)


def test_everything_that_can_be_asked_is_asked(plan: Plan) -> None:
    assert {prompt.door for prompt in plan.prompts} == {"kafka", "http", "http-wait"}
    assert {prompt.expected for prompt in plan.prompts} == {"completed", "failed", "rejected", "spoiled"}
    assert sum(len(prompt.again) for prompt in plan.prompts) > 100
    assert all(prompt.prompt_id is not None for prompt in plan.prompts if prompt.again or prompt.door != "kafka")
    assert {cancel.prompt_id is None for cancel in plan.cancels} == {True, False}
    threads: dict[str, set[str]] = {}
    for prompt in plan.prompts:
        threads.setdefault(prompt.thread, set()).add(prompt.tenant)
    assert any(len(tenants) > 1 for tenants in threads.values()), "tenants use the same names of threads"


def test_everybody_is_killed_and_paused(plan: Plan) -> None:
    for kind in ("kill", "pause"):
        struck = {MEMBERS.get(fault.victim, fault.victim) for fault in plan.faults if fault.kind == kind}
        assert struck == {*MEMBERS.values(), BROKER, *([MODEL] if kind == "kill" else [])}, kind


def test_every_failpoint_is_armed(plan: Plan) -> None:
    armed = {(MEMBERS[fault.victim], fault.armed.partition("=")[0]) for fault in plan.faults if fault.armed}
    assert armed == {(service, point) for service, points in POINTS.items() for point in points}


def test_everything_happens_in_the_time_of_the_plan(plan: Plan) -> None:
    moments = [fault.at for fault in plan.faults]
    assert moments == sorted(moments)
    assert 0 < moments[0] < moments[-1] < plan.seconds
    assert all(0 <= at <= plan.seconds for prompt in plan.prompts for at in (prompt.at, *prompt.again))
