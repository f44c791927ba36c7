"""Invoices of a tenant with a million rows a month: rows, lines and the record on the log, without HTTP.

The rows are made in the engine, by INSERT ... SELECT from numbers(): three months, five models of which two have tiers,
tools, a twentieth not billable. The broker and the writing of invoices are the real ones; that usage was read to the
end of the log is taken for granted, since these rows are on none.
"""

import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import clickhouse_connect

from infra.local.kafka import running_kafka
from schemas.billing import FinalizeInvoice
from schemas.plans import PlanSpec, SubscriptionSpec
from services.runtime.failpoints import Failpoints
from services.runtime.kafka import KafkaClients
from services.runtime.pricing.book import PriceBook
from services.runtime.pricing.defaults import PackagedPrices
from services.runtime.settings import RuntimeSettings, load_settings
from services.runtime.topics import apply_topics
from services.usage.billing.billing import Billing
from services.usage.billing.catalog import PlanCatalog
from services.usage.billing.invoice_log import InvoiceLog
from services.usage.clickhouse import ClickHouseUsageStore
from tests.bench.report import Figure
from tests.bench.usage_rows import fill

ROWS = 1_000_000
"""Of a month."""

MONTHS = {"2026-01": 1767225600, "2026-02": 1769904000, "2026-03": 1772323200}
"""And when each begins, in seconds since 1970."""

FILL = {
    "tenant_id": "'acme'",
    "provider": "if(kind = 'tool', NULL, ['openai', 'openai', 'openai', 'anthropic', 'google'][number % 5 + 1])",
    "model": "if(kind = 'tool', NULL, "
    "['gpt-4o', 'gpt-4o-mini', 'gpt-4.1', 'claude-sonnet-4-0', 'gemini-2.5-pro'][number % 5 + 1])",
    "input_tokens": "if(kind = 'tool', 0, 500 + number * 7919 % 250000)",
    "billable": "number % 20 != 0",
}

PLANS = PlanCatalog(
    [
        PlanSpec.model_validate(
            {
                "name": "pro",
                "from_period": "2026-01",
                "minimum": "50",
                "charges": [
                    {"name": "base", "scheme": "flat", "amount": "29"},
                    {"name": "models", "scheme": "pass_through", "usage": {"kind": "completion"}, "markup": "0.2"},
                    {
                        "name": "tools",
                        "scheme": "graduated",
                        "usage": {"kind": "tool"},
                        "meter": "events",
                        "tiers": [{"up_to": 100_000, "unit_price": "0.001"}],
                        "beyond": {"unit_price": "0.0005"},
                    },
                ],
            }
        ),
        SubscriptionSpec(name="all", plan="pro", from_period="2026-01"),
    ]
)


class Given:
    """Prices and plans, as if they were read from the log; and usage that was read to its end."""

    def __init__(self) -> None:
        self._book = PriceBook((), PackagedPrices())

    def book(self) -> PriceBook:
        return self._book

    def catalog(self) -> PlanCatalog:
        return PLANS

    async def catch_up(self) -> None: ...

    async def positions(self) -> list[int]:
        return [ROWS]

    async def read_all(self) -> list[int]:
        return [ROWS]


async def measure() -> list[Figure]:
    """A broker and a store in an empty folder."""
    with (
        tempfile.TemporaryDirectory(prefix="turnlog-bench-") as name,
        running_kafka(data_dir=Path(name) / "kafka") as kafka,
    ):
        settings = load_settings(RuntimeSettings, kafka_bootstrap=kafka.bootstrap, topic_replication=1)
        clients = KafkaClients(settings, client_id="bench")
        await apply_topics(clients, settings)
        store = ClickHouseUsageStore(url=None, folder=Path(name))
        await store.open()
        await store.close()
        _fill(Path(name))
        store, log = ClickHouseUsageStore(url=None, folder=Path(name)), InvoiceLog(clients, settings, Failpoints())
        await store.open()
        await log.start()
        try:
            given = Given()
            billing = Billing(store, log, prices=given, plans=given, progress=given, now=_later)
            return await _bill(billing)
        finally:
            await log.stop()
            await store.close()


async def _bill(billing: Billing) -> list[Figure]:
    figures: list[Figure] = []
    for number, period in enumerate(MONTHS):
        began = time.perf_counter()
        await billing.draft("acme", period)
        figures.append(Figure(f"{period}: draft, {number} earlier months rated anew", time.perf_counter() - began, "s"))
        began = time.perf_counter()
        await billing.finalize(FinalizeInvoice(tenant_id="acme", period=period))
        figures.append(Figure(f"{period}: invoice over {ROWS:,} rows, on the log", time.perf_counter() - began, "s"))
    began = time.perf_counter()
    for period in MONTHS:
        await billing.finalize(FinalizeInvoice(tenant_id="acme", period=period))
    figures.append(Figure("all three asked for again", time.perf_counter() - began, "s"))
    return figures


def _fill(folder: Path) -> None:
    with clickhouse_connect.get_client(interface="chdb", path=str(folder / "chdb")) as client:
        for begins in MONTHS.values():
            fill(
                client,
                ROWS,
                **FILL,
                usage_id=f"concat('f{begins}', leftPad(toString(number), 12, '0'))",
                occurred_at=f"fromUnixTimestamp64Micro(toInt64({begins} * 1000000 + number * 2400000), 'UTC')",
            )


def _later() -> datetime:
    return datetime(2026, 6, 1, tzinfo=UTC)
