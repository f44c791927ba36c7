"""What a message is made of."""

import json
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from schemas.base import NO_FIELDS, Identifier, JsonObject, Model


class TextPart(Model):
    type: Literal["text"] = "text"
    text: str


class ImagePart(Model):
    """An image by URL (`https:` or `data:`)."""

    type: Literal["image"] = "image"
    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class FilePart(Model):
    type: Literal["file"] = "file"
    file_id: Identifier
    media_type: str = "application/octet-stream"
    name: str | None = None


class ReasoningPart(Model):
    type: Literal["reasoning"] = "reasoning"
    text: str


class ToolCallPart(Model):
    """A tool that the model asked for; `arguments` is JSON text exactly as the model wrote it."""

    type: Literal["tool_call"] = "tool_call"
    call_id: Identifier
    name: str
    arguments: str


class ToolResultPart(Model):
    type: Literal["tool_result"] = "tool_result"
    call_id: Identifier
    name: str
    result: JsonValue = None
    is_error: bool = False


class SourcePart(Model):
    """Where something in the message came from."""

    type: Literal["source"] = "source"
    title: str | None = None
    url: str | None = None
    metadata: JsonObject = NO_FIELDS


Part = Annotated[
    TextPart | ImagePart | FilePart | ReasoningPart | ToolCallPart | ToolResultPart | SourcePart,
    Field(discriminator="type"),
]

Content = str | list[Part]
"""What a prompt or a reply says: text, or a list of parts."""


def parts_of(content: Content) -> list[Part]:
    """Content as a list of parts."""
    return [TextPart(text=content)] if isinstance(content, str) else content


def text_of(parts: list[Part]) -> str:
    """The text of a message: its text parts, joined by line breaks."""
    return "\n".join(part.text for part in parts if isinstance(part, TextPart))


def result_text(result: JsonValue) -> str:
    """A tool's result as the model sees it."""
    return result if isinstance(result, str) else json.dumps(result)


def in_words(part: Part) -> str:
    """A part as a person would be told of it, and a model where its API has no place for such a part."""
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
