"""How soon budgets stand over ten million units of usage in a month: from the sums that ClickHouse has, in process.

The rows are made in the engine, of a hundred tenants with five thousand users each of four models and tools. A ledger
begins with them as the service does, without Kafka: what is on the log behind them comes on top.
"""

import os
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import clickhouse_connect

from schemas.budgets import BudgetSpec
from services.runtime.budgets import Budgets
from services.runtime.garbage import collect_rarely
from services.runtime.pricing.book import PriceBook
from services.runtime.pricing.defaults import PackagedPrices
from services.usage.budgets.known import Known
from services.usage.budgets.ledger import Ledger
from services.usage.budgets.seed import question_of
from services.usage.clickhouse import ClickHouseUsageStore
from tests.bench.bench_installation import resident_megabytes
from tests.bench.report import Figure
from tests.bench.usage_rows import fill

ROWS = 10_000_000
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)

FILL = {
    "tenant_id": "concat('tenant-', toString(intDiv(number, 4) % 100))",
    "user_id": "concat('user-', toString(intDiv(number, 400) % 50))",
    "usage_id": "toString(generateUUIDv7())",
    "occurred_at": "fromUnixTimestamp64Micro(toInt64(1767225600000000 + intDiv(number, 4) * 1050000), 'UTC')",
}

BUDGETS = {
    "each tenant's cost of the month": {"by": "tenant", "unit": "cost"},
    "each user's tokens of the month": {"by": "user", "unit": "tokens"},
    "each user's cost of the day": {"by": "user", "unit": "cost", "per": "day"},
    "one tenant's cost of the month": {"by": "tenant", "unit": "cost", "tenant_id": "tenant-7"},
}


async def measure() -> Sequence[Figure]:
    """One store in an empty folder. Python's collector is as it is in a service."""
    collect_rarely()
    with tempfile.TemporaryDirectory(prefix="turnlog-bench-") as name:
        folder = Path(name)
        store = ClickHouseUsageStore(url=None, folder=folder)
        await store.open()
        await store.close()
        with clickhouse_connect.get_client(interface="chdb", path=str(folder / "chdb")) as client:
            fill(client, ROWS, **FILL)
        store = ClickHouseUsageStore(url=None, folder=folder)
        await store.open()
        figures: list[Figure] = []
        for what, fields in BUDGETS.items():
            figures += await _begin(store, what, BudgetSpec.model_validate({"name": "b", "hard": 1, **fields}))
        figures.append(Figure("resident", sum((await resident_megabytes(os.getpid())).values()), "MB"))
        await store.close()
        return figures


async def _begin(store: ClickHouseUsageStore, what: str, spec: BudgetSpec) -> Sequence[Figure]:
    book = PriceBook((), PackagedPrices())
    ledger = Ledger(Budgets([spec]), NOW, [(spec, book)])
    query, ends = question_of([spec], ledger, book), [ROWS]
    began = time.perf_counter()
    spending = await store.spending_of_sums(query, ends)
    assert spending is not None
    held = time.perf_counter() - began
    ledger.begin_with(spending.spent)
    states = ledger.take_changed()
    told = time.perf_counter() - began
    ids = await store.fact_ids(query, ends, spending.generation)
    ledger.know(Known(ids, query.since, query.tenants, ends))
    whole = time.perf_counter() - began
    return [
        Figure(f"{what}: the projection is held", held, "s"),
        Figure(f"{what}: {len(states):,} accounts are known", told, "s"),
        Figure(f"{what}: {len(ids):,} ids are known too", whole, "s"),
    ]
