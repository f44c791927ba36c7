"""infra/compose.yaml read by a parser: it names the services that exist, and settings that they know."""

from __future__ import annotations

import importlib
import inspect
import re
import tomllib
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from infra.local.broker_config import BrokerConfig
from services.runtime.settings import RuntimeSettings

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("gateway", "agents", "tools", "memory", "usage")
SERVERS = ("kafka", "qdrant", "clickhouse")
PORTS = {"gateway": 8080, "memory": 8081, "usage": 8082, "agents": 8083, "tools": 8084}
# Read by the provider table and not by settings: the name that every client of OpenAI knows.
OTHER_NAMES = {"OPENAI_API_KEY"}

Section = dict[str, Any]


@pytest.fixture(scope="module")
def compose() -> Section:
    return cast("Section", yaml.safe_load((ROOT / "infra" / "compose.yaml").read_text()))


def settings_of(service: str) -> set[str]:
    """The environment variables that a service reads, from its settings models."""
    module = importlib.import_module(f"services.{service}.settings")
    models = [kind for _, kind in inspect.getmembers(module, inspect.isclass) if issubclass(kind, RuntimeSettings)]
    return {f"TURNLOG_{field.upper()}" for model in models for field in model.model_fields}


def wrong_names(service: str, environment: Section) -> set[str]:
    return set(environment) - settings_of(service) - OTHER_NAMES


def test_every_service_and_every_server_has_a_container(compose: Section) -> None:
    assert set(compose["services"]) == {*SERVICES, *SERVERS, "topics"}


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_runs_the_service_it_is_named_after_from_its_own_extra(compose: Section, service: str) -> None:
    container = compose["services"][service]
    assert container["command"] == ["run", service]
    assert container["build"]["args"] == {"SERVICE": service}
    assert container["build"]["dockerfile"] == "infra/Dockerfile"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert service in extras


@pytest.mark.parametrize("service", SERVICES)
def test_every_variable_of_a_container_is_a_setting_of_its_service(compose: Section, service: str) -> None:
    assert wrong_names(service, compose["services"][service]["environment"]) == set()


def test_a_variable_that_no_setting_reads_would_be_found() -> None:
    assert wrong_names("runtime", {"TURNLOG_KAFKA_BOOTSTRAP": "", "TURNLOG_KAFKA_BOOTSTRAPS": ""}) == {
        "TURNLOG_KAFKA_BOOTSTRAPS"
    }


@pytest.mark.parametrize("service", SERVICES)
def test_health_is_whether_the_service_is_ready_on_the_port_it_listens_on(compose: Section, service: str) -> None:
    container = compose["services"][service]
    assert f"http://127.0.0.1:{PORTS[service]}/readyz" in container["healthcheck"]["test"][-1]
    environment = container["environment"]
    if service in ("agents", "tools"):
        assert environment[f"TURNLOG_{service.upper()}_PORT"] == str(PORTS[service])
    settings = RuntimeSettings(http_port=int(environment["TURNLOG_HTTP_PORT"]))
    assert (settings.http_port, settings.memory_port, settings.usage_port) == (8080, 8081, 8082)


@pytest.mark.parametrize("server", SERVERS)
def test_every_server_has_a_fixed_version_a_volume_and_a_health_check(compose: Section, server: str) -> None:
    container = compose["services"][server]
    assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+(\.\d+)?", container["image"])
    assert container["volumes"][0].partition(":")[0] in compose["volumes"]
    assert container["healthcheck"]["test"]


def test_what_is_waited_for_exists_and_can_be_waited_for(compose: Section) -> None:
    containers = compose["services"]
    for container in containers.values():
        for name, wanted in container.get("depends_on", {}).items():
            if wanted["condition"] == "service_healthy":
                assert "healthcheck" in containers[name]
            else:
                assert wanted["condition"] == "service_completed_successfully"
                assert containers[name]["command"] == ["topics", "apply"]


def test_nothing_listens_beyond_this_machine(compose: Section) -> None:
    published = [port for container in compose["services"].values() for port in container.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_kafka_is_set_up_here_as_the_local_launcher_does_it(compose: Section) -> None:
    launcher = dict(line.split("=", 1) for line in BrokerConfig(1, 2, Path("/data")).server_properties().splitlines())
    for name, value in compose["services"]["kafka"]["environment"].items():
        setting = name.removeprefix("KAFKA_").replace("_", ".").lower()
        if setting.startswith(("log.retention", "offsets.", "transaction.", "share.", "message.", "replica.", "auto.")):
            assert launcher[setting] == value, setting


def test_the_image_runs_as_a_user_without_rights() -> None:
    text = (ROOT / "infra" / "Dockerfile").read_text()
    last_stage = text.rpartition("FROM ")[2]
    assert "\nUSER turnlog\n" in last_stage
    assert "--frozen" in text
    assert '--extra "$SERVICE"' in text
