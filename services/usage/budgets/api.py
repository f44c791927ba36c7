"""`GET /budgets` of usage: inside the platform only, for the command line."""

from fastapi import FastAPI

from schemas.http import Page
from services.usage.budgets.loop import BudgetLoop
from services.usage.budgets.progress import BudgetProgress


def install_budgets(app: FastAPI, loop: BudgetLoop) -> None:
    """Adds `/budgets`."""

    @app.get("/budgets")
    async def budgets() -> Page[BudgetProgress]:
        return Page[BudgetProgress](items=list(loop.progress()))
