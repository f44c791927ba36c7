"""From messages to what a chat completions API takes. Pure."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from schemas.http import MessageView
from schemas.journal import MessageAdded
from schemas.parts import FilePart, ImagePart, Part, TextPart, ToolCallPart, ToolResultPart, text_of
from schemas.tools import ToolSpec

ChatMessage = dict[str, Any]
"""A message in the format of OpenAI's chat completions."""


def chat_messages(instructions: str, messages: Iterable[MessageView | MessageAdded]) -> list[ChatMessage]:
    """System instructions, then the messages. A tool's answer comes only behind the call that asked for it."""
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
                text = text_of(message.parts)
                if text or calls:
                    chat.append(_assistant(text, calls))
            case "tool":
                for part in message.parts:
                    if isinstance(part, ToolResultPart) and part.call_id in called:
                        content = part.result if isinstance(part.result, str) else json.dumps(part.result)
                        chat.append({"role": "tool", "tool_call_id": part.call_id, "content": content})
            case role:
                chat.append({"role": role, "content": _content(message.parts)})
    return chat


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
    if all(isinstance(part, TextPart) for part in parts):
        return text_of(list(parts))
    content: list[dict[str, Any]] = []
    for part in parts:
        match part:
            case TextPart(text=text):
                content.append({"type": "text", "text": text})
            case ImagePart(url=url, detail=detail):
                content.append({"type": "image_url", "image_url": {"url": url, "detail": detail}})
            case FilePart(name=name, file_id=file_id):
                content.append({"type": "text", "text": f"[file {name or file_id}]"})
            case _:
                pass
    return content
