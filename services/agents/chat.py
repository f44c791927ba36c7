"""From messages to what a chat completions API takes. Pure."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import JsonValue

from schemas.http import MessageView
from schemas.journal import MessageAdded
from schemas.parts import (
    FilePart,
    ImagePart,
    Part,
    ReasoningPart,
    SourcePart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)
from schemas.tokens import estimated_tokens
from schemas.tools import ToolSpec

ChatMessage = dict[str, Any]
"""A message in the format of OpenAI's chat completions."""

EMPTY = "[empty message]"
"""What a message without any content says: servers refuse one that says nothing."""

IMAGE_TOKENS = 765
"""Of an image, whatever its size: one of 1024 x 1024 in high detail, by OpenAI's documentation of GPT-4o."""


def chat_messages(instructions: str, messages: Iterable[MessageView | MessageAdded]) -> list[ChatMessage]:
    """System instructions, then the messages. A tool's answer comes only behind the call that asked for it.

    What the API has no place for is said in words, as a file of a prompt or an image in an answer. An assistant's
    reasoning stays away: no API takes it back.
    """
    chat: list[ChatMessage] = []
    if instructions:
        chat.append({"role": "system", "content": instructions})
    called: set[str] = set()
    listed = list(messages)
    answered = {
        part.call_id
        for message in listed
        if message.role == "tool"
        for part in message.parts
        if isinstance(part, ToolResultPart)
    }
    for message in listed:
        match message.role:
            case "assistant":
                calls = [part for part in message.parts if isinstance(part, ToolCallPart) and part.call_id in answered]
                called |= {call.call_id for call in calls}
                said = [part for part in message.parts if not isinstance(part, ToolCallPart | ReasoningPart)]
                text = _in_words(said)
                if text or calls:
                    chat.append(_assistant(text, calls))
            case "tool":
                for part in message.parts:
                    if isinstance(part, ToolResultPart) and part.call_id in called:
                        chat.append({"role": "tool", "tool_call_id": part.call_id, "content": result_text(part.result)})
            case "user":
                chat.append({"role": "user", "content": _content(message.parts)})
            case "system":
                chat.append({"role": "system", "content": _in_words(message.parts) or EMPTY})
    return chat


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


def result_text(result: JsonValue) -> str:
    """A tool's result as the model sees it."""
    return result if isinstance(result, str) else json.dumps(result)


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
        return _in_words(parts) or EMPTY
    return [
        {"type": "image_url", "image_url": {"url": part.url, "detail": part.detail}}
        if isinstance(part, ImagePart)
        else {"type": "text", "text": _words(part)}
        for part in parts
    ]


def _in_words(parts: Sequence[Part]) -> str:
    return "\n".join(map(_words, parts))


def _words(part: Part) -> str:
    """A part as a person would be told of it."""
    match part:
        case TextPart(text=text):
            return text
        case ImagePart(url=url):
            where = f"inside the message, {url[5:].partition(';')[0].partition(',')[0]}" if url[:5] == "data:" else url
            return f"[image: {where}]"
        case FilePart(name=name, file_id=file_id, media_type=media_type):
            return f"[file: {name or file_id}, {media_type}]"
        case SourcePart(title=title, url=url):
            return f"[source: {', '.join(each for each in (title, url) if each) or 'unnamed'}]"
        case ReasoningPart(text=text):
            return f"[reasoning: {text}]"
        case ToolCallPart(name=name, arguments=arguments):
            return f"[tool call: {name} {arguments}]"
        case ToolResultPart(name=name, result=result):
            return f"[tool result: {name} {result_text(result)}]"
