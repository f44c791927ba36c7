"""What becomes of a turn whose worker gets SIGKILL in its second model call: tried, not read."""

import asyncio
from uuid import uuid4

from tests.bench.contestants import Entry
from tests.bench.turns import ANSWER
from tests.scripted_model.server import ScriptedModel
from tests.support.waiting import until

HELD_SECONDS = 2
"""The model's second answer."""

LATER_SECONDS = 20
"""After the worker's start, when the turn is looked at. A group without static members waits 10 s for the dead one."""


async def after_sigkill(entry: Entry) -> str:
    """In a few words."""
    content = f'[[tool calculate {{"expression": "6 * 7"}}]][[then]][[think {HELD_SECONDS}]][[say {ANSWER.strip()}]]'
    turn = f"t-{uuid4().hex}"
    async with ScriptedModel() as model, entry.start(model.base_url) as contestant:

        def asked(call: int) -> int:
            """How often, by now: the second call has the first one's answer."""
            return sum(
                (call == 2) == any(message["role"] == "assistant" for message in body["messages"])
                for body in model.requests
            )

        await contestant.begin(turn, content)
        await until(lambda: asked(2) == 1, "the second model call", seconds=30)
        await contestant.kill()
        await asyncio.sleep(LATER_SECONDS)
        answers, first, second = await contestant.answers(turn), asked(1), asked(2)
        if answers == 0 and second > 1:
            return "asked again, not answered in 20 s"
        if answers == 0:
            await contestant.resume(turn)
            return "waits for a caller to resume it" if await contestant.answers(turn) else "lost"
        how = "went on from there" if first == 1 else "began anew"
        return f"{how}, answered {'once' if answers == 1 else f'{answers} times'}"
