"""What no worker would take is refused before it is written; what one takes is not."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import BaseModel

from schemas.agents import AgentSpec
from schemas.base import ThreadEvent
from schemas.envelope import encode_event, header_map
from schemas.incoming import MAX_APPEND_BYTES, decode_prompts_event
from schemas.prompts import MessagesAppend, NewMessage, PromptSubmitted, ThreadUpdate, TurnOptions
from schemas.topics import AGENTS, MAX_EVENT_BYTES
from services.gateway.accepting import CARRIED_LEVELS
from services.gateway.kafka import ThreadLog
from services.gateway.settings import GatewaySettings
from services.runtime.kafka import KafkaClients
from services.runtime.telemetry import traces_of
from services.runtime.web import ProblemError


class Producer:
    """Takes everything."""

    def __init__(self) -> None:
        self.written: list[dict[str, Any]] = []

    async def send_and_wait(self, **record: Any) -> Any:
        self.written.append(record)
        return SimpleNamespace(partition=record["partition"], offset=len(self.written) - 1)


@pytest.fixture
def producer() -> Producer:
    return Producer()


@pytest.fixture
def log(producer: Producer, monkeypatch: pytest.MonkeyPatch) -> ThreadLog:
    settings = GatewaySettings(_env_file=None)  # pyright: ignore
    clients = KafkaClients(settings, client_id="test")
    monkeypatch.setattr(clients, "producer", lambda: producer)
    made = ThreadLog(clients, settings, traces=traces_of(settings, "gateway"))
    monkeypatch.setattr(made, "_partitions", 1)
    return made


def nested(levels: int) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = [value]
    return value


def prompt_of(size: int) -> PromptSubmitted:
    around = len(encode_event(PromptSubmitted(thread_id="t", agent="a", content="", prompt_id="p")))
    return PromptSubmitted(thread_id="t", agent="a", content="x" * (size - around), prompt_id="p")


def append_of(*contents: str) -> MessagesAppend:
    return MessagesAppend(thread_id="t", messages=[NewMessage(role="user", content=each) for each in contents])


@pytest.mark.parametrize(
    "event",
    [
        prompt_of(MAX_EVENT_BYTES),
        append_of(*["x" * 960] * 1000),
        append_of("x" * (MAX_EVENT_BYTES * 3)),
        PromptSubmitted(thread_id="t", agent="a", content="x", metadata={"deep": nested(200 - CARRIED_LEVELS - 2)}),
    ],
    ids=["largest-prompt", "many-messages", "large-message", "deepest"],
)
async def test_what_a_worker_takes_is_written(log: ThreadLog, producer: Producer, event: ThreadEvent) -> None:
    await log.submit(event)
    [record] = producer.written
    assert decode_prompts_event(record["value"], header_map(record["headers"]), datetime.now(UTC)) == event


@pytest.mark.parametrize(
    ("event", "status", "words"),
    [
        (prompt_of(MAX_EVENT_BYTES + 1), 413, f"at most {MAX_EVENT_BYTES} bytes"),
        (ThreadUpdate(thread_id="t", title="x" * MAX_EVENT_BYTES), 413, f"at most {MAX_EVENT_BYTES} bytes"),
        (append_of("x" * MAX_APPEND_BYTES), 413, f"at most {MAX_APPEND_BYTES} bytes"),
        (PromptSubmitted(thread_id="t", agent="a", content="x", metadata={"d": nested(220)}), 422, "recursion limit"),
        (
            PromptSubmitted(thread_id="t", agent="a", content="x", options=TurnOptions(call={"d": nested(190)})),
            422,
            "recursion limit",
        ),
    ],
    ids=["prompt", "update", "append", "too-deep-for-a-worker", "too-deep-for-its-state"],
)
async def test_what_no_worker_takes_is_refused_and_not_written(
    log: ThreadLog, producer: Producer, event: ThreadEvent, status: int, words: str
) -> None:
    with pytest.raises(ProblemError) as raised:
        await log.submit(event)
    assert raised.value.problem.status == status
    assert words in (raised.value.problem.detail or "")
    assert producer.written == []


async def test_a_message_that_is_yet_to_be_said_is_refused(log: ThreadLog, producer: Producer) -> None:
    ahead = NewMessage(role="user", content="x", created_at=datetime.now(UTC) + timedelta(minutes=6))
    with pytest.raises(ProblemError) as raised:
        await log.submit(MessagesAppend(thread_id="t", messages=[ahead]))
    assert (raised.value.problem.status, raised.value.problem.type) == (422, "urn:turnlog:problem:invalid-request")
    assert "messages.0.created_at" in (raised.value.problem.detail or "")
    assert producer.written == []


async def test_a_definition_that_no_registry_would_take_is_refused(log: ThreadLog, producer: Producer) -> None:
    deep: BaseModel = AgentSpec(name="a", call=cast("Any", {"deep": nested(220)}))
    with pytest.raises(ProblemError) as raised:
        await log.send(AGENTS, deep, "a@1")
    assert (raised.value.problem.status, producer.written) == (422, [])

    await log.send(AGENTS, AgentSpec(name="a"), "a@2")
    assert len(producer.written) == 1
