"""The HTTP interface of usage: inside the platform only; the gateway is the door."""

import base64
import binascii
from datetime import datetime
from typing import Annotated

from fastapi import FastAPI, Query

from schemas.base import DEFAULT_TENANT
from schemas.http import Page, UsageRow
from services.runtime.health import ReadinessCheck
from services.runtime.web import install_health, install_problems, problem
from services.usage.queries import Bucket, FilterField, UsageQuery, parse_dimensions
from services.usage.store import UsageStore


def build_api(store: UsageStore, check: ReadinessCheck) -> FastAPI:
    """`GET /usage`: sums by any set of dimensions, paged."""
    app = FastAPI(title="Turnlog usage", docs_url=None, redoc_url=None)
    install_problems(app)
    install_health(app, check)

    @app.get("/usage")
    async def usage(
        tenant_id: str = DEFAULT_TENANT,
        group_by: str = "",
        bucket: Bucket | None = None,
        since: Annotated[datetime | None, Query(alias="from")] = None,
        until: Annotated[datetime | None, Query(alias="to")] = None,
        user_id: str | None = None,
        thread_id: str | None = None,
        turn_id: str | None = None,
        agent: str | None = None,
        model: str | None = None,
        provider: str | None = None,
        kind: str | None = None,
        outcome: str | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        cursor: str | None = None,
    ) -> Page[UsageRow]:
        try:
            dimensions = parse_dimensions(group_by)
        except ValueError as error:
            raise problem(400, "bad-group-by", "Bad group_by", str(error)) from error
        named: dict[FilterField, str | None] = {
            "user_id": user_id,
            "thread_id": thread_id,
            "turn_id": turn_id,
            "agent": agent,
            "model": model,
            "provider": provider,
            "kind": kind,
            "outcome": outcome,
        }
        offset = _offset(cursor)
        query = UsageQuery(
            tenant_id=tenant_id,
            group_by=dimensions,
            bucket=bucket,
            since=since,
            until=until,
            filters={name: value for name, value in named.items() if value is not None},
            limit=limit + 1,
            offset=offset,
        )
        rows = await store.query(query)
        following = _cursor(offset + limit) if len(rows) > limit else None
        return Page[UsageRow](items=list(rows[:limit]), next_cursor=following)

    return app


def _cursor(offset: int) -> str:
    return base64.urlsafe_b64encode(str(offset).encode()).decode().rstrip("=")


def _offset(cursor: str | None) -> int:
    if cursor is None:
        return 0
    try:
        return int(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, binascii.Error) as error:
        detail = "the cursor was not given out by this service: leave it out to begin anew"
        raise problem(400, "bad-cursor", "Bad cursor", detail) from error
