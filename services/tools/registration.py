"""A tool from a typed Python function: its schema comes from the annotations and the docstring.

    @tool(timeout_seconds=10, retries=2, retry_on=(ConnectionError,))
    async def get_order(order_id: str, context: ToolContext) -> dict[str, str]:
        '''An order of the shop.

        Args:
            order_id: number on the invoice
        '''

The decorator registers nothing: a tool is a value, and `collect` finds the values of a module.
"""

import inspect
import re
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Annotated, Any, Generic, ParamSpec, TypeVar, cast, get_args, get_origin, get_type_hints, overload

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError
from pydantic.fields import FieldInfo

from schemas.base import JsonObject
from schemas.tools import ToolSpec
from services.tools.errors import InvalidArgumentsError, ToolDefinitionError
from services.tools.tool import Invocation, RetryPolicy, Tool, ToolContext

P = ParamSpec("P")
R = TypeVar("R")

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_SECTION = re.compile(r"^(Args|Arguments|Parameters|Returns?|Raises|Yields?|Examples?|Notes?):\s*$")
_ARGUMENT = re.compile(r"^\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)$")
_REST = re.compile(r"^:param\s+(?:[^:]*\s)?(\w+)\s*:\s*(.*)$")


class FunctionTool(Generic[P, R]):
    """A Python function that a model can call. Calling it is calling the function."""

    def __init__(self, function: Callable[P, R], spec: ToolSpec, retry: RetryPolicy, signature: "_Signature") -> None:
        self.spec = spec
        self.retry = retry
        self._function = function
        self._signature = signature
        self._blocking = not inspect.iscoroutinefunction(inspect.unwrap(function))
        self.__doc__ = function.__doc__
        self.__name__ = spec.name

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<tool {self.spec.name}>"

    def bind(self, arguments: JsonObject, context: ToolContext) -> Invocation:
        """Checks and converts the arguments. Raises InvalidArgumentsError that names each wrong one."""
        values = self._signature.values(self.spec.name, arguments)
        if self._signature.context is not None:
            values[self._signature.context] = context
        function = cast("Callable[..., Any]", self._function)
        return Invocation(lambda: function(**values), blocking=self._blocking)


@overload
def tool(function: Callable[P, R], /) -> FunctionTool[P, R]: ...


@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    queue: str | None = None,
    timeout_seconds: float = 60,
    approval: bool = False,
    retries: int = 0,
    retry_on: Sequence[type[BaseException]] = (),
    tenant_id: str | None = None,
) -> Callable[[Callable[P, R]], FunctionTool[P, R]]: ...


def tool(
    function: Callable[P, R] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    queue: str | None = None,
    timeout_seconds: float = 60,
    approval: bool = False,
    retries: int = 0,
    retry_on: Sequence[type[BaseException]] = (),
    tenant_id: str | None = None,
) -> FunctionTool[P, R] | Callable[[Callable[P, R]], FunctionTool[P, R]]:
    """Makes a tool of a function, sync (it runs in a thread) or async. Usable with and without parentheses.

    Args:
        name: what the model calls it; the function's name by default.
        description: what the model is told; the docstring up to its sections by default.
        queue: the tool's own queue, `tool-calls.<queue>`, for workers of another kind; shared by default.
        timeout_seconds: time limit of a call, all attempts together.
        approval: whether each call waits for a person.
        retries: how often an exception of `retry_on`, or one whose `retryable` is true, is tried again.
        tenant_id: the only tenant that may use it.

    Raises:
        ToolDefinitionError: the function cannot be described to a model; the message says which parameter and why.
    """

    def build(target: Callable[P, R]) -> FunctionTool[P, R]:
        own_name = name or getattr(target, "__name__", "tool")
        text, described = _parse_docstring(inspect.getdoc(target) or "")
        signature = _Signature(target, own_name, described)
        try:
            spec = ToolSpec(
                name=own_name,
                tenant_id=tenant_id,
                description=description if description is not None else text,
                parameters=signature.schema,
                queue=queue,
                timeout_seconds=timeout_seconds,
                approval=approval,
            )
        except ValidationError as error:
            raise ToolDefinitionError(f"tool {own_name}: {_problems(error)}") from error
        return FunctionTool(target, spec, RetryPolicy(retries=retries, on=tuple(retry_on)), signature)

    return build if function is None else build(function)


def collect(module: ModuleType) -> list[Tool]:
    """The tools that a module holds, in the order in which it defines them, each once."""
    found: list[Tool] = []
    for value in vars(module).values():
        if isinstance(value, FunctionTool) and value not in found:
            found.append(cast("FunctionTool[..., Any]", value))
    return found


class _Signature:
    """The parameters of a function as a pydantic model, and the name of its context parameter."""

    def __init__(self, function: Callable[..., Any], name: str, described: dict[str, str]) -> None:
        self.context: str | None = None
        self._names: list[str] = []
        try:
            hints = get_type_hints(function, include_extras=True)
        except NameError as error:
            raise ToolDefinitionError(f"tool {name}: an annotation names something unknown: {error}") from error
        fields: dict[str, Any] = {}
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind not in _NAMED:
                raise ToolDefinitionError(f"tool {name}: parameter {parameter} has no name that a model could give")
            if parameter.name not in hints:
                raise ToolDefinitionError(f"tool {name}: parameter {parameter.name} needs a type annotation")
            annotation = hints[parameter.name]
            if annotation is ToolContext or ToolContext in get_args(annotation):
                self.context = parameter.name
                continue
            if isinstance(parameter.default, FieldInfo):
                raise ToolDefinitionError(
                    f"tool {name}: write {parameter.name}: Annotated[..., Field(...)] instead of a Field as default"
                )
            # Fields are named by position and known by their alias, so that no parameter name can clash with the
            # attributes of a pydantic model.
            fields[f"p{len(self._names)}"] = (annotation, _field(parameter, annotation, described))
            self._names.append(parameter.name)
        config = ConfigDict(extra="forbid", protected_namespaces=(), arbitrary_types_allowed=False)
        try:
            self._model = create_model(name, __config__=config, **fields)
            self.schema = _without_titles(self._model.model_json_schema(by_alias=True))
        except (PydanticSchemaGenerationError, PydanticUserError) as error:
            raise ToolDefinitionError(f"tool {name}: a parameter has no JSON Schema: {error.message}") from error

    def values(self, name: str, arguments: JsonObject) -> dict[str, Any]:
        try:
            model: BaseModel = self._model.model_validate(arguments)
        except ValidationError as error:
            raise InvalidArgumentsError(f"invalid arguments for {name}: {_problems(error)}") from error
        return {given: getattr(model, f"p{index}") for index, given in enumerate(self._names)}


def _field(parameter: inspect.Parameter, annotation: Any, described: dict[str, str]) -> Any:
    default: Any = ... if parameter.default is inspect.Parameter.empty else parameter.default
    description = described.get(parameter.name)
    if _describes_itself(annotation):
        description = None
    if description:
        return Field(default, alias=parameter.name, description=description)
    return Field(default, alias=parameter.name)


def _describes_itself(annotation: Any) -> bool:
    if get_origin(annotation) is not Annotated:
        return False
    return any(isinstance(each, FieldInfo) and each.description for each in get_args(annotation)[1:])


def _without_titles(schema: dict[str, Any]) -> JsonObject:
    """Titles repeat the names; they cost tokens in every prompt. Properties that are called `title` stay."""

    def clean(node: Any, *, names: bool) -> Any:
        if isinstance(node, list):
            return [clean(each, names=False) for each in cast("list[Any]", node)]
        if not isinstance(node, dict):
            return node
        items = cast("dict[str, Any]", node).items()
        return {
            key: value
            if key in ("default", "const", "enum", "examples") and not names
            else clean(value, names=key in ("properties", "$defs") and not names)
            for key, value in items
            if names or key != "title" or not isinstance(value, str)
        }

    return cast("JsonObject", pydantic_core.to_jsonable_python(clean(schema, names=False)))


def _problems(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(str(step) for step in problem['loc']) or 'arguments'}: {problem['msg']}"
        for problem in error.errors(include_url=False, include_input=False)[:10]
    )


def _parse_docstring(text: str) -> tuple[str, dict[str, str]]:
    """The text before the first section, and what `Args:` or `:param name:` says of each parameter."""
    summary: list[str] = []
    described: dict[str, str] = {}
    section: str | None = None
    current = ""
    indent = 0
    for line in text.splitlines():
        stripped = line.strip()
        if rest := _REST.match(stripped):
            section, current = "rest", str(rest[1])
            described[current] = rest[2]
        elif found := _SECTION.match(line):
            section, current = found[1], ""
        elif stripped.startswith(":") and section in (None, "rest"):
            section, current = "rest", ""
        elif section is None:
            summary.append(line)
        elif section in ("Args", "Arguments", "Parameters") and stripped:
            depth = len(line) - len(line.lstrip())
            entry = _ARGUMENT.match(stripped)
            if entry and (not current or depth <= indent):
                current, indent = str(entry[1]), depth
                described[current] = entry[2]
            elif current:
                described[current] = f"{described[current]} {stripped}".strip()
        elif section == "rest" and current and stripped:
            described[current] = f"{described[current]} {stripped}".strip()
    return "\n".join(summary).strip(), described
