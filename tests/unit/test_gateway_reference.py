"""What `/docs` says of answers: those that there are, and errors as they leave."""

from typing import Any

import pytest

from schemas.http import ComponentHealth
from services.gateway.app import build_api
from services.runtime.web import PROBLEM_JSON


async def check() -> dict[str, ComponentHealth]:
    return {}


REFERENCE = build_api(None, check).openapi()  # pyright: ignore[reportArgumentType]
OPERATIONS = [(method, path) for path, operations in REFERENCE["paths"].items() for method in operations]


def responses(method: str, path: str) -> dict[str, Any]:
    return REFERENCE["paths"][path][method]["responses"]


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_every_error_is_a_problem_document(method: str, path: str) -> None:
    told = responses(method, path)
    assert told["default"]["content"] == {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    assert [status for status in told if status >= "4" and status != "default"] == []


def test_every_schema_that_is_named_is_there() -> None:
    def named(part: Any) -> set[str]:
        if isinstance(part, dict):
            own = {part["$ref"]} if isinstance(part.get("$ref"), str) else set[str]()
            return own.union(*(named(each) for each in part.values()))
        return set[str]().union(*(named(each) for each in part)) if isinstance(part, list) else set()

    there = {f"#/components/schemas/{name}" for name in REFERENCE["components"]["schemas"]}
    assert named(REFERENCE) <= there
    assert "#/components/schemas/Problem" in there


@pytest.mark.parametrize(
    ("method", "path", "answer"),
    [
        ("post", "", "ThreadAccepted"),
        ("patch", "/{thread_id}", "ThreadAccepted"),
        ("delete", "/{thread_id}", "ThreadAccepted"),
        ("post", "/{thread_id}/fork", "ForkAccepted"),
        ("post", "/{thread_id}/messages", "MessagesAccepted"),
        ("delete", "/{thread_id}/messages", "DeletionAccepted"),
    ],
)
def test_a_change_answers_the_same_whether_it_is_waited_for_or_not(method: str, path: str, answer: str) -> None:
    told = responses(method, f"/v1/threads{path}")
    schema = {"application/json": {"schema": {"$ref": f"#/components/schemas/{answer}"}}}
    assert {status: told[status]["content"] for status in ("200", "202")} == {"200": schema, "202": schema}


def test_events_are_a_stream() -> None:
    assert list(responses("get", "/v1/threads/{thread_id}/events")["200"]["content"]) == ["text/event-stream"]
    assert list(responses("post", "/v1/threads/{thread_id}/prompts")["200"]["content"]) == [
        "application/json",
        "text/event-stream",
    ]
