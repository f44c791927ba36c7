"""What an audit asks of usage: hashes of many rows at once, and the rows where those differ. Covers every tenant."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import FastAPI, Query

from schemas.http import AuditedFacts, AuditedRows, UsageConflicts, UsageDigests, UsageEnds, UsageImbalances
from services.runtime.projection import Projection
from services.usage.queries import EARLIEST
from services.usage.retention import Retention
from services.usage.store import UsageStore

WAIT_SECONDS = 5.0

MOST_ROWS = 20_000
"""Of one answer: twice what a bucket has unless somebody has written into the table."""

MOST_IMBALANCES = 1000


def install_audit(app: FastAPI, store: UsageStore, projection: Projection, retention: Retention) -> None:
    """Adds `/audit/digests`, `/audit/rows`, `/audit/facts`, `/audit/conflicts` and `/audit/imbalances`."""

    @app.post("/audit/digests")
    async def digests(asked: UsageEnds) -> UsageDigests:
        for partition, end in enumerate(asked.ends):
            await projection.wait_for(partition, end, WAIT_SECONDS)
        kept_from = retention.kept_from(datetime.now(UTC))
        items = list(await store.digests(asked.ends, kept_from or EARLIEST))
        return UsageDigests(items=items, kept_from=kept_from)

    @app.get("/audit/rows")
    async def rows(
        partition: Annotated[int, Query(ge=0)], first: Annotated[int, Query(ge=0)], end: Annotated[int, Query(ge=0)]
    ) -> AuditedRows:
        return AuditedRows(items=list(await store.rows(partition, first, end, limit=MOST_ROWS)))

    @app.post("/audit/facts")
    async def facts(asked: AuditedFacts) -> AuditedRows:
        return AuditedRows(items=list(await store.facts(asked.facts)))

    @app.get("/audit/conflicts")
    async def conflicts() -> UsageConflicts:
        return UsageConflicts(items=list(await store.conflicts(limit=MOST_ROWS)))

    @app.get("/audit/imbalances")
    async def imbalances() -> UsageImbalances:
        kept_from = retention.kept_from(datetime.now(UTC)) or EARLIEST
        return UsageImbalances(items=list(await store.imbalances(limit=MOST_IMBALANCES, kept_from=kept_from)))
