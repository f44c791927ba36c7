"""Two tools to try Turnlog with. They need no network, and say that what they know is sample data."""

import ast
import math
import operator
from collections.abc import Callable
from datetime import date
from typing import Annotated, Any

from pydantic import BaseModel, Field

from services.tools.errors import ToolError
from services.tools.registration import tool

_MEANS: dict[str, tuple[str, tuple[float, ...]]] = {
    "berlin": ("Berlin", (1, 2, 6, 11, 15, 19, 21, 20, 16, 11, 6, 2)),
    "cairo": ("Cairo", (14, 15, 18, 22, 26, 28, 29, 29, 27, 24, 20, 16)),
    "london": ("London", (6, 6, 8, 10, 14, 17, 19, 19, 16, 12, 8, 6)),
    "new york": ("New York", (1, 2, 6, 12, 18, 23, 26, 25, 21, 15, 9, 4)),
    "paris": ("Paris", (5, 6, 9, 12, 16, 19, 21, 21, 17, 13, 8, 6)),
    "sao paulo": ("São Paulo", (23, 23, 23, 21, 19, 18, 17, 19, 19, 21, 21, 22)),
    "sydney": ("Sydney", (23, 23, 22, 19, 16, 14, 13, 14, 17, 19, 20, 22)),
    "tokyo": ("Tokyo", (5, 6, 9, 14, 19, 22, 26, 27, 23, 18, 12, 8)),
}
"""Rounded mean temperature of each month, °C."""


class Weather(BaseModel):
    """The answer of `get_weather`."""

    city: str
    month: int
    mean_celsius: float
    source: str = "sample data: monthly climate means, not a measurement"


@tool(timeout_seconds=10)
def get_weather(
    city: Annotated[str, Field(min_length=1, max_length=100, description="name of a city, in English")],
    month: Annotated[
        int | None, Field(ge=1, le=12, description="month from 1 to 12; the current one by default")
    ] = None,
) -> Weather:
    """The usual temperature in a city. This is sample data from a small climate table, not a forecast."""
    found = _MEANS.get(city.strip().casefold().replace("ã", "a"))
    if found is None:
        known = ", ".join(name for name, _ in _MEANS.values())
        raise ToolError(f"the sample data knows no city {city!r}; it knows {known}")
    name, means = found
    month = month or date.today().month
    return Weather(city=name, month=month, mean_celsius=means[month - 1])


_LONGEST_EXPRESSION = 500
_LARGEST_EXPONENT = 1_000
_LARGEST_BITS = 20_000

_UNARY: dict[type[ast.unaryop], Callable[[float], float]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "cos": math.cos,
    "exp": math.exp,
    "floor": math.floor,
    "ceil": math.ceil,
    "log": math.log,
    "max": max,
    "min": min,
    "round": round,
    "sin": math.sin,
    "sqrt": math.sqrt,
    "tan": math.tan,
}
_CONSTANTS = {"pi": math.pi, "e": math.e}


@tool(timeout_seconds=5)
def calculate(
    expression: Annotated[str, Field(min_length=1, description="arithmetic such as (2 + 3) * 4 ** 2 or sqrt(2)")],
) -> int | float:
    """The value of an arithmetic expression: numbers, + - * / // % **, parentheses, pi, e and common functions."""
    if len(expression) > _LONGEST_EXPRESSION:
        raise ToolError(f"expected at most {_LONGEST_EXPRESSION} characters, got {len(expression)}")
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ToolError(f"{expression!r} is not an arithmetic expression") from error
    except (ArithmeticError, ValueError, TypeError) as error:
        raise ToolError(f"{expression!r} has no value: {error}") from error
    if isinstance(value, complex) or (isinstance(value, float) and not math.isfinite(value)):
        raise ToolError(f"{expression!r} has no finite real value")
    return value


def _value(node: ast.expr) -> int | float:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return _bounded(number)
        case ast.Name(id=name) if name in _CONSTANTS:
            return _CONSTANTS[name]
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in _UNARY:
            return _UNARY[type(sign)](_value(operand))
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(_value(left), _value(right))
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _BINARY:
            return _bounded(_BINARY[type(sign)](_value(left), _value(right)))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            return _bounded(_FUNCTIONS[name](*(_value(argument) for argument in arguments)))
        case _:
            raise ToolError(f"only arithmetic is allowed, not {ast.unparse(node)!r}")


def _power(base: float, exponent: float) -> int | float:
    if abs(exponent) > _LARGEST_EXPONENT:
        raise ToolError(f"expected an exponent of at most {_LARGEST_EXPONENT}, got {exponent}")
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * abs(exponent) > _LARGEST_BITS:
        raise ToolError("the power is too large")
    return _bounded(base**exponent)


def _bounded(value: float) -> int | float:
    if isinstance(value, int) and value.bit_length() > _LARGEST_BITS:
        raise ToolError("the number is too large")
    return value
