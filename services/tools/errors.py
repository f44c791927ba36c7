"""Errors of tools. The model is told what a call fails with: each message says what was expected and what came."""

from typing import Literal

from services.runtime.errors import ConfigurationError, TurnlogError

FailureCode = Literal[
    "unknown_tool",
    "invalid_arguments",
    "timeout",
    "error",
    "unavailable",
    "result_not_json",
    "result_too_large",
]
"""The `code` of a `tool.failed` that this service writes."""


class ToolDefinitionError(ConfigurationError):
    """A tool that cannot be described to a model as it is written."""

    code = "tool_definition"


class InvalidArgumentsError(TurnlogError):
    """Arguments that do not fit the tool's schema. The model may call again with better ones."""

    code = "invalid_arguments"


class ResultTooLargeError(TurnlogError):
    """More than a tool may answer."""

    code = "result_too_large"


class ToolUnavailableError(TurnlogError):
    """What the tool calls does not answer now. `retry_after_seconds`: when it asked to be called again."""

    code = "unavailable"
    retryable = True

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class ToolError(TurnlogError):
    """A tool may raise this: the model reads the message alone, without the name of an exception before it."""

    code = "error"
