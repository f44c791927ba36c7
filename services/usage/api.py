"""The HTTP interface of usage: inside the platform only; the gateway is the door."""

import base64
import binascii
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Literal, Self

from fastapi import FastAPI, Query
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from schemas.analytics import UsageRow
from schemas.base import DEFAULT_TENANT
from schemas.http import Page
from services.runtime.health import ReadinessCheck
from services.runtime.web import install_health, install_problems, problem
from services.usage.priced import priced
from services.usage.pricing.book import PriceBook
from services.usage.pricing.weights import weights_of
from services.usage.queries import FILTERS, Bucket, Order, UsageQuery, parse_dimensions, parse_time, parse_units
from services.usage.store import TooMuchAskedError, UsageStore

LAST_OFFSET = 10**9

MOST_CELLS = 5000
"""Of an order by money: what each cell of prices counts goes along with the question."""

Time = Annotated[datetime, BeforeValidator(parse_time)]


class UsageParameters(BaseModel):
    """What `GET /usage` takes. A name that is not here is refused: a misspelt filter would answer for everybody."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tenant_id: str = DEFAULT_TENANT
    group_by: str = ""
    bucket: Bucket | None = None
    since: Time | None = Field(default=None, alias="from")
    until: Time | None = Field(default=None, alias="to")
    compare: Literal["previous"] | None = None
    per: str = ""
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
        if self.compare is not None and (self.since is None or self.until is None or self.since == self.until):
            raise ValueError("expected from and to beside compare: the period before is as long as theirs")
        return self


def build_api(store: UsageStore, prices: Callable[[], PriceBook], check: ReadinessCheck) -> FastAPI:
    """`GET /usage`: sums by any set of dimensions and what they come to, paged."""
    app = FastAPI(title="Turnlog usage", docs_url=None, redoc_url=None)
    install_problems(app)
    install_health(app, check)

    @app.get("/usage")
    async def usage(asked: Annotated[UsageParameters, Query()]) -> Page[UsageRow]:
        book = prices()
        query = query_of(asked, book)
        offset = _offset(asked.cursor)
        try:
            groups = await store.query(
                replace(await _weighed(query, asked.order_by, book, store), limit=asked.limit + 1, offset=offset)
            )
        except TooMuchAskedError as error:
            raise problem(422, "too-much-asked", "Too much asked", str(error)) from error
        following = _cursor(offset + asked.limit) if len(groups) > asked.limit else None
        items = [priced(group, asked.tenant_id, book) for group in groups[: asked.limit]]
        return Page[UsageRow](items=items, next_cursor=following)

    return app


def query_of(asked: UsageParameters, book: PriceBook) -> UsageQuery:
    """The question without its page, in the order of tokens or events. Raises ProblemError."""
    try:
        dimensions = parse_dimensions(asked.group_by)
    except ValueError as error:
        raise problem(400, "bad-group-by", "Bad group_by", str(error)) from error
    try:
        units = parse_units(asked.per)
    except ValueError as error:
        raise problem(400, "bad-per", "Bad per", str(error)) from error
    return UsageQuery(
        tenant_id=asked.tenant_id,
        group_by=dimensions,
        bucket=asked.bucket,
        since=asked.since,
        until=asked.until,
        filters={name: value for name in FILTERS if (value := getattr(asked, name)) is not None},
        compare=asked.compare is not None,
        per=units,
        order_by="events" if asked.order_by == "events" else "tokens",
        boundaries=book.boundaries(asked.tenant_id),
    )


async def _weighed(query: UsageQuery, order: Order, book: PriceBook, store: UsageStore) -> UsageQuery:
    """A question in the order of money, of which ClickHouse has none: it is told first what each cell counts."""
    if order not in ("cost", "price"):
        return query
    (whole,) = await store.query(
        UsageQuery(
            query.tenant_id,
            since=query.since,
            until=query.until,
            filters=query.filters,
            boundaries=query.boundaries,
        )
    )
    if len(whole.cells) > MOST_CELLS:
        raise TooMuchAskedError(
            f"its usage has {len(whole.cells):,} cells of prices, an order by {order} takes {MOST_CELLS:,}: ask for a "
            "shorter time, or for a model"
        )
    return replace(query, order_by=weights_of(whole.cells, order, query.tenant_id, book))


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
