"""A worker dies at every named point of taking a partition, taking records in and committing; another goes on."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
import pytest_asyncio

from tests.scripted_model.server import ScriptedModel
from tests.support.installation import Installation, installation
from tests.support.waiting import until

pytestmark = [pytest.mark.broker, pytest.mark.asyncio(loop_scope="module")]

TURNS = 12

QUICK_DEATHS = {"TURNLOG_SESSION_TIMEOUT_MS": "2000"}

POINTS = [
    "takeover.before_fence=kill@2",
    "takeover.after_fence=kill@2",
    "takeover.after_offsets=kill@1",
    "takeover.after_restore=kill@3",
    "intake.after_consume=kill@1",
    "intake.after_consume=kill@5",
    "commit.before=kill@1",
    "commit.before=kill@9",
    "commit.sending=kill@7",
    "commit.inside=kill@1",
    "commit.inside=kill@4",
    "commit.inside=kill@13",
    "commit.after=kill@2",
    "commit.after=kill@11",
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def turnlog(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Installation]:
    """Everything but agents."""
    prefix = f"{uuid4().hex[:10]}."
    async with ScriptedModel() as model:
        folder = tmp_path_factory.mktemp("owner")
        async with installation(folder, model_url=model.base_url, kafka=kafka, prefix=prefix) as made:
            await made.up("--no-agents")
            yield made


@pytest.mark.parametrize("point", POINTS)
async def test_a_worker_that_dies_there_loses_and_doubles_nothing(turnlog: Installation, point: str) -> None:
    dying = await turnlog.start("run", "agents", TURNLOG_FAILPOINTS=point, **QUICK_DEATHS)
    threads = [f"t-{uuid4().hex}" for _ in range(TURNS)]
    prompt = '[[think 0.05]][[tool calculate {"expression": "2 + 2"}]] go'
    await asyncio.gather(*(turnlog.prompt(each, prompt, prompt_id="once") for each in threads))
    await asyncio.wait_for(dying.process.wait(), 60)
    assert dying.process.returncode == -9, dying.output

    heir = await turnlog.start("run", "agents", **QUICK_DEATHS)
    await turnlog.log.wait_for("completions", lambda event: event["thread_id"] in threads, count=TURNS)

    await assert_exactly_once(turnlog, threads)
    assert await heir.interrupt() == 0, heir.output


async def test_a_worker_that_was_paused_and_comes_back_writes_nothing(turnlog: Installation) -> None:
    """The zombie: it still thinks that it owns its partitions, in the middle of a transaction."""
    zombie = await turnlog.start("run", "agents", TURNLOG_FAILPOINTS="commit.inside=stop@6", **QUICK_DEATHS)
    threads = [f"t-{uuid4().hex}" for _ in range(TURNS)]
    prompt = '[[think 0.05]][[tool calculate {"expression": "2 + 2"}]] go'
    await asyncio.gather(*(turnlog.prompt(each, prompt, prompt_id="once") for each in threads))

    await until(lambda: zombie.stopped, "the worker to stop in the middle of a transaction")

    heir = await turnlog.start("run", "agents", **QUICK_DEATHS)
    await turnlog.log.wait_for("completions", lambda event: event["thread_id"] in threads, count=TURNS)
    said = len(zombie.output)
    zombie.wake()
    await until(
        lambda: re.search("partition_fenced|partition_lost|partitions_assigned", zombie.output[said:]) is not None,
        "the zombie to find out",
    )

    await assert_exactly_once(turnlog, threads)
    assert await zombie.interrupt() == 0, zombie.output
    assert await heir.interrupt() == 0, heir.output


async def assert_exactly_once(turnlog: Installation, threads: list[str]) -> None:
    def of_these(events: list[dict[str, object]]) -> list[dict[str, object]]:
        return [each for each in events if each["thread_id"] in threads]

    completions = of_these(await turnlog.log.events("completions"))
    assert Counter(each["thread_id"] for each in completions) == Counter(threads)
    assert {each["text"] for each in completions} == {"You said: go Result: 4"}
    usage = of_these(await turnlog.log.events("usage"))
    steps = Counter(
        (each["thread_id"], each["step"]) for each in usage if each["outcome"] == "ok" and not each.get("tool")
    )
    assert steps == Counter((thread, step) for thread in threads for step in (1, 2))
    assert not any(each["billable"] for each in usage if each["outcome"] == "lost")
    journal = of_these(await turnlog.log.events("messages"))
    for thread in threads:
        own = [each for each in journal if each["thread_id"] == thread]
        assert [each["type"] for each in own] == ["turn.opened", *["message.added"] * 4, "turn.closed"]
        assert [each.get("role") for each in own[1:5]] == ["user", "assistant", "tool", "assistant"]
