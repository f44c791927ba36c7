"""What becomes of a turn whose worker gets SIGKILL in its second model call: tried, not read."""

import asyncio
from uuid import uuid4

from tests.bench.contestants import Entry
from tests.bench.turns import ANSWER
from tests.scripted_model.server import ScriptedModel
from tests.support.waiting import until

HELD_SECONDS = 8
"""The model's second answer."""

KILLED_AFTER_SECONDS = (0, 6)
"""Of the second call: at once, and when a consumer that commits on a timer (every 5 s) has committed the prompt."""

LATER_SECONDS = 30
"""After the worker's start, when the turn is looked at. A group without static members waits 10 s for the dead one."""


async def after_sigkill(entry: Entry) -> str:
    """In a few words."""
    tried = [await _try(entry, seconds) for seconds in KILLED_AFTER_SECONDS]
    if len(set(tried)) == 1:
        return tried[0]
    return "; ".join(f"{after} s into it: {each}" for after, each in zip(KILLED_AFTER_SECONDS, tried, strict=True))


async def _try(entry: Entry, killed_after: float) -> str:
    content = f'[[tool calculate {{"expression": "6 * 7"}}]][[then]][[think {HELD_SECONDS}]][[say {ANSWER.strip()}]]'
    turn = f"t-{uuid4().hex}"
    async with ScriptedModel() as model, entry.start(model.base_url) as contestant:

        def asked(*, second: bool) -> int:
            """How often, by now. The second call has the first one's answer."""
            return sum(
                any(message["role"] == "assistant" for message in body["messages"]) == second for body in model.requests
            )

        await contestant.begin(turn, content)
        await until(lambda: asked(second=True) == 1, "the second model call", seconds=60)
        await asyncio.sleep(killed_after)
        await contestant.kill()
        await asyncio.sleep(LATER_SECONDS)
        answers = await contestant.answers(turn)
        if answers == 0:
            await contestant.resume(turn)
            return "waits until a caller resumes it" if await contestant.answers(turn) else "lost"
        how = "went on from there" if asked(second=False) == 1 else "began anew"
        return f"{how}, answered {'once' if answers == 1 else f'{answers} times'}"
