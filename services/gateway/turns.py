"""A prompt and its end: submit, wait for the terminal event, or stream everything in between."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

from schemas.http import PromptAccepted
from schemas.ids import turn_id_of
from schemas.prompts import PromptSubmitted
from schemas.topics import COMPLETIONS, MESSAGES, USAGE
from services.gateway.fanout import Listener, LogEvent
from services.gateway.ports import Ports
from services.gateway.sse import formatted_events
from services.gateway.upstream import path_of
from services.runtime.errors import UnavailableError
from services.runtime.web import ProblemError


async def submit(ports: Ports, prompt: PromptSubmitted) -> PromptAccepted:
    """Writes the prompt to the log. Raises UnavailableError; then nothing was accepted, or the same id is one turn."""
    assert prompt.prompt_id is not None
    partition, offset = await ports.log.submit(prompt)
    return PromptAccepted(
        thread_id=prompt.thread_id,
        prompt_id=prompt.prompt_id,
        turn_id=turn_id_of(prompt.tenant_id, prompt.thread_id, prompt.prompt_id),
        partition=partition,
        offset=offset,
    )


async def submit_and_wait(
    ports: Ports, prompt: PromptSubmitted, seconds: float, *, repeatable: bool = False
) -> tuple[PromptAccepted, Mapping[str, Any] | None]:
    """The terminal event of the prompt, or None when it did not come in time; the turn goes on all the same.

    `repeatable`: the prompt's id is the sender's own, so that the turn may be over already.
    """
    assert prompt.prompt_id is not None
    turn_id = turn_id_of(prompt.tenant_id, prompt.thread_id, prompt.prompt_id)
    with ports.log.listening(
        prompt.tenant_id, prompt.thread_id, awaited=lambda event: _ends(event, turn_id)
    ) as listener:
        accepted = await submit(ports, prompt)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                if repeatable and await _ended_before(ports, prompt, turn_id, listener):
                    async for event in ports.log.past(listener, None):
                        if _ends(event, turn_id):
                            return accepted, event.body
                return accepted, (await listener.next()).body
        return accepted, None


async def submit_and_stream(ports: Ports, prompt: PromptSubmitted, *, repeatable: bool) -> AsyncIterator[str]:
    """Server-sent events of the prompt's turn, from its opening to its terminal event; see `submit_and_wait`.

    Usage is left to the thread's own stream: that of the last step may come before or after the terminal event.
    """
    with ports.log.listening(prompt.tenant_id, prompt.thread_id) as listener:
        turn_id = (await submit(ports, prompt)).turn_id
        again = repeatable and await _ended_before(ports, prompt, turn_id, listener)
        async for text in formatted_events(
            ports.log,
            listener,
            from_start=again,
            wanted=lambda event: belongs(event, turn_id) and event.topic != USAGE.name,
            last=lambda event: _ends(event, turn_id),
        ):
            yield text


async def _ended_before(ports: Ports, prompt: PromptSubmitted, turn_id: str, listener: Listener) -> bool:
    """Whether the prompt's turn was over when the listener began: then it will hear nothing of it.

    Of a turn that ended a moment ago the tail knows, of an older one memory. While memory is down the turn counts as
    one that runs.
    """
    if ports.log.saw_end_of(prompt.tenant_id, turn_id):
        return True
    try:
        turn = await ports.memory.get(
            path_of("turns", turn_id),
            tenant_id=prompt.tenant_id,
            partition=listener.partition,
            min_offset=listener.began.next(MESSAGES.name) or 0,
        )
    except UnavailableError:
        return False
    except ProblemError as error:
        if error.problem.status in (404, 503):
            return False
        raise
    return turn["status"] in ("completed", "failed", "cancelled")


def belongs(event: LogEvent, turn_id: str) -> bool:
    """Whether an event is of the turn."""
    return event.body.get("turn_id") == turn_id


def _ends(event: LogEvent, turn_id: str) -> bool:
    return event.topic == COMPLETIONS.name and belongs(event, turn_id)
