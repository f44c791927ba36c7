"""Topic `tools`: what agents can call."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from schemas.base import JsonObject, Name, Spec

TOOL_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
"""A name that the model APIs take for a function."""

ToolName = Annotated[Name, Field(json_schema_extra={"pattern": TOOL_NAME_PATTERN})]


class ToolSpec(Spec):
    """A tool: what the model is told of it, and where its calls go."""

    type: Literal["tool.applied"] = "tool.applied"
    name: ToolName
    description: str = ""
    parameters: JsonObject = {"type": "object", "properties": {}}
    """JSON Schema of the arguments, an object."""
    queue: Name | None = None
    """Calls go to `tool-calls.<queue>`; none means `tool-calls`."""
    timeout_seconds: float = Field(default=60, gt=0, le=86_400)
    approval: bool = False
    """Whether every call waits for a person, whatever the agent says."""

    @field_validator("name")
    @classmethod
    def _function_name(cls, name: str) -> str:
        if not re.fullmatch(TOOL_NAME_PATTERN, name):
            raise ValueError("a tool's name has letters, digits, '_' and '-' only, as the model APIs demand")
        return name


ToolRegistryEvent = ToolSpec
EXAMPLES = [
    ToolSpec(
        name="get_weather",
        description="The weather in a city now.",
        parameters={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    )
]
