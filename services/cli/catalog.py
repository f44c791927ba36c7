"""`turnlog agents`, `turnlog tools`, `turnlog prices`, `turnlog budgets` and `turnlog plans`."""

import asyncio
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from schemas.agents import AgentSpec
from schemas.base import DEFAULT_TENANT, Spec, format_amount, format_time
from schemas.budgets import BudgetSpec
from schemas.http import Page
from schemas.plans import PlanSpec, SubscriptionSpec
from schemas.prices import PriceSpec
from schemas.tools import ToolSpec
from schemas.topics import AGENTS, BUDGETS, PLANS, PRICES, TOOLS, Topic
from services.cli.gateway import request
from services.runtime.budgets import BudgetBoard
from services.runtime.errors import ConfigurationError, UnavailableError
from services.runtime.kafka import KafkaClients, KafkaError
from services.runtime.registry import Registry, apply_spec
from services.runtime.settings import RuntimeSettings, load_settings
from services.usage.budgets.progress import BudgetProgress

console = Console(highlight=False)

PROGRESS_SECONDS = 5
"""Longest wait for usage: budgets are listed without it too."""

S = TypeVar("S", bound=Spec)


def read_specs(file: Path, kind: type[S]) -> list[S]:
    """The definitions of a YAML file, one a document. Raises ConfigurationError naming file, document and field."""
    return _read_documents(file, lambda _: kind)


def read_plans(file: Path) -> list[PlanSpec | SubscriptionSpec]:
    """As `read_specs`: documents with `charges` are plans, the others subscriptions."""
    return _read_documents(file, lambda document: PlanSpec if "charges" in document else SubscriptionSpec)


def _read_documents(file: Path, kind_of: Callable[[Any], type[S]]) -> list[S]:
    try:
        documents: list[Any] = [each for each in yaml.safe_load_all(file.read_text()) if each is not None]
    except OSError as error:
        raise ConfigurationError(f"{file}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
    if not documents:
        raise ConfigurationError(f"{file} has no document in it")
    specs: list[S] = []
    for number, document in enumerate(documents, start=1):
        try:
            specs.append(kind_of(document).model_validate(document, extra="forbid"))
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(str(step) for step in each['loc']) or 'document'}: {each['msg']}"
                for each in error.errors(include_url=False, include_input=False)
            )
            raise ConfigurationError(f"{file}, document {number}: {problems}") from error
    return specs


async def apply_agents(file: Path) -> None:
    await _apply(AGENTS, read_specs(file, AgentSpec))


async def apply_prices(file: Path) -> None:
    await _apply(PRICES, read_specs(file, PriceSpec))


async def apply_budgets(file: Path) -> None:
    await _apply(BUDGETS, read_specs(file, BudgetSpec))


async def apply_plans(file: Path) -> None:
    await _apply(PLANS, read_plans(file))


async def _apply(topic: Topic, specs: Sequence[Spec]) -> None:
    settings = load_settings(RuntimeSettings)
    clients = KafkaClients(settings, client_id="turnlog-cli")
    producer = clients.producer()
    try:
        await producer.start()
    except KafkaError as error:
        await producer.stop()
        raise _no_kafka(settings) from error
    try:
        for spec in specs:
            await apply_spec(producer, clients, settings, topic, spec)
            console.print(f"applied {spec.name} version {spec.version}")
    finally:
        await producer.stop()


async def list_agents() -> None:
    table = Table("agent", "version", "model", "tools", "description")
    registry: Registry[AgentSpec] = await _read(AGENTS)
    for agent in registry.all(DEFAULT_TENANT):
        table.add_row(agent.name, agent.version, agent.model or "(default)", ", ".join(agent.tools), agent.description)
    console.print(table)


async def list_tools() -> None:
    table = Table("tool", "queue", "time limit", "description")
    registry: Registry[ToolSpec] = await _read(TOOLS)
    for tool in registry.all(DEFAULT_TENANT):
        table.add_row(tool.name, tool.queue or "", f"{tool.timeout_seconds:g} s", tool.description.split("\n")[0])
    console.print(table)


async def list_prices() -> None:
    table = Table("price", "version", "figure", "tenant", "for", "from", "what", "tiers")
    registry: Registry[PriceSpec] = await _read(PRICES)
    for price in registry.history():
        named = (price.kind, price.provider, price.model, price.tool)
        table.add_row(
            price.name,
            price.version,
            price.figure,
            price.tenant_id or "(any)",
            " ".join(name for name in named if name) or "(any)",
            format_time(price.effective_from),
            _what(price),
            ", ".join(f"> {tier.above_input_tokens:,}" for tier in price.tiers),
        )
    console.print(table)


async def list_plans() -> None:
    table = Table("name", "version", "what", "tenant", "from", "charges")
    registry: Registry[PlanSpec | SubscriptionSpec] = await _read(PLANS)
    for spec in registry.history():
        charges = ""
        match spec:
            case PlanSpec():
                what = f"plan in {spec.currency}"
                charges = ", ".join(f"{each.name} {each.scheme}" for each in spec.charges)
            case SubscriptionSpec():
                what = f"subscription to {spec.plan or 'nothing'}"
        table.add_row(spec.name, spec.version, what, spec.tenant_id or "(any)", spec.from_period, charges)
    console.print(table)


def _what(price: PriceSpec) -> str:
    rates = price.rates.model_dump(exclude_none=True)
    said = [f"{name} {format_amount(rate)} {price.currency}" for name, rate in rates.items()]
    return ", ".join([*said, f"{price.markup:+%}"] if price.markup or not said else said)


async def list_budgets() -> None:
    table = Table("budget", "tenant", "by", "caps", "used up", "state")
    board = await _board()
    progress = await _progress()
    for budget in board.budgets.all():
        accounts = [state for state in board.accounts(budget.name) if state.is_of(budget)]
        table.add_row(
            budget.name,
            budget.tenant_id or "(each)",
            f"{budget.by} {budget.who or ''}".strip() + f", {budget.per}",
            _caps(budget),
            f"{sum(state.level == 'exceeded' for state in accounts)} of {len(accounts)}",
            _standing(budget, progress),
        )
    console.print(table)


async def show_budget(name: str) -> None:
    """Raises ConfigurationError when there is none of the name."""
    table = Table("tenant", "who", "period", "spent", "of", "level", "events", "uncounted")
    board = await _board()
    units = {budget.tenant_id: _unit(budget) for budget in board.budgets.all() if budget.name == name}
    if not units:
        raise ConfigurationError(f"there is no budget {name!r}: see `turnlog budgets list`")
    for state in board.accounts(name):
        table.add_row(
            state.tenant_id,
            state.who or "",
            state.period,
            f"{format_amount(state.spent)} {units[state.budget_tenant_id]}",
            _amount(state.hard),
            state.level,
            str(state.events),
            str(state.uncounted_events),
        )
    console.print(table)


async def _progress() -> Sequence[BudgetProgress]:
    """How far usage has counted each budget; nothing when it does not answer."""
    try:
        async with (
            asyncio.timeout(PROGRESS_SECONDS),
            request(load_settings(RuntimeSettings), "GET", "/budgets", service="usage") as response,
        ):
            return Page[BudgetProgress].model_validate_json(await response.text()).items
    except (UnavailableError, TimeoutError):
        return []


def _standing(budget: BudgetSpec, progress: Sequence[BudgetProgress]) -> str:
    for each in progress:
        if (each.budget_tenant_id, each.budget, each.budget_version) == (budget.tenant_id, budget.name, budget.version):
            if each.standing == "in_force":
                return "in force"
            return f"counting: {each.counted:,} of {each.records:,}" if each.records else "counting"
    return "unknown"


def _unit(budget: BudgetSpec) -> str:
    return budget.unit if budget.unit == "tokens" else f"{budget.currency} of {budget.unit}"


def _caps(budget: BudgetSpec) -> str:
    caps = {"soft": budget.soft, "hard": budget.hard}
    said = ", ".join(f"{name} {format_amount(cap)}" for name, cap in caps.items() if cap is not None)
    return f"{said} {_unit(budget)}"


def _amount(limit: Decimal | None) -> str:
    return "" if limit is None else format_amount(limit)


async def _board() -> BudgetBoard:
    settings = load_settings(RuntimeSettings)
    board = BudgetBoard(KafkaClients(settings, client_id="turnlog-cli"), settings)
    await _load(board, settings)
    return board


async def _read(topic: Topic) -> Registry[Any]:
    settings = load_settings(RuntimeSettings)
    registry: Registry[Any] = Registry(KafkaClients(settings, client_id="turnlog-cli"), settings, topic)
    await _load(registry, settings)
    return registry


async def _load(registry: Registry[Any], settings: RuntimeSettings) -> None:
    """Reads what is on the topic now."""
    try:
        await registry.start()
    except KafkaError as error:
        raise _no_kafka(settings) from error
    finally:
        await registry.stop()


def _no_kafka(settings: RuntimeSettings) -> UnavailableError:
    return UnavailableError(
        f"no Kafka answers at {settings.bootstrap}: start `turnlog up` or set TURNLOG_KAFKA_BOOTSTRAP"
    )
