"""A state topic as owners would have left it: turns that are over, a few open ones, the prompts they came from."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from aiokafka import AIOKafkaProducer, TopicPartition

from schemas.envelope import encode_event, encode_headers
from schemas.ids import new_id
from schemas.turns import ActiveTurn, Calling, PendingCall, Thinking, TurnState
from services.runtime.owner.state_log import StateLog

TURNS_A_TRANSACTION = 500

BATCH_BYTES = 1024 * 1024

PROMPTS = 10_000

CONTENT = "word " * 60


async def write_past(bootstrap: str, group: str, *, past: int, still_open: int) -> StateLog:
    """Writes partition 0 of `turns` and `prompts`, with the offsets that an owner of the group commits."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, transactional_id=f"{group}-0", max_batch_size=BATCH_BYTES)
    async with producer:
        states = StateLog([], end=0)
        opened = 0
        for done in range(0, past, TURNS_A_TRANSACTION):
            count = min(TURNS_A_TRANSACTION, past - done)
            records = [*_turns_that_end(count)]
            while opened < still_open * (done + count) // past:
                records.append((f"open-{opened}", _state(f"open-{opened}", 1)))
                opened += 1
            records += states.to_rewrite({key for key, _ in records})
            async with producer.transaction():
                await _write(producer, states, records)
                floor = {TopicPartition("turns", 0): states.floor}
                await producer.send_offsets_to_transaction(floor, group)
        async with producer.transaction():
            for number in range(PROMPTS):
                event = {"thread_id": f"t-{number}", "agent": "assistant", "content": CONTENT}
                await producer.send("prompts", json.dumps(event).encode(), key=event["thread_id"].encode(), partition=0)
            await producer.send_offsets_to_transaction({TopicPartition("prompts", 0): PROMPTS}, group)
    return states


def _turns_that_end(count: int) -> Iterator[tuple[str, TurnState | None]]:
    """A turn of one tool call: asked, calling, asked again, over; many of them side by side."""
    threads = [new_id(datetime.now(UTC)) for _ in range(count)]
    for step in (1, 2, 3):
        yield from ((thread, _state(thread, step)) for thread in threads)
    yield from ((thread, None) for thread in threads)


def _state(thread: str, step: int) -> TurnState:
    at = datetime.now(UTC)
    call = PendingCall(
        call_id=thread,
        provider_call_id="call_0",
        name="calculate",
        arguments={"expression": "6 * 7"},
        state="running",
        deadline_at=at,
    )
    turn = ActiveTurn(
        turn_id=thread,
        prompt_id=thread,
        user_id="user-1",
        agent="assistant",
        agent_version="0123456789ab",
        opened_at=at,
        deadline_at=at,
        step=1 + step // 3,
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        phase=Calling(calls=[call]) if step == 2 else Thinking(attempt=1, started_at=at),
    )
    return TurnState(thread_id=thread, turn=turn)


async def _write(producer: AIOKafkaProducer, states: StateLog, records: list[tuple[str, TurnState | None]]) -> None:
    at = datetime.now(UTC)
    headers = encode_headers(event_type="turn.state", event_id=new_id(at), source="turnlog-agents", at=at)
    pending = list(reversed(records))
    while pending:
        batch = producer.create_batch()
        written: list[tuple[str, TurnState | None]] = []
        while pending:
            key, value = pending[-1]
            encoded = None if value is None else encode_event(value)
            stamp = int(time.time() * 1000)
            if not batch.append(timestamp=stamp, key=key.encode(), value=encoded, headers=headers if value else []):
                break
            written.append(pending.pop())
        sent = await producer.send_batch(batch, "turns", partition=0)
        first: int = (await sent).offset
        for offset, (key, value) in enumerate(written, first):
            states.committed(key, value, offset)
