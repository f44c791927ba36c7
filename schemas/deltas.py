"""Topic `deltas`: the answer while it is being written. Not part of any transaction, kept for an hour."""

from typing import Annotated, Literal

from pydantic import Field

from schemas.base import Identifier, ThreadEvent


class _Delta(ThreadEvent):
    """`attempt` tells the pieces of a repeated call apart; `sequence` counts the pieces of one attempt from 0."""

    turn_id: Identifier
    step: int
    attempt: int
    sequence: int


class TextDelta(_Delta):
    type: Literal["text.delta"] = "text.delta"
    text: str


class ReasoningDelta(_Delta):
    type: Literal["reasoning.delta"] = "reasoning.delta"
    text: str


class ToolArgsDelta(_Delta):
    type: Literal["tool_args.delta"] = "tool_args.delta"
    index: int
    name: str
    arguments: str


class StreamAborted(_Delta):
    """What was streamed for this attempt is no answer; where its turn ends with it, it is kept as a failed one."""

    type: Literal["stream.aborted"] = "stream.aborted"
    reason: str


DeltaEvent = Annotated[TextDelta | ReasoningDelta | ToolArgsDelta | StreamAborted, Field(discriminator="type")]

_ATTEMPT = {
    "thread_id": "t-1",
    "turn_id": "01990000-0000-7000-8000-000000000001",
    "step": 1,
    "attempt": 1,
    "sequence": 0,
}
EXAMPLES = [
    TextDelta.model_validate({**_ATTEMPT, "text": "Hel"}),
    ReasoningDelta.model_validate({**_ATTEMPT, "text": "The user greets."}),
    ToolArgsDelta.model_validate({**_ATTEMPT, "index": 0, "name": "get_weather", "arguments": '{"city":'}),
    StreamAborted.model_validate({**_ATTEMPT, "reason": "stream_cut"}),
]
