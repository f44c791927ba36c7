"""Tool calls through the log, and what every step has cost."""

import asyncio
from pathlib import Path
from uuid import uuid4

import pytest

from schemas.tokens import estimated_tokens
from tests.support.installation import Installation
from tests.support.waiting import eventually

pytestmark = [pytest.mark.broker, pytest.mark.asyncio(loop_scope="session")]


async def test_a_tool_call_goes_through_the_log_and_back(turnlog: Installation, thread: str) -> None:
    await turnlog.prompt(thread, '[[tool calculate {"expression": "6 * 7"}]] please')

    completed = await turnlog.completion(thread)

    assert (completed["text"], completed["steps"]) == ("You said: please Result: 42", 2)
    calls = [each for each in await turnlog.log.events("tool-calls") if each["thread_id"] == thread]
    results = [each for each in await turnlog.log.events("tool-results") if each["thread_id"] == thread]
    assert [(each["type"], each["name"]) for each in calls] == [("tool.called", "calculate")]
    assert [(each["type"], each["call_id"]) for each in results] == [("tool.returned", calls[0]["call_id"])]
    messages = await turnlog.messages(thread, count=4)
    assert [each["role"] for each in messages] == ["user", "assistant", "tool", "assistant"]


async def test_parallel_tool_calls_of_a_step_are_awaited_together(turnlog: Installation, thread: str) -> None:
    await turnlog.prompt(
        thread,
        '[[tool calculate {"expression": "1 + 1"}]][[tool get_weather {"city": "Paris", "month": 7}]]'
        '[[tool calculate {"expression": "3 * 3"}]] all',
    )

    completed = await turnlog.completion(thread)

    assert completed["steps"] == 2
    assert completed["text"].startswith("You said: all Result: 2; ")
    assert completed["text"].endswith("; 9")
    assert '"mean_celsius": 21.0' in completed["text"].replace('":', '": ').replace("  ", " ")


async def test_a_tool_that_fails_is_told_to_the_model(turnlog: Installation, thread: str) -> None:
    await turnlog.prompt(thread, '[[tool get_weather {"city": "Atlantis"}]] where')

    completed = await turnlog.completion(thread)

    assert completed["type"] == "turn.completed"
    assert "the sample data knows no city 'Atlantis'" in completed["text"]


async def test_steps_one_after_the_other_each_call_their_tools(turnlog: Installation, thread: str) -> None:
    await turnlog.prompt(
        thread,
        '[[tool calculate {"expression": "2 ** 10"}]][[then]][[tool calculate {"expression": "1024 / 4"}]] twice',
    )

    completed = await turnlog.completion(thread)

    assert (completed["steps"], completed["text"]) == (3, "You said: twice Result: 1024; 256.0")


async def test_each_step_is_metered_once_and_summed(turnlog: Installation, thread: str) -> None:
    user = f"u-{uuid4().hex}"
    await turnlog.prompt(thread, '[[tool calculate {"expression": "1"}]] count me', user_id=user)
    await turnlog.completion(thread)

    recorded = await turnlog.log.wait_for(
        "usage", lambda event: event["thread_id"] == thread and event["kind"] == "completion", count=2
    )
    assert [(each["step"], each["outcome"], each["billable"]) for each in recorded] == [
        (1, "ok", True),
        (2, "ok", True),
    ]

    async def row() -> dict[str, object] | None:
        items = (await turnlog.get(f"/v1/usage?group_by=user,model&user_id={user}"))["items"]
        model = [each for each in items if each["group"]["model"] == "scripted"]
        return model[0] if model and model[0]["events"] == 2 else None

    total = await eventually(row, "two rows of usage")
    assert total["group"] == {"user": user, "model": "scripted"}
    for count in ("input_tokens", "output_tokens"):
        assert total[count] == sum(each[count] for each in recorded)


async def test_an_answer_that_is_cancelled_is_metered_by_what_was_streamed(turnlog: Installation, thread: str) -> None:
    agent, user = f"a-{uuid4().hex[:8]}", f"u-{uuid4().hex}"
    await turnlog.post("/v1/agents", {"name": agent, "model": "default/scripted"}, status=201)
    prompt = "[[long 1000]][[slow 0.02]]" + " tell me more" * 20
    await turnlog.prompt(thread, prompt, agent=agent, user_id=user)
    await turnlog.log.wait_for("deltas", lambda event: event["thread_id"] == thread and "word20 " in event["text"])
    await turnlog.log.publish("prompts", {"type": "turn.cancel", "thread_id": thread})

    (lost,) = await turnlog.log.wait_for("usage", lambda event: event["thread_id"] == thread)

    message = (await turnlog.messages(thread, count=2))[1]
    assert (message["status"], lost["outcome"]) == ("cancelled", "lost")
    assert (lost["billable"], lost["estimated"]) == (False, True)
    assert (lost["provider"], lost["model"]) == ("default", "scripted")
    assert lost["input_tokens"] == estimated_tokens(len(prompt))
    assert lost["output_tokens"] == estimated_tokens(len(message["parts"][0]["text"]))

    async def row() -> dict[str, object] | None:
        items = (await turnlog.get(f"/v1/usage?group_by=provider,model&user_id={user}"))["items"]
        return items[0] if items else None

    assert (await eventually(row, "a row of usage"))["group"] == {"provider": "default", "model": "scripted"}


async def test_an_answer_that_died_with_its_worker_is_metered_by_its_input(
    fresh: Installation, tmp_path: Path, thread: str
) -> None:
    agent = tmp_path / "agent.yaml"
    agent.write_text(f"name: assistant\nmodel: default/scripted\ninstructions: {'Be brief. ' * 10}\n")
    assert (await fresh.run("topics", "apply")).code == 0
    assert (await fresh.run("agents", "apply", str(agent))).code == 0
    await fresh.start("run", "memory")
    dying = await fresh.start("run", "agents")
    await fresh.prompt(thread, "[[long 200]][[slow 0.02]] go")
    await fresh.log.wait_for("deltas", lambda event: event["thread_id"] == thread)
    await dying.kill()
    await fresh.start("run", "agents")

    (lost,) = await fresh.log.wait_for("usage", lambda event: event["thread_id"] == thread)

    assert (lost["outcome"], lost["provider"], lost["model"]) == ("lost", "default", "scripted")
    assert (lost["input_tokens"], lost["output_tokens"]) == (estimated_tokens(99 + 28), 0)
    assert (await fresh.completion(thread))["type"] == "turn.completed"


async def test_a_model_that_says_slow_down_is_asked_again(turnlog: Installation, thread: str) -> None:
    marker = uuid4().hex
    await turnlog.prompt(thread, f"[[status 429 1 retry-after=1]][[cut 1]] {marker}")

    completed = await turnlog.completion(thread)

    assert completed["text"] == f"You said: {marker}"
    recorded = await turnlog.log.wait_for(
        "usage", lambda event: event["thread_id"] == thread and event["kind"] == "completion", count=3
    )
    assert sorted((each["attempt"], each["outcome"]) for each in recorded) == [(1, "error"), (2, "error"), (3, "ok")]
    assert len({each["usage_id"] for each in recorded}) == 3


async def test_many_threads_are_answered_at_once(turnlog: Installation) -> None:
    threads = [f"many-{uuid4().hex}" for _ in range(100)]
    await asyncio.gather(*(turnlog.prompt(each, '[[tool calculate {"expression": "5"}]] go') for each in threads))

    completed = await turnlog.log.wait_for("completions", lambda event: event["thread_id"] in threads, count=100)

    assert sorted(each["thread_id"] for each in completed) == sorted(threads)
    assert {each["text"] for each in completed} == {"You said: go Result: 5"}
