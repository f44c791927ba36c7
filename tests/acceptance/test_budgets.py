"""Budgets, end to end: prompts are rejected and turns stopped once they are used up, and go on when they are raised."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.support.installation import Installation

pytestmark = [pytest.mark.broker, pytest.mark.asyncio(loop_scope="session")]


async def apply(turnlog: Installation, name: str, **fields: Any) -> None:
    await turnlog.post("/v1/budgets", {"name": name, "by": "user", "unit": "tokens", **fields}, status=201)


async def ask(turnlog: Installation, user: str, content: str = "hello", **fields: Any) -> dict[str, Any]:
    """Asks in a thread of its own; the end of the turn."""
    thread = await turnlog.prompt(f"t-{uuid4().hex[:12]}", content, user_id=user, **fields)
    return await turnlog.completion(thread)


async def ask_until_rejected(turnlog: Installation, user: str) -> list[dict[str, Any]]:
    """The ends of all turns, the last of which is the rejection."""
    ends: list[dict[str, Any]] = []
    async with asyncio.timeout(60):
        while not ends or ends[-1]["type"] != "turn.rejected":
            ends.append(await ask(turnlog, user))
    return ends


async def until_exceeded(turnlog: Installation, name: str) -> None:
    await turnlog.log.wait_for(
        "budgets", lambda event: event.get("budget") == name and event.get("level") == "exceeded"
    )


async def warnings(turnlog: Installation, name: str) -> list[str]:
    """The ids of the warnings of a budget."""
    events = await turnlog.log.events("budgets")
    return [each["record_key"] for each in events if each["type"] == "budget.warned" and each["budget"] == name]


async def test_prompts_are_rejected_once_a_budget_is_used_up_and_taken_again_once_it_is_raised(
    turnlog: Installation, tmp_path: Path
) -> None:
    user, name, file = f"u-{uuid4().hex[:8]}", f"b-{uuid4().hex[:8]}", tmp_path / "budgets.yaml"
    text = f"name: {name}\nby: user\nwho: {user}\nper: day\nunit: tokens\nsoft: 20\nhard: "
    file.write_text(f"{text} 60\n")
    applied = await turnlog.run("budgets", "apply", str(file))
    assert (applied.code, applied.output.split()[:2]) == (0, ["applied", name]), applied.errors

    ends = await ask_until_rejected(turnlog, user)

    assert {each["type"] for each in ends[:-1]} == {"turn.completed"}
    error = ends[-1]["error"]
    assert (error["code"], error["retryable"]) == ("budget", True)
    assert f"budget '{name}' is used up: user '{user}' has spent" in error["message"]
    spent = sum(each["usage"]["input_tokens"] + each["usage"]["output_tokens"] for each in ends[:-1])
    (state,) = await turnlog.log.wait_for(
        "budgets",
        lambda event: event.get("budget") == name and event["type"] == "budget.state" and event["spent"] == str(spent),
    )
    assert (state["level"], state["events"]) == ("exceeded", len(ends) - 1)
    assert (await ask(turnlog, f"{user}-other"))["type"] == "turn.completed"
    shown = await turnlog.run("budgets", "show", name)
    assert f"{spent} tokens" in shown.output
    assert "exceeded" in shown.output
    assert name in (await turnlog.run("budgets", "list")).output

    file.write_text(f"{text} 100000\n")
    assert (await turnlog.run("budgets", "apply", str(file))).code == 0
    async with asyncio.timeout(30):
        while (await ask(turnlog, user))["type"] != "turn.completed":
            pass
    assert len(await warnings(turnlog, name)) == 1


@pytest.mark.parametrize(("hard", "completing"), [("10", 1), ("1000000", 40)])
async def test_prompts_that_come_at_once_are_judged_by_what_those_before_may_spend(
    turnlog: Installation, hard: str, completing: int
) -> None:
    """The sample agent's instructions alone have more than 10 tokens."""
    user, name = f"u-{uuid4().hex[:8]}", f"b-{uuid4().hex[:8]}"
    await apply(turnlog, name, who=user, hard=hard)
    threads = [f"t-{uuid4().hex[:12]}" for _ in range(40)]
    await asyncio.gather(*(turnlog.prompt(each, "[[think 2]] hello", user_id=user) for each in threads))

    ends = await turnlog.log.wait_for("completions", lambda event: event["thread_id"] in threads, count=40)

    assert sum(each["type"] == "turn.completed" for each in ends) == completing


async def test_a_running_turn_is_stopped_at_its_next_step(turnlog: Installation) -> None:
    """Its tool is approved when the budget is known to be used up, and not before."""
    user, name, agent = (f"{kind}-{uuid4().hex[:8]}" for kind in "uba")
    await turnlog.post("/v1/agents", {"name": agent, "tools": ["calculate"], "approval": "all"}, status=201)
    await apply(turnlog, name, who=user, hard="1")
    content = '[[tool calculate {"expression": "6 * 7"}]] go on'
    thread = await turnlog.prompt(f"t-{uuid4().hex[:12]}", content, user_id=user, agent=agent)
    (waiting,) = await turnlog.log.wait_for(
        "messages", lambda event: event["thread_id"] == thread and event["type"] == "turn.waiting"
    )
    await until_exceeded(turnlog, name)
    await ask_until_rejected(turnlog, user)

    approval = {"type": "tool.approval", "thread_id": thread, "call_id": waiting["call_ids"][0], "approved": True}
    await turnlog.log.publish("prompts", approval)

    ended = await turnlog.completion(thread)
    assert (ended["type"], ended["error"]["code"], ended["steps"]) == ("turn.failed", "budget", 1)
    messages = await turnlog.messages(thread, count=3)
    assert [(each["role"], each["status"]) for each in messages][2] == ("tool", "success")


async def test_a_turn_that_has_cost_what_it_may_is_stopped_at_its_next_step(turnlog: Installation) -> None:
    agent = f"a-{uuid4().hex[:8]}"
    rates = {"call": "0.25", "input": "0", "output": "0"}
    price = {"name": agent, "tenant_id": agent, "effective_from": "2020-01-01T00:00:00Z", "rates": rates}
    await turnlog.post("/v1/prices", price, status=201)
    spec = {"name": agent, "tools": ["calculate"], "stop": {"max_cost": "0.2"}}
    await turnlog.post("/v1/agents", spec, status=201)
    content = '[[tool calculate {"expression": "6 * 7"}]] go on'

    async with asyncio.timeout(30):
        while (ended := await ask(turnlog, "eve", content, agent=agent, tenant_id=agent))["type"] != "turn.failed":
            pass  # the worker has not read the price yet

    assert (ended["error"]["code"], ended["error"]["retryable"], ended["steps"]) == ("max_cost", False, 1)
    assert ended["error"]["message"] == "the turn has cost 0.25 USD, and may cost 0.2"


async def test_a_budget_file_with_a_mistake_changes_nothing(turnlog: Installation, tmp_path: Path) -> None:
    file = tmp_path / "budgets.yaml"
    file.write_text("name: fine-budget\nhard: 5\nwho: nobody\nby: user\n---\nname: bad\nhard: -1\nper: year\n")

    finished = await turnlog.run("budgets", "apply", str(file))

    assert finished.code == 2
    for field in ("document 2: ", "hard: ", "per: "):
        assert field in finished.errors
    assert "fine-budget" not in (await turnlog.run("budgets", "list")).output
    missing = await turnlog.run("budgets", "show", "fine-budget")
    assert (missing.code, "there is no budget 'fine-budget'" in missing.errors) == (2, True)


async def test_usage_that_is_killed_loses_and_doubles_nothing_and_warns_once(
    fresh: Installation, tmp_path: Path
) -> None:
    """The worker goes by what it knows meanwhile; what was spent then is counted when usage is back."""
    files = {"agents": "name: assistant\n", "budgets": "name: all\nby: user\nunit: tokens\nsoft: 10\nhard: 1000000\n"}
    assert (await fresh.run("topics", "apply")).code == 0
    for kind, text in files.items():
        (tmp_path / kind).write_text(text)
        assert (await fresh.run(kind, "apply", str(tmp_path / kind))).code == 0
    await fresh.start("run", "memory")
    await fresh.start("run", "agents")
    usage = await fresh.start("run", "usage")
    ends = [await ask(fresh, "ann") for _ in range(3)]
    await fresh.log.wait_for("budgets", lambda event: event["type"] == "budget.warned")
    os.kill(usage.process.pid, signal.SIGKILL)
    ends += [await ask(fresh, "ann") for _ in range(3)]
    assert {each["type"] for each in ends} == {"turn.completed"}
    spent = sum(each["usage"]["input_tokens"] + each["usage"]["output_tokens"] for each in ends)

    await fresh.start("run", "usage")

    await fresh.log.wait_for("budgets", lambda event: event.get("spent") == str(spent))
    sums = [int(each["spent"]) for each in await fresh.log.events("budgets") if each["type"] == "budget.state"]
    assert sums == sorted(set(sums)), "a sum was told twice, or went back"
    assert len(await warnings(fresh, "all")) == 1
    (tmp_path / "budgets").write_text(files["budgets"].replace("1000000", str(spent)))
    assert (await fresh.run("budgets", "apply", str(tmp_path / "budgets"))).code == 0
    assert (await ask_until_rejected(fresh, "ann"))[-1]["error"]["code"] == "budget"
