"""Tools from typed functions: what the model is told, and what reaches the function."""

import types
from collections.abc import Callable
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from services.runtime.errors import ConfigurationError
from services.tools import sample
from services.tools.errors import InvalidArgumentsError, ToolDefinitionError, ToolError
from services.tools.modules import load_tools
from services.tools.registration import collect, tool
from services.tools.tool import Tool, ToolContext
from services.tools.toolbox import Toolbox

CONTEXT = ToolContext(call_id="c-1", tenant_id="default", thread_id="t-1", turn_id="turn-1")


class Unit(StrEnum):
    KILO = "kg"
    POUND = "lb"


class Item(BaseModel):
    title: str
    count: int = 1


def invoke(made: Tool, **arguments: Any) -> Any:
    return made.bind(arguments, CONTEXT).call()


def test_the_schema_comes_from_annotations_and_docstring() -> None:
    @tool(queue="shop", timeout_seconds=5, approval=True)
    def order(
        items: list[Item],
        unit: Unit,
        context: ToolContext,
        due: date | None = None,
        kind: Literal["new", "repeat"] = "new",
        note: Annotated[str, Field(description="said by Annotated", max_length=10)] = "",
    ) -> str:
        """Orders items.

        Several at once.

        Args:
            items: what to order,
                all of it
            unit (Unit): of the weights
            note: not this one

        Returns:
            a receipt
        """
        return f"{len(items)} {unit} {due} {kind} {note} {context.call_id}"

    spec = order.spec
    assert (spec.name, spec.queue, spec.timeout_seconds, spec.approval) == ("order", "shop", 5, True)
    assert spec.description == "Orders items.\n\nSeveral at once."
    properties: Any = spec.parameters["properties"]
    assert list(properties) == ["items", "unit", "due", "kind", "note"]
    assert properties["items"]["description"] == "what to order, all of it"
    assert properties["unit"]["description"] == "of the weights"
    assert properties["note"] == {
        "type": "string",
        "maxLength": 10,
        "default": "",
        "description": "said by Annotated",
    }
    assert spec.parameters["required"] == ["items", "unit"]
    assert spec.parameters["additionalProperties"] is False
    definitions: Any = spec.parameters["$defs"]
    assert definitions["Item"]["properties"]["title"] == {"type": "string"}
    assert "title" not in spec.parameters

    answer = invoke(order, items=[{"title": "a"}], unit="kg", due="2026-01-02")
    assert answer == "1 kg 2026-01-02 new  c-1"


def test_rest_docstrings_describe_parameters_too() -> None:
    @tool
    def add(left: int, right: int) -> int:
        """Adds.

        :param left: the first
        :param int right: the second
        :returns: the sum
        """
        return left + right

    properties: Any = add.spec.parameters["properties"]
    assert add.spec.description == "Adds."
    assert [properties[name]["description"] for name in ("left", "right")] == ["the first", "the second"]


def test_a_tool_is_still_the_function() -> None:
    @tool
    def double(number: int) -> int:
        return number * 2

    assert double(4) == 8


def test_names_that_clash_with_pydantic_are_allowed() -> None:
    @tool
    def clash(schema: str, model_config: str, copy: int, json: bool, p0: str) -> str:
        return f"{schema} {model_config} {copy} {json} {p0}"

    assert invoke(clash, schema="a", model_config="b", copy=1, json=True, p0="c") == "a b 1 True c"


def test_wrong_arguments_are_named_each() -> None:
    @tool
    def place(city: str, days: int) -> None: ...

    with pytest.raises(InvalidArgumentsError) as raised:
        invoke(place, days="many", country="FR")
    message = str(raised.value)
    assert message.startswith("invalid arguments for place: ")
    for part in ("city: Field required", "days: Input should be a valid integer", "country: Extra inputs"):
        assert part in message


def no_annotation(city) -> None:  # type: ignore[no-untyped-def]
    ...


def many(*cities: str) -> None: ...


def unknown(city: "Nowhere") -> None:  # noqa: F821 # pyright: ignore[reportUndefinedVariable]
    ...


def no_schema(city: Callable[[], int]) -> None: ...


def field_default(city: str = Field(description="x")) -> None: ...


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (no_annotation, "needs a type annotation"),
        (many, "has no name that a model could give"),
        (unknown, "names something unknown"),
        (no_schema, "no JSON Schema"),
        (field_default, "Annotated"),
    ],
)
def test_a_function_that_no_model_could_call_is_refused(function: Callable[..., None], said: str) -> None:
    with pytest.raises(ToolDefinitionError, match=said):
        tool(function)


def test_a_name_that_model_apis_refuse_is_refused() -> None:
    with pytest.raises(ToolDefinitionError, match="letters, digits"):
        tool(name="get.weather")(lambda: None)


def test_collect_gives_each_tool_of_a_module_once() -> None:
    module = types.ModuleType("shop")

    @tool
    def one() -> None: ...

    @tool
    def two() -> None: ...

    vars(module).update(one=one, again=one, two=two, other=3)
    assert collect(module) == [one, two]


def test_modules_are_named_or_files(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from __future__ import annotations\n"
        "from services.tools.registration import tool\n"
        "from services.tools.tool import ToolContext\n"
        "@tool\ndef mine(number: int, context: ToolContext) -> int:\n    return number\n"
    )
    names = [each.spec.name for each in load_tools(f"services.tools.sample, {file}")]
    assert names == ["get_weather", "calculate", "mine"]


@pytest.mark.parametrize("name", ["services.nothing_here", "missing.py", "services.tools.errors"])
def test_a_module_that_gives_no_tools_is_one_clear_error(name: str) -> None:
    with pytest.raises(ConfigurationError, match="TURNLOG_TOOLS_MODULES"):
        load_tools(name)


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="get_weather"):
        Toolbox([sample.get_weather, sample.get_weather])


def test_a_tenants_tool_is_unknown_to_others() -> None:
    @tool(tenant_id="acme")
    def secret() -> None: ...

    box = Toolbox([secret])
    assert box.get("secret", tenant_id="acme") is secret
    assert box.get("secret", tenant_id="default") is None


def test_the_tools_of_others_come_and_go_and_never_hide_ones_own() -> None:
    @tool
    def one() -> None: ...

    @tool
    def two() -> None: ...

    box = Toolbox([sample.calculate])
    assert box.replace("server", [one, sample.calculate]) == ["calculate"]
    assert box.replace("other", [one]) == ["one"]
    assert box.replace("server", [two]) == []
    assert box.all() == [sample.calculate, two]


def test_the_sample_weather_says_that_it_is_sample_data() -> None:
    weather = sample.get_weather(" pArIs ", month=7)
    assert (weather.city, weather.mean_celsius) == ("Paris", 21)
    assert "sample data" in weather.source
    assert "sample data" in sample.get_weather.spec.description
    with pytest.raises(ToolError, match="knows no city 'Atlantis'"):
        sample.get_weather("Atlantis")


@pytest.mark.parametrize(
    ("expression", "value"),
    [("2 + 3 * 4", 14), ("(2+3)*4**2", 80), ("-7 // 2", -4), ("round(sqrt(2), 3)", 1.414), ("max(1, 2) % 2", 0)],
)
def test_arithmetic_is_calculated(expression: str, value: float) -> None:
    assert sample.calculate(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')",
        "().__class__",
        "open('/etc/passwd')",
        "'a' * 10",
        "True + 1",
        "[1][0]",
        "lambda: 1",
        "9**9**9",
        "10**1000 * 10**1000 * 10**1000 * 10**1000 * 10**1000 * 10**1000 * 10**1000",
        "(-8) ** 0.5",
        "1/0",
        "exp(1e9)",
        "2 +",
        "(" * 300 + "1" + ")" * 300,
        "1" * 501,
        "max()",
    ],
)
def test_what_is_not_bounded_arithmetic_is_refused(expression: str) -> None:
    with pytest.raises(ToolError):
        sample.calculate(expression)
