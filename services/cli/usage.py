"""`turnlog usage`."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from rich.console import Console
from rich.table import Table

from schemas.analytics import UsageFigures, UsageRow
from schemas.http import Page
from services.cli.gateway import request
from services.runtime.settings import RuntimeSettings, load_settings

console = Console(highlight=False)

Form = Literal["table", "json", "csv", "parquet"]


@dataclass(frozen=True)
class Asked:
    """What is asked of `GET /v1/usage`."""

    tenant_id: str
    group_by: str
    since: str | None
    until: str | None
    compare: bool
    order_by: str

    def parameters(self) -> dict[str, str]:
        given = {
            "tenant_id": self.tenant_id,
            "group_by": self.group_by,
            "from": self.since,
            "to": self.until,
            "compare": "previous" if self.compare else None,
            "order_by": self.order_by,
        }
        return {name: value for name, value in given.items() if value is not None}


async def show(asked: Asked, form: Form) -> None:
    """Prints a page as a table or JSON, or writes a file of every group to standard output."""
    settings = load_settings(RuntimeSettings)
    parameters = asked.parameters() if form == "table" else asked.parameters() | {"format": form}
    headers = {"X-Tenant-Id": asked.tenant_id}  # a gateway that trusts it takes nobody else's name
    async with request(settings, "GET", "/v1/usage", params=parameters, headers=headers) as response:
        if form in ("csv", "parquet"):
            async for part in response.content.iter_any():
                sys.stdout.buffer.write(part)
            sys.stdout.flush()
            return
        text = await response.text()
    if form == "json":
        console.print(text, markup=False, soft_wrap=True)
        return
    console.print(_table(asked, Page[UsageRow].model_validate_json(text)))


def _table(asked: Asked, page: Page[UsageRow]) -> Table:
    names = [name for name in asked.group_by.split(",") if name]
    figures = ["events", "input tokens", "cached", "output tokens", "reasoning", "cost", "price", "unpriced"]
    before = ["events before", "tokens before", "cost before", "price before"] if asked.compare else []
    table = Table(*names, *figures, *before)
    for row in page.items:
        labels = [row.group.get(name) or "" for name in names]
        table.add_row(*labels, *_figures(row), *(_before(row.previous) if asked.compare else []))
    return table


def _figures(row: UsageFigures) -> list[str]:
    counts = (row.events, row.input_tokens, row.cached_input_tokens, row.output_tokens, row.reasoning_tokens)
    return [*map(str, counts), _money(row.cost), _money(row.price), str(row.unpriced_events)]


def _before(row: UsageFigures | None) -> list[str]:
    if row is None:
        return [""] * 4
    return [str(row.events), str(row.input_tokens + row.output_tokens), _money(row.cost), _money(row.price)]


def _money(amounts: Mapping[str, Decimal]) -> str:
    """To six places, half to even; the other formats have all of them."""
    return ", ".join(f"{amount:.6f} {currency}" for currency, amount in amounts.items())
