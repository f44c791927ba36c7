"""A prompt and its end: submit, wait for the terminal event, or stream everything in between."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

from schemas.http import PromptAccepted
from schemas.ids import turn_id_of
from schemas.prompts import PromptSubmitted
from schemas.topics import COMPLETIONS
from services.gateway.fanout import LogEvent, SlowListenerError
from services.gateway.ports import Ports
from services.gateway.sse import thread_events
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
    ports: Ports, prompt: PromptSubmitted, seconds: float
) -> tuple[PromptAccepted, Mapping[str, Any] | None]:
    """The terminal event of the prompt, or None when it did not come in time; the turn goes on all the same."""
    with ports.log.listening(prompt.tenant_id, prompt.thread_id) as listener:
        accepted = await submit(ports, prompt)
        with contextlib.suppress(TimeoutError, SlowListenerError):
            async with asyncio.timeout(seconds):
                if await ended_before(ports, prompt, accepted.turn_id):
                    async for event in ports.log.past(listener, None):
                        if _ends(event, accepted.turn_id):
                            return accepted, event.body
                while True:
                    event = await listener.next()
                    if _ends(event, accepted.turn_id):
                        return accepted, event.body
        return accepted, None


async def submit_and_stream(ports: Ports, prompt: PromptSubmitted) -> AsyncIterator[str]:
    """Server-sent events of the prompt's turn, from its opening to its terminal event."""
    assert prompt.prompt_id is not None
    turn_id = turn_id_of(prompt.tenant_id, prompt.thread_id, prompt.prompt_id)
    again = await ended_before(ports, prompt, turn_id)

    async def send() -> None:
        await submit(ports, prompt)

    async for text in thread_events(
        ports.log,
        prompt.tenant_id,
        prompt.thread_id,
        from_start=again,
        wanted=lambda event: belongs(event, turn_id),
        last=lambda event: _ends(event, turn_id),
        listening=None if again else send,
    ):
        yield text


async def ended_before(ports: Ports, prompt: PromptSubmitted, turn_id: str) -> bool:
    """Whether the same prompt id had a turn that is over: then no new event will come."""
    try:
        turn = await ports.memory.get(f"turns/{turn_id}", tenant_id=prompt.tenant_id)
    except ProblemError as error:
        if error.problem.status == 404:
            return False
        raise
    return turn["status"] in ("completed", "failed", "cancelled")


def belongs(event: LogEvent, turn_id: str) -> bool:
    """Whether an event is of the turn."""
    return event.body.get("turn_id") == turn_id


def _ends(event: LogEvent, turn_id: str) -> bool:
    return event.topic == COMPLETIONS.name and belongs(event, turn_id)
