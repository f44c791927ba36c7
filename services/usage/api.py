"""The HTTP interface of usage: inside the platform only; the gateway is the door."""

import asyncio
import base64
import binascii
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from tempfile import TemporaryFile
from typing import Annotated, BinaryIO, Literal, Self

from fastapi import FastAPI, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from schemas.analytics import UsageQuality, UsageRow, UsageUnit
from schemas.base import DEFAULT_TENANT
from schemas.http import Page
from services.runtime.health import ReadinessCheck
from services.runtime.pricing.book import PriceBook
from services.runtime.web import install_health, install_problems, problem
from services.usage.export import CsvWriter, columns_of
from services.usage.parquet import ParquetWriter
from services.usage.priced import priced
from services.usage.queries import (
    FILTERS,
    Bucket,
    Order,
    UsageQuery,
    months_between,
    parse_dimensions,
    parse_time,
    parse_units,
)
from services.usage.store import TooMuchAskedError, UsageStore
from services.usage.weights import weights_of

LAST_OFFSET = 10**9

MOST_CELLS = 5000
"""Of an order by money: what each cell of prices counts goes along with the question."""

PAGE = 100

MEDIA_TYPES = {"csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet"}

SENT_BYTES = 1 << 16

Time = Annotated[datetime, BeforeValidator(parse_time)]


class QualityParameters(BaseModel):
    """What `GET /usage/quality` takes, and `GET /usage` too.

    A name that is not here is refused: a misspelt filter would answer for everybody.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tenant_id: str = DEFAULT_TENANT
    group_by: str = ""
    bucket: Bucket | None = None
    since: Time | None = Field(default=None, alias="from")
    until: Time | None = Field(default=None, alias="to")
    user_id: str | None = None
    team_id: str | None = None
    thread_id: str | None = None
    turn_id: str | None = None
    agent: str | None = None
    model: str | None = None
    provider: str | None = None
    kind: str | None = None
    outcome: str | None = None
    tool: str | None = None
    limit: int | None = Field(default=None, ge=1, le=1000)
    cursor: str | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.since is not None and self.until is not None and self.since > self.until:
            raise ValueError("expected from at or before to")
        return self


class UsageParameters(QualityParameters):
    """What `GET /usage` takes."""

    compare: Literal["previous"] | None = None
    per: str = ""
    order_by: Order = "tokens"
    format: Literal["json", "csv", "parquet"] = "json"

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if self.compare is not None and (self.since is None or self.until is None or self.since == self.until):
            raise ValueError("expected from and to beside compare: the period before is as long as theirs")
        if self.compare is not None and self.bucket == "month" and not self._has_whole_months():
            raise ValueError("expected from and to whole months apart beside compare and bucket=month, no 29th to 31st")
        if self.format != "json" and self.cursor is not None:
            raise ValueError("expected no cursor: a file has every group, or the first of them by limit")
        return self

    def _has_whole_months(self) -> bool:
        """Only then the period before has months too that are whole, or cut at the same place."""
        return self.since is not None and self.until is not None and months_between(self.since, self.until) is not None


def build_api(store: UsageStore, prices: Callable[[], PriceBook], check: ReadinessCheck) -> FastAPI:
    """`GET /usage`: sums by any set of dimensions and what they come to; `GET /usage/quality`: how well it went."""
    app = FastAPI(title="Turnlog usage", docs_url=None, redoc_url=None)
    install_problems(app)
    install_health(app, check)

    @app.get("/usage", response_model=Page[UsageRow])
    async def usage(asked: Annotated[UsageParameters, Query()]) -> Page[UsageRow] | StreamingResponse:
        book = prices()
        query = query_of(asked, book)
        query = replace(
            query,
            compare=asked.compare is not None,
            per=_units(asked.per),
            order_by="events" if asked.order_by == "events" else "tokens",
        )
        offset, limit = _offset(asked.cursor), asked.limit or PAGE
        try:
            query = await _weighed(query, asked.order_by, book, store)
            if asked.format != "json":
                return await _exported(replace(query, limit=asked.limit), asked.format, book, store)
            groups = await store.query(replace(query, limit=limit + 1, offset=offset))
        except TooMuchAskedError as error:
            raise problem(422, "too-much-asked", "Too much asked", str(error)) from error
        following = _cursor(offset + limit) if len(groups) > limit else None
        items = [priced(group, asked.tenant_id, book) for group in groups[:limit]]
        return Page[UsageRow](items=items, next_cursor=following)

    @app.get("/usage/quality")
    async def quality(asked: Annotated[QualityParameters, Query()]) -> Page[UsageQuality]:
        offset, limit = _offset(asked.cursor), asked.limit or PAGE
        try:
            groups = await store.quality(replace(query_of(asked, prices()), limit=limit + 1, offset=offset))
        except TooMuchAskedError as error:
            raise problem(422, "too-much-asked", "Too much asked", str(error)) from error
        following = _cursor(offset + limit) if len(groups) > limit else None
        return Page[UsageQuality](items=list(groups[:limit]), next_cursor=following)

    return app


async def _exported(
    query: UsageQuery, form: Literal["csv", "parquet"], book: PriceBook, store: UsageStore
) -> StreamingResponse:
    """The whole file, then its bytes: what goes wrong is a problem document, and a slow reader holds nothing up.

    The file has no name on the disk, so nothing is left of it whatever is killed.
    """
    file = TemporaryFile()  # noqa: SIM115 - what sends it closes it
    try:
        columns = columns_of(query, book.currencies(query.tenant_id))
        writer = (CsvWriter if form == "csv" else ParquetWriter)(file, columns)
        try:
            await store.export(
                query, lambda groups: writer.write([priced(group, query.tenant_id, book) for group in groups])
            )
        finally:
            await asyncio.to_thread(writer.close)
    except BaseException:
        file.close()
        raise
    headers = {"Content-Length": str(file.tell()), "Content-Disposition": f'attachment; filename="usage.{form}"'}
    return StreamingResponse(_sent(file), media_type=MEDIA_TYPES[form], headers=headers)


def _sent(file: BinaryIO) -> Iterator[bytes]:
    with file:
        file.seek(0)
        while part := file.read(SENT_BYTES):
            yield part


def query_of(asked: QualityParameters, book: PriceBook) -> UsageQuery:
    """Whose usage, when and in which groups, without the page. Raises ProblemError."""
    try:
        dimensions = parse_dimensions(asked.group_by)
    except ValueError as error:
        raise problem(400, "bad-group-by", "Bad group_by", str(error)) from error
    return UsageQuery(
        tenant_id=asked.tenant_id,
        group_by=dimensions,
        bucket=asked.bucket,
        since=asked.since,
        until=asked.until,
        filters={name: value for name in FILTERS if (value := getattr(asked, name)) is not None},
        boundaries=book.boundaries(asked.tenant_id),
    )


def _units(text: str) -> list[UsageUnit]:
    try:
        return parse_units(text)
    except ValueError as error:
        raise problem(400, "bad-per", "Bad per", str(error)) from error


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
