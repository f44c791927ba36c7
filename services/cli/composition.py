"""Services by name, loaded when they are asked for: `turnlog --help` and an image with one service import no other."""

import importlib
from collections.abc import Sequence
from typing import Any, Literal, get_args

from services.runtime.service import Service
from services.runtime.settings import RuntimeSettings, load_settings

ServiceName = Literal["memory", "usage", "tools", "agents", "gateway"]

SERVICES: tuple[ServiceName, ...] = get_args(ServiceName)
"""In the order in which they start; they stop in reverse."""


def settings_of(name: ServiceName, **overrides: object) -> RuntimeSettings:
    """The settings of a service from the environment. Raises ConfigurationError."""
    return load_settings(_load(f"services.{name}.settings", f"{name.title()}Settings"), **overrides)


def build_service(name: ServiceName, **overrides: object) -> Service:
    """A service that is wired and not started. Raises ConfigurationError."""
    settings = settings_of(name, **overrides)
    return _load(f"services.{name}.app", f"{name.title()}Service")(settings)


def build_gateway(beside: Sequence[Service]) -> Service:
    """The gateway, ready only when the services beside it in the process are."""
    return _load("services.gateway.app", "GatewayService")(settings_of("gateway"), beside=beside)


def _load(module: str, attribute: str) -> Any:
    return getattr(importlib.import_module(module), attribute)
