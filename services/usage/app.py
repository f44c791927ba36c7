"""Wiring of usage."""

from collections.abc import Mapping, Sequence
from functools import partial

from schemas.http import ComponentHealth
from schemas.topics import BUDGETS, INVOICES, PLANS, PRICES, USAGE
from services.runtime.connections import Connections
from services.runtime.failpoints import Failpoints
from services.runtime.groups import USAGE_GROUP, instance_of
from services.runtime.kafka import KafkaClients
from services.runtime.prices import Prices
from services.runtime.projection import Projection
from services.runtime.rebuild import Rebuild
from services.runtime.rebuild_api import install_rebuild
from services.runtime.records import ProjectedRecord
from services.runtime.stream import build_broker
from services.runtime.telemetry import traces_of
from services.runtime.web import WebServer
from services.usage.api import build_api
from services.usage.audit import install_audit
from services.usage.billing.api import install_billing
from services.usage.billing.billing import Billing
from services.usage.billing.invoice_log import InvoiceLog
from services.usage.billing.plans import Plans
from services.usage.billing.progress import UsageProgress
from services.usage.budgets.api import install_budgets
from services.usage.budgets.loop import BudgetLoop
from services.usage.budgets.seed import Seeds
from services.usage.clickhouse import ClickHouseUsageStore
from services.usage.opening import Gate, Opening
from services.usage.placement import Placement
from services.usage.rates_loop import RatesLoop
from services.usage.retention import Retention, RetentionLoop
from services.usage.rows import row_of
from services.usage.settings import UsageSettings
from services.usage.settle import settle
from services.usage.store import Block, ReadBounds, UsageBuild, UsageStore

BLOCK_RECORDS = 20_000

REST = 9
"""An insert costs some 40 ms of CPU however few its rows are: a tenth of the time may go into small ones."""


class UsageProjection:
    """Writes usage into a store, a batch as a block."""

    def __init__(self, store: UsageBuild) -> None:
        self._store = store

    async def positions(self) -> Mapping[int, int]:
        return await self._store.positions()

    async def apply(self, partition: int, records: Sequence[ProjectedRecord], next_offset: int) -> None:
        if records:
            rows = [(record.offset, record.event) for record in records]
            await self._store.insert(Block(partition, records[0].offset, records[-1].offset, rows))


class UsageBuilds:
    """A usage store, and the tables beside the live ones while the log is projected anew."""

    def __init__(self, store: UsageStore) -> None:
        self._store = store

    async def begin(self) -> UsageProjection:
        return UsageProjection(await self._store.begin_build())

    async def complete(self) -> None:
        """Nothing: the log says all of it, and ClickHouse merges what it has by itself."""

    async def switch(self) -> None:
        await self._store.switch()

    async def clean(self) -> None:
        await self._store.clean()


class UsageService:
    """Projects usage, answers what was spent, and counts it against the budgets."""

    name = "usage"

    def __init__(self, settings: UsageSettings) -> None:
        url = settings.clickhouse_url.get_secret_value() if settings.clickhouse_url else None
        self._store: UsageStore = ClickHouseUsageStore(
            url=url,
            folder=settings.data_dir / "usage",
            bounds=ReadBounds(settings.usage_read_seconds, settings.usage_read_rows),
            placement=Placement(
                cluster=settings.clickhouse_cluster,
                sharded=settings.clickhouse_sharded,
                database=settings.clickhouse_database,
                storage_policy=settings.usage_storage_policy,
                cold_volume=settings.usage_cold_volume,
                cold_days=settings.usage_cold_days,
            ),
        )
        self._broker = build_broker(settings, client_id="turnlog-usage")
        self._traces = traces_of(settings, self.name)
        clients, failpoints = KafkaClients(settings, client_id="turnlog-usage"), Failpoints(settings.failpoints)
        self._projection = Projection(
            self._broker,
            settings=settings,
            topic=USAGE,
            group=USAGE_GROUP,
            store=UsageProjection(self._store),
            clients=clients,
            failpoints=failpoints,
            traces=self._traces,
            max_records=BLOCK_RECORDS,
            rest=REST,
            prepare=row_of,
            instance_id=None if url else instance_of(settings.data_dir),
        )
        self._rebuild = Rebuild(
            self._projection,
            UsageBuilds(self._store),
            settings=settings,
            clients=clients,
            topic=USAGE,
            failpoints=failpoints,
            batch=BLOCK_RECORDS,
            prepare=row_of,
        )
        self._prices = Prices(clients, settings)
        seeds = Seeds(self._store, self._projection)
        self._budgets = BudgetLoop(clients, settings, self._prices.book, failpoints, seeds)
        self._plans = Plans(clients, settings)
        self._invoices = InvoiceLog(clients, settings, failpoints)
        progress = UsageProgress(self._projection, clients, settings)
        retention = Retention(settings.usage_keep_months)
        billing = Billing(
            self._store,
            self._invoices,
            prices=self._prices,
            plans=self._plans,
            progress=progress,
            retention=retention,
        )
        self._retention = RetentionLoop(self._store, retention)
        self._rates = RatesLoop(self._store, self._prices.book)
        self._opening = Opening(
            clients,
            settings,
            [
                (PRICES, self._prices.start),
                (PLANS, self._plans.start),
                (INVOICES, self._invoices.start),
                (BUDGETS, self._budgets.start),
            ],
        )
        self.api = build_api(self._store, self._prices.book, self.readiness)
        self.api.add_middleware(Gate, awaited=self._awaited)
        install_rebuild(self.api, self._rebuild)
        install_audit(self.api, self._store, self._projection, retention)
        install_billing(self.api, billing)
        install_budgets(self.api, self._budgets)
        self._server = WebServer(self.api, host=settings.http_host, port=settings.usage_port)
        self._connections = Connections(
            self.name,
            settings.bootstrap,
            [
                self._store.open,
                partial(settle, self._store, clients, settings),
                self._projection.start,
                self._broker.start,
                self._retention.start,
                self._rates.start,
            ],
        )

    @property
    def port(self) -> int:
        """The port of the HTTP interface, once started."""
        return self._server.port

    async def start(self) -> None:
        """Returns while ClickHouse is still down; it is tried until it answers. Raises ConfigurationError.

        `/readyz` answers from the first moment; the rest is 503 while what it rests on is being read.
        """
        await self._server.start()
        await self._opening.start()
        await self._connections.start()

    async def stop(self) -> None:
        await self._connections.stop()
        await self._server.stop()
        await self._retention.stop()
        await self._rates.stop()
        await self._rebuild.stop()
        await self._broker.stop()
        await self._projection.stop()
        await self._invoices.stop()
        await self._plans.stop()
        await self._budgets.stop()
        await self._prices.stop()
        await self._store.close()
        await self._traces.close()

    async def readiness(self) -> dict[str, ComponentHealth]:
        return {
            "topics": self._opening.health(),
            "connections": self._connections.health(),
            "projection": self._projection.health(),
            "budgets": self._budgets.health(),
            "rates": self._rates.health(),
        }

    def _awaited(self, path: str) -> str | None:
        """What a path still waits for. Sums are whole once the last block of the run before is settled."""
        needed = [self._opening.health()]
        if path.startswith("/usage"):
            needed.append(self._connections.health())
        return next((f"usage is starting: {each.detail}" for each in needed if not each.ready), None)
