"""`turnlog doctor`: what is needed, whether it is there, what to do when it is not."""

import os
import socket
import sys
from collections.abc import AsyncIterator
from typing import Any, Literal, NamedTuple

import aiohttp
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

from services.cli.composition import SERVICES, settings_of
from services.cli.gateway import base_url
from services.runtime.errors import UnavailableError
from services.runtime.kafka import KafkaClients
from services.runtime.settings import RuntimeSettings, load_settings
from services.runtime.topics import check_topics

console = Console(highlight=False)

ASK_SECONDS = 2
OLDEST_PYTHON = (3, 11)


class Finding(NamedTuple):
    """`todo` is what to do when the verdict is not ok."""

    what: str
    verdict: Literal["ok", "warn", "fail"]
    detail: str
    todo: str = ""


async def check() -> int:
    """Prints every finding and every setting. Exit code 1 when something fails."""
    settings = load_settings(RuntimeSettings)
    findings = [finding async for finding in _findings(settings)]
    table = Table("", "checked", "found", "what to do")
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    for each in findings:
        todo = "" if each.verdict == "ok" else each.todo
        table.add_row(f"[{colours[each.verdict]}]{each.verdict}[/]", each.what, each.detail, todo)
    console.print(table)
    _print_settings()
    return 1 if any(each.verdict == "fail" for each in findings) else 0


async def _findings(settings: RuntimeSettings) -> AsyncIterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding(
        "Python", "ok" if sys.version_info >= OLDEST_PYTHON else "fail", version, "install Python 3.11 or newer"
    )
    yield _data_folder(settings)
    kafka = await _kafka(settings)
    yield kafka
    up = await _answers(f"{base_url(settings)}/healthz")
    for name, port in (
        ("gateway", settings.http_port),
        ("memory", settings.memory_port),
        ("usage", settings.usage_port),
    ):
        yield _port(settings.http_host, name, port, up)
    yield await _ready(settings, up)


def _data_folder(settings: RuntimeSettings) -> Finding:
    folder = settings.data_dir.absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if existing.is_dir() and os.access(existing, os.W_OK):
        return Finding("data folder", "ok", str(folder))
    return Finding("data folder", "fail", f"{existing} is no folder that can be written to", "set TURNLOG_DATA_DIR")


async def _kafka(settings: RuntimeSettings) -> Finding:
    try:
        report = await check_topics(KafkaClients(settings, client_id="turnlog-doctor"), settings)
    except UnavailableError:
        if settings.local:
            return Finding("Kafka", "warn", f"not running on port {settings.local_kafka_port}", "start `turnlog up`")
        return Finding("Kafka", "fail", f"no answer at {settings.bootstrap}", "set TURNLOG_KAFKA_BOOTSTRAP")
    if report.problems:
        return Finding("Kafka", "fail", "; ".join(report.problems), "run `turnlog topics apply`")
    return Finding("Kafka", "ok", f"{settings.bootstrap}, {len(report.existing)} topics")


def _port(host: str, name: str, port: int, up: bool) -> Finding:
    what = f"port of {name}"
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if up:
                return Finding(what, "ok", f"{port}, in use by Turnlog")
            return Finding(what, "fail", f"{port}: {error.strerror}", "stop what uses it or set TURNLOG_HTTP_PORT")
    return Finding(what, "ok", f"{port} is free")


async def _ready(settings: RuntimeSettings, up: bool) -> Finding:
    if not up:
        return Finding("readiness", "warn", f"nothing answers at {base_url(settings)}", "start `turnlog up`")
    async with aiohttp.ClientSession() as session, session.get(f"{base_url(settings)}/readyz") as response:
        body: dict[str, Any] = await response.json()
    waiting = [f"{name}: {each['detail']}" for name, each in body["components"].items() if not each["ready"]]
    if waiting:
        return Finding("readiness", "fail", "; ".join(waiting), "see the log of that service")
    return Finding("readiness", "ok", "a prompt would be answered")


async def _answers(url: str) -> bool:
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ASK_SECONDS)) as session,
            session.get(url) as response,
        ):
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


def _print_settings() -> None:
    """Every setting with its value and where that came from; secrets are masked."""
    table = Table("setting", "value", "from", title="Settings")
    shown: set[str] = set()
    for name in SERVICES:
        settings = settings_of(name)
        for field in type(settings).model_fields:
            if field in shown:
                continue
            shown.add(field)
            variable = f"TURNLOG_{field.upper()}"
            value: object = getattr(settings, field)
            origin = (
                "environment" if variable in os.environ else ".env" if field in settings.model_fields_set else "default"
            )
            masked = "********" if isinstance(value, SecretStr) else "" if value is None else str(value)
            table.add_row(variable, masked, origin)
    console.print(table)
