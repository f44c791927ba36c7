"""`turnlog usage`."""

from collections.abc import Mapping
from decimal import Decimal

from rich.console import Console
from rich.table import Table

from schemas.analytics import UsageRow
from schemas.http import Page
from services.cli.gateway import request
from services.runtime.settings import RuntimeSettings, load_settings

console = Console(highlight=False)


async def show(group_by: str, *, as_json: bool) -> None:
    settings = load_settings(RuntimeSettings)
    async with request(settings, "GET", "/v1/usage", params={"group_by": group_by}) as response:
        text = await response.text()
    if as_json:
        console.print(text, markup=False, soft_wrap=True)
        return
    page = Page[UsageRow].model_validate_json(text)
    names = [name for name in group_by.split(",") if name]
    table = Table(*names, "events", "input tokens", "cached", "output tokens", "reasoning", "cost", "price", "unpriced")
    for row in page.items:
        values = (
            row.events,
            row.input_tokens,
            row.cached_input_tokens,
            row.output_tokens,
            row.reasoning_tokens,
            _money(row.cost),
            _money(row.price),
            row.unpriced_events,
        )
        table.add_row(*(str(row.group.get(name) or "") for name in names), *map(str, values))
    console.print(table)


def _money(amounts: Mapping[str, Decimal]) -> str:
    """To six places, half to even; `--json` has all of them."""
    return ", ".join(f"{amount:.6f} {currency}" for currency, amount in amounts.items())
