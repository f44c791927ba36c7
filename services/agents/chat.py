"""From messages to what a chat completions API takes. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import JsonValue

from schemas.http import MessageView
from schemas.journal import MessageAdded
from schemas.parts import (
    ImagePart,
    Part,
    ReasoningPart,
    ToolCallPart,
    ToolResultPart,
    in_words,
    result_text,
)
from schemas.tokens import IMAGE_TOKENS, estimated_tokens
from schemas.tools import ToolSpec

ChatMessage = dict[str, Any]
"""A message in the format of OpenAI's chat completions."""

EMPTY = "[empty message]"
"""What a message without any content says: servers refuse one that says nothing."""


def chat_messages(instructions: str, messages: Iterable[MessageView | MessageAdded]) -> list[ChatMessage]:
    """System instructions, then the messages. Tools' answers come right behind the message that asked for them, which
    servers insist on, and before what anybody has said in between; a call without an answer stays away.

    What the API has no place for is said in words, as a file of a prompt or an image in an answer. An assistant's
    reasoning stays away: no API takes it back.
    """
    chat: list[ChatMessage] = []
    if instructions:
        chat.append({"role": "system", "content": instructions})
    listed = list(messages)
    answers = _answers(listed)
    for place, message in enumerate(listed):
        match message.role:
            case "assistant":
                answered = answers.get(place, {})
                asked = {part.call_id: part for part in message.parts if isinstance(part, ToolCallPart)}
                calls = [part for call_id, part in asked.items() if call_id in answered]
                text = _told([part for part in message.parts if not isinstance(part, ToolCallPart | ReasoningPart)])
                if text or calls:
                    chat.append(_assistant(text, calls))
                for call_id, result in answered.items():
                    chat.append({"role": "tool", "tool_call_id": call_id, "content": result_text(result)})
            case "tool":
                pass
            case "user":
                chat.append({"role": "user", "content": _content(message.parts)})
            case "system":
                chat.append({"role": "system", "content": _told(message.parts) or EMPTY})
    return chat


def _answers(messages: Sequence[MessageView | MessageAdded]) -> Mapping[int, Mapping[str, JsonValue]]:
    """By the place of the message that asks, the results of its calls. One is of the last call of its id before it."""
    answers: dict[int, dict[str, JsonValue]] = {}
    asked: dict[str, int] = {}
    for place, message in enumerate(messages):
        for part in message.parts:
            if message.role == "assistant" and isinstance(part, ToolCallPart):
                asked[part.call_id] = place
            elif message.role == "tool" and isinstance(part, ToolResultPart) and part.call_id in asked:
                answers.setdefault(asked.pop(part.call_id), {})[part.call_id] = part.result
    return answers


def sent_tokens(messages: Iterable[Mapping[str, Any]]) -> int:
    """Tokens of the messages of a chat completion, estimated by the length of their text."""
    characters, images = 0, 0
    for message in messages:
        content: str | list[Mapping[str, Any]] = message.get("content") or ""
        if isinstance(content, str):
            characters += len(content)
        else:
            characters += sum(len(part.get("text", "")) for part in content)
            images += sum(part["type"] == "image_url" for part in content)
        for call in message.get("tool_calls", ()):
            characters += len(call["function"]["name"]) + len(call["function"]["arguments"])
    return estimated_tokens(characters) + images * IMAGE_TOKENS


def function_specs(tools: Sequence[ToolSpec]) -> list[dict[str, Any]]:
    """Tools as the API is told of them."""
    return [
        {
            "type": "function",
            "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
        }
        for tool in tools
    ]


def _assistant(text: str, calls: Sequence[ToolCallPart]) -> ChatMessage:
    message: ChatMessage = {"role": "assistant", "content": text or None}
    if calls:
        message["tool_calls"] = [
            {
                "id": call.call_id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in calls
        ]
    return message


def _content(parts: Sequence[Part]) -> str | list[dict[str, Any]]:
    """Text alone as text, which every server takes; beside an image as a list."""
    if not any(isinstance(part, ImagePart) for part in parts):
        return _told(parts) or EMPTY
    return [
        {"type": "image_url", "image_url": {"url": part.url, "detail": part.detail}}
        if isinstance(part, ImagePart)
        else {"type": "text", "text": in_words(part)}
        for part in parts
    ]


def _told(parts: Sequence[Part]) -> str:
    return "\n".join(map(in_words, parts))
