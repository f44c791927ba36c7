"""Keeps the rates that dashboards multiply sums with as prices and usage are. Nothing else of usage waits for it.

Nothing is kept here but what was worked out: a start looks at all cells, and writes only what is not there already.
"""

import asyncio
import time
from collections.abc import Callable, Sequence

import structlog

from schemas.http import ComponentHealth
from services.runtime.connections import Repeated
from services.runtime.errors import TurnlogError
from services.runtime.pricing.book import PriceBook
from services.runtime.tasks import end_task
from services.usage.rates_table import MOST_CELLS, Line, RatedCell, lines_of, own_line
from services.usage.store import UsageRates

log = structlog.get_logger(__name__)

LOOK_SECONDS = 30.0
"""Between two looks for cells that are new."""

NOTICE_SECONDS = 1.0
"""Between two looks at the price book, and two tries of what did not work."""

REST = 20
"""A look reads the sums of all days: a twentieth of the time may go into it, however many there are."""


class RatesLoop:
    """Writes the rates anew when a price was applied, and when usage has come that no rate was told for.

    Args:
        prices: the price book as of now; another object when it has changed.
        look_seconds, notice_seconds: as LOOK_SECONDS and NOTICE_SECONDS.
    """

    def __init__(
        self,
        store: UsageRates,
        prices: Callable[[], PriceBook],
        *,
        look_seconds: float = LOOK_SECONDS,
        notice_seconds: float = NOTICE_SECONDS,
    ) -> None:
        self._store = store
        self._prices = prices
        self._look_seconds = look_seconds
        self._notice_seconds = notice_seconds
        self._told: dict[RatedCell, Sequence[Line]] = {}
        self._told_by: PriceBook | None = None
        self._repeated = Repeated()
        self._trouble = ""
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Call it once the store is open. Returns at once."""
        self._task = asyncio.create_task(self._run(), name="usage:rates")

    async def stop(self) -> None:
        await end_task(self._task)

    def health(self) -> ComponentHealth:
        """Always ready, as nothing but dashboards rests on it; the detail says what it waits for."""
        return ComponentHealth(ready=True, detail=self._trouble)

    async def _run(self) -> None:
        while True:
            book, began = self._prices(), time.monotonic()
            try:
                await self.refresh()
            except TurnlogError as error:
                self._trouble = f"rates for dashboards wait: {error}"
                if self._repeated.is_news(self._trouble):
                    log.warning("rates_wait", reason=str(error))
                rest = min(REST * (time.monotonic() - began), self._look_seconds)
                await asyncio.sleep(max(self._notice_seconds, rest))
                continue
            self._trouble = ""
            await asyncio.sleep(REST * (time.monotonic() - began))
            await self._until_due(book)

    async def _until_due(self, book: PriceBook) -> None:
        for _ in range(round(self._look_seconds / self._notice_seconds)):
            if self._prices() is not book:
                return
            await asyncio.sleep(self._notice_seconds)

    async def refresh(self) -> None:
        """Looks once, and writes what is new. Raises UnavailableError; what was there before is there then."""
        book = self._prices()
        own = book.tenants()
        cells = await self._store.rated_cells(own)
        if len(cells) >= MOST_CELLS and self._repeated.is_news("too many cells"):
            log.warning("rates_left_out", reason=f"usage has more than {MOST_CELLS:,} sorts of events")
        lines = await asyncio.to_thread(self._lines, cells, book)
        if await self._store.write_rates([*map(own_line, own), *lines]):
            log.info("rates_written", cells=len(cells), rates=len(lines))

    def _lines(self, cells: Sequence[RatedCell], book: PriceBook) -> list[Line]:
        """Works out what is new; the rest is as it was, by the same book."""
        before = self._told if self._told_by is book else {}
        self._told = {cell: before[cell] if cell in before else lines_of(cell, book) for cell in cells}
        self._told_by = book
        return [line for lines in self._told.values() for line in lines]
