"""What a message is made of."""

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
