"""The HTTP interface of usage: inside the platform only; the gateway is the door."""

import base64
import binascii
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Self

from fastapi import FastAPI, Query
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from schemas.base import DEFAULT_TENANT
from schemas.http import Page, UsageRow
from services.runtime.health import ReadinessCheck
from services.runtime.pricing.book import PriceBook
from services.runtime.pricing.sums import amounts_of
from services.runtime.web import install_health, install_problems, problem
from services.usage.queries import FILTERS, Bucket, Order, UsageGroup, UsageQuery, parse_dimensions, parse_time
from services.usage.store import TooMuchAskedError, UsageStore

LAST_OFFSET = 10**9

Time = Annotated[datetime, BeforeValidator(parse_time)]


class UsageParameters(BaseModel):
    """What `GET /usage` takes. A name that is not here is refused: a misspelt filter would answer for everybody."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tenant_id: str = DEFAULT_TENANT
    group_by: str = ""
    bucket: Bucket | None = None
    since: Time | None = Field(default=None, alias="from")
    until: Time | None = Field(default=None, alias="to")
    user_id: str | None = None
    thread_id: str | None = None
    turn_id: str | None = None
    agent: str | None = None
    model: str | None = None
    provider: str | None = None
    kind: str | None = None
    outcome: str | None = None
    tool: str | None = None
    order_by: Order = "tokens"
    limit: int = Field(default=100, ge=1, le=1000)
    cursor: str | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.since is not None and self.until is not None and self.since > self.until:
            raise ValueError("expected from at or before to")
        return self


def build_api(store: UsageStore, prices: Callable[[], PriceBook], check: ReadinessCheck) -> FastAPI:
    """`GET /usage`: sums by any set of dimensions and what they come to, paged."""
    app = FastAPI(title="Turnlog usage", docs_url=None, redoc_url=None)
    install_problems(app)
    install_health(app, check)

    @app.get("/usage")
    async def usage(asked: Annotated[UsageParameters, Query()]) -> Page[UsageRow]:
        try:
            dimensions = parse_dimensions(asked.group_by)
        except ValueError as error:
            raise problem(400, "bad-group-by", "Bad group_by", str(error)) from error
        offset = _offset(asked.cursor)
        book = prices()
        query = UsageQuery(
            tenant_id=asked.tenant_id,
            group_by=dimensions,
            bucket=asked.bucket,
            since=asked.since,
            until=asked.until,
            filters={name: value for name in FILTERS if (value := getattr(asked, name)) is not None},
            order_by=asked.order_by,
            limit=asked.limit + 1,
            offset=offset,
            boundaries=book.boundaries(asked.tenant_id),
        )
        try:
            groups = await store.query(query)
        except TooMuchAskedError as error:
            raise problem(422, "too-much-asked", "Too much asked", str(error)) from error
        following = _cursor(offset + asked.limit) if len(groups) > asked.limit else None
        return Page[UsageRow](
            items=[_priced(group, asked.tenant_id, book) for group in groups[: asked.limit]], next_cursor=following
        )

    return app


def _priced(group: UsageGroup, tenant_id: str, book: PriceBook) -> UsageRow:
    amounts = amounts_of(group.cells, tenant_id, book)
    return UsageRow(
        **group.model_dump(exclude={"cells"}),
        cost=dict(amounts.cost),
        price=dict(amounts.price),
        unpriced_events=amounts.unpriced_events,
    )


def _cursor(offset: int) -> str:
    return base64.urlsafe_b64encode(str(offset).encode()).decode().rstrip("=")


def _offset(cursor: str | None) -> int:
    if cursor is None:
        return 0
    try:
        offset = int(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, binascii.Error):
        offset = -1
    if not 0 <= offset <= LAST_OFFSET:
        detail = "the cursor was not given out by this service: leave it out to begin anew"
        raise problem(400, "bad-cursor", "Bad cursor", detail)
    return offset
