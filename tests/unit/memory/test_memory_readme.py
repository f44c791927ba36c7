"""The README of memory says what the code does."""

import re
from pathlib import Path
from typing import get_args

import pytest
from fastapi.routing import APIRoute
from pydantic import BaseModel, SecretStr

from schemas.agents import ContextOptions
from schemas.http import ComponentHealth, ContextMessage
from services.memory import fill
from services.memory.api import WAIT_SECONDS, build_api
from services.memory.app import MemoryService
from services.memory.batch_size import CALM, FAILURES, FAILURES_ALONE
from services.memory.embedder_http import HttpEmbedder
from services.memory.embedder_local import LocalEmbedder
from services.memory.embeddings import QUERIES_AT_ONCE, QUERY_SECONDS
from services.memory.projection import CARRIED_AT_ONCE, STEPS_WHILE_HELD
from services.memory.qdrant_edge import EdgeMemoryStore
from services.memory.qdrant_server import NEEDED
from services.memory.qdrant_shard import FLUSH_SECONDS
from services.memory.reads import Reads
from services.memory.settings import MemorySettings
from services.memory.store import Kind
from services.runtime.disk import RESERVE_MEGABYTES
from services.runtime.groups import MEMORY_GROUP
from services.runtime.projection import LAG, LAG_SECONDS
from services.runtime.settings import RuntimeSettings

README = (Path(__file__).parents[3] / "services" / "memory" / "README.md").read_text()
TEXT = " ".join(README.split())
"""However its lines are wrapped."""


def rows(name: str) -> list[tuple[str, ...]]:
    """The cells of the table whose first column is called so."""
    found = re.search(rf"^\| {name} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", README, re.MULTILINE)
    assert found, f"no table of {name}"
    return [tuple(cell.strip() for cell in line.removesuffix("|").split("|")[1:]) for line in found[1].splitlines()]


def test_the_table_of_settings_is_the_settings_own() -> None:
    fields = {f"TURNLOG_{name.upper()}": field for name, field in MemorySettings.model_fields.items()}
    own = {f"TURNLOG_{name.upper()}" for name in MemorySettings.model_fields.keys() - RuntimeSettings.model_fields}
    written = {name.strip("`"): (default.strip("`"), meaning) for name, default, meaning in rows("variable")}
    assert own <= written.keys()
    for name, said in written.items():
        default = fields[name].default
        shown = "unset" if default in (None, "") else str(default)
        assert said == (shown, fields[name].description)


@pytest.mark.parametrize("key", ["qdrant_api_key", "embedding_api_key", "embedding_former_api_key"])
def test_secrets_are_masked(key: str) -> None:
    assert MemorySettings.model_fields[key].annotation == SecretStr | None


def test_the_table_of_paths_has_every_one_and_every_filter(tmp_path: Path) -> None:
    class Nowhere:
        async def wait_for(self, partition: int, min_offset: int, timeout_seconds: float) -> None: ...

    async def check() -> dict[str, ComponentHealth]:
        return {}

    app = build_api(Reads(EdgeMemoryStore(tmp_path)), Nowhere(), check)
    routes = [route for route in app.routes if isinstance(route, APIRoute) and route.include_in_schema]
    written = {name.strip("`"): meaning for name, meaning in rows("path")}
    assert written.keys() == {f"{method} {route.path}" for route in routes for method in route.methods}
    everywhere = {"tenant_id", "limit", "cursor", "partition", "min_offset"}
    paths = app.openapi()["paths"]
    for route in routes:
        [method] = route.methods
        said = written[f"{method} {route.path}"]
        parameters = paths[route.path_format][method.lower()].get("parameters", [])
        for name in [each["name"] for each in parameters if each["in"] == "query"]:
            assert f"`{name}`" in (README if name in everywhere else said)


async def test_the_table_of_operators_paths_has_every_one(tmp_path: Path) -> None:
    app = MemoryService(MemorySettings(data_dir=tmp_path, http_port=0)).api
    paths = {
        f"{method} {route.path}" for route in app.routes if isinstance(route, APIRoute) for method in route.methods
    }
    written = {path for names, _ in rows("operator's path") for path in re.findall(r"`([A-Z]+ /[\w/]+)`", names)}
    assert written == {path for path in paths if "/audit/" in path or "/rebuild" in path}


def test_the_table_of_reasons_is_the_contracts_own() -> None:
    assert {name.strip("`") for name, _ in rows("reason")} == {
        *get_args(ContextMessage.model_fields["reason"].annotation)
    }


def options_of(model: type[BaseModel], prefix: str = "") -> dict[str, object]:
    """By name, the defaults of options, and of the options within them."""
    found: dict[str, object] = {}
    for name, field in model.model_fields.items():
        within = [each for each in (field.annotation, *get_args(field.annotation)) if isinstance(each, type)]
        models = [each for each in within if issubclass(each, BaseModel)]
        if not (models and isinstance(field.default, BaseModel)):
            found[prefix + name] = field.default
        for each in models:
            found |= options_of(each, f"{prefix}{name}.")
    return found


def test_the_table_of_options_is_the_contracts_own() -> None:
    written = {name.strip("`"): default for name, default, _ in rows("option")}
    defaults = options_of(ContextOptions).items()
    assert written == {name: "unset" if each is None else str(each).lower() for name, each in defaults}


def test_the_names_and_times_in_the_text_are_those_of_the_code() -> None:
    assert f"`source` `{MEMORY_GROUP}`" in TEXT
    assert f"a GET up to {WAIT_SECONDS:g} s" in TEXT
    assert f"needs Qdrant {NEEDED[0]}.{NEEDED[1]} or later" in TEXT
    assert FLUSH_SECONDS == 1
    assert "flushes once a second" in TEXT
    assert f"less than {RESERVE_MEGABYTES} MiB free" in TEXT
    assert f"the newest {CARRIED_AT_ONCE * STEPS_WHILE_HELD:,} at most" in TEXT
    assert f"measured every {LAG_SECONDS:g} s" in TEXT
    for metric in (LAG, fill.WAITING):
        assert next(iter(metric.describe())).name in TEXT
    assert f"{next(iter(fill.MESSAGES.describe())).name}_total" in TEXT
    assert f"a query that gets no vector within {QUERY_SECONDS:g} s" in TEXT
    assert f"{QUERIES_AT_ONCE} queries are under way to the model at most" in TEXT
    assert f"is refused, or fails {FAILURES} times, while" in TEXT
    assert f"is refused or fails {FAILURES_ALONE} times so" in TEXT
    assert f"{CALM} calls went through" in TEXT
    assert f"else after {fill.RETRY_SECONDS:g} to {fill.MOST_RETRY_SECONDS:g} s" in TEXT
    assert f"first {LocalEmbedder.longest:,} characters" in TEXT
    assert f"first {HttpEmbedder.longest:,} characters" in TEXT
    assert f"a batch of {LocalEmbedder.batch}" in TEXT
    for kind in get_args(Kind):
        assert f"`{kind}`" in TEXT
