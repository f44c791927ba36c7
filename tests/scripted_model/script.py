"""What the scripted model does for a list of messages. Pure."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DIRECTIVE = re.compile(r"\[\[(\w+)(?:\s+(.*?))?\]\]", re.DOTALL)


@dataclass(frozen=True)
class Failure:
    """A way to fail, and for how many attempts. `retry_after`: seconds, sent along with the status."""

    kind: str
    times: int
    status: int = 0
    retry_after: str | None = None


@dataclass(frozen=True)
class Step:
    """One answer of the model."""

    text: str
    tool_calls: tuple[tuple[str, str], ...] = ()
    """Names and arguments as JSON text."""
    think_seconds: float = 0
    slow_seconds: float = 0
    failures: tuple[Failure, ...] = ()

    def failure(self, attempt: int) -> Failure | None:
        """How an attempt fails, counted from zero; failures of several kinds follow each other."""
        for failure in self.failures:
            if attempt < failure.times:
                return failure
            attempt -= failure.times
        return None


def next_step(messages: Sequence[Mapping[str, Any]]) -> Step:
    """The answer to a conversation: the segment of its last user message for the step that it has come to."""
    last = max((index for index, each in enumerate(messages) if each["role"] == "user"), default=None)
    if last is None:
        return Step("Nobody said anything.")
    after = messages[last + 1 :]
    script = text_of(messages[last])
    segments = script.split("[[then]]")
    number = sum(each["role"] == "assistant" for each in after)
    segment = segments[number] if number < len(segments) else ""
    results = [text_of(each) for each in after if each["role"] == "tool"]
    return _step(segment, said=DIRECTIVE.sub("", script).strip(), results=results)


def text_of(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)


def _step(segment: str, *, said: str, results: Sequence[str]) -> Step:
    text = f"You said: {said}" + (f" Result: {'; '.join(results)}" if results else "")
    calls: list[tuple[str, str]] = []
    failures: list[Failure] = []
    think = slow = 0.0
    for name, argument in DIRECTIVE.findall(segment):
        match name:
            case "tool":
                tool, _, arguments = argument.partition(" ")
                calls.append((tool, arguments.strip() or "{}"))
            case "say":
                text = argument
            case "long":
                text = " ".join(f"word{index}" for index in range(int(argument)))
            case "think":
                think = float(argument)
            case "slow":
                slow = float(argument)
            case "cut" | "malformed":
                failures.append(Failure(name, int(argument)))
            case "status":
                code, times, *rest = argument.split()
                after = next((each.removeprefix("retry-after=") for each in rest), None)
                failures.append(Failure(name, int(times), int(code), after))
            case _:
                text = f"There is no directive {name}."
    return Step("" if calls else text, tuple(calls), think, slow, tuple(failures))


def pieces(step: Step, *, model: str) -> list[dict[str, Any]]:
    """The chunks of a streamed answer, without the one that counts tokens."""
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": word} for word in re.findall(r"\s*\S+", step.text)]
    for index, (name, arguments) in enumerate(step.tool_calls):
        call = {"index": index, "id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": ""}}
        deltas.append({"tool_calls": [call]})
        deltas += [{"tool_calls": [{"index": index, "function": {"arguments": part}}]} for part in _halves(arguments)]
    chunks = [_chunk(model, delta, None) for delta in deltas]
    return [*chunks, _chunk(model, {}, "tool_calls" if step.tool_calls else "stop")]


def usage(messages: Sequence[Mapping[str, Any]], step: Step) -> dict[str, Any]:
    """Tokens are words, here."""
    prompt = sum(len(text_of(each).split()) for each in messages)
    answer = len(step.text.split()) + sum(1 + len(arguments.split()) for _, arguments in step.tool_calls)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def key_of(body: Mapping[str, Any]) -> str:
    """What makes two requests attempts at the same answer."""
    return json.dumps(body["messages"], sort_keys=True)


def _halves(text: str) -> list[str]:
    middle = len(text) // 2
    return [part for part in (text[:middle], text[middle:]) if part]


def _chunk(model: str, delta: Mapping[str, Any], finish_reason: str | None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": model, "choices": [choice]}
