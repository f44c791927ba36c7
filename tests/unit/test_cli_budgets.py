"""`turnlog budgets list`: which budgets are in force, as usage says it."""

import asyncio

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from typer.testing import CliRunner

from schemas.budgets import BudgetSpec, BudgetState
from schemas.http import Page
from services.cli import catalog
from services.cli.app import app
from services.runtime.budgets import Budgets
from services.usage.budgets.progress import BudgetProgress

SPECS = [BudgetSpec.model_validate({"name": name, "unit": "tokens"}) for name in ("old", "new", "next", "changed")]


class Board:
    """What the topic says."""

    budgets = Budgets(SPECS)

    def accounts(self, name: str) -> list[BudgetState]:
        return []


@pytest.fixture(autouse=True)
def _board(monkeypatch: pytest.MonkeyPatch) -> None:
    async def board() -> Board:
        return Board()

    monkeypatch.setattr(catalog, "_board", board)
    monkeypatch.setattr(catalog.console, "width", 300)


def states(output: str) -> dict[str, str]:
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in output.splitlines() if "│" in line]
    return {row[0]: row[-1] for row in rows}


async def listed() -> dict[str, str]:
    finished = await asyncio.to_thread(CliRunner().invoke, app, ["budgets", "list"])
    assert finished.exit_code == 0, finished.output
    return states(finished.output)


async def test_a_budget_that_is_still_counted_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {spec.name: {"budget": spec.name, "budget_version": spec.version} for spec in SPECS}
    items = [
        BudgetProgress.model_validate({**known["old"], "standing": "in_force"}),
        BudgetProgress.model_validate({**known["new"], "standing": "counting", "counted": 45_000, "records": 109_000}),
        BudgetProgress.model_validate({**known["next"], "standing": "counting"}),
        BudgetProgress.model_validate({**known["changed"], "budget_version": "another", "standing": "in_force"}),
    ]

    async def budgets(_: web.Request) -> web.Response:
        return web.Response(text=Page[BudgetProgress](items=items).model_dump_json(), content_type="application/json")

    usage = web.Application()
    usage.router.add_get("/budgets", budgets)
    async with TestServer(usage) as server:
        monkeypatch.setenv("TURNLOG_USAGE_URL", str(server.make_url("")).rstrip("/"))
        assert await listed() == {
            "old": "in force",
            "new": "counting: 45,000 of 109,000",
            "next": "counting",
            "changed": "unknown",
        }


async def test_budgets_are_listed_while_usage_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNLOG_USAGE_URL", "http://127.0.0.1:9")
    assert {*(await listed()).values()} == {"unknown"}
