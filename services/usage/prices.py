"""The prices that hold now: those on the log, over those that the package carries."""

from schemas.prices import PriceSpec
from schemas.topics import PRICES
from services.runtime.kafka import KafkaClients
from services.runtime.registry import Registry
from services.runtime.settings import RuntimeSettings
from services.usage.pricing.book import PriceBook
from services.usage.pricing.defaults import PackagedPrices


class Prices:
    """Follows the topic. Nothing is stored: a start reads it from its beginning."""

    def __init__(self, clients: KafkaClients, settings: RuntimeSettings) -> None:
        self._registry: Registry[PriceSpec] = Registry(clients, settings, PRICES)
        self._defaults = PackagedPrices()
        self._book, self._as_of = PriceBook((), self._defaults), 0

    async def start(self) -> None:
        """Returns when every price on the topic has been read."""
        await self._registry.start()

    async def stop(self) -> None:
        await self._registry.stop()

    async def catch_up(self) -> None:
        """Waits until what is on the topic now has been read. Raises UnavailableError."""
        await self._registry.catch_up()

    def book(self) -> PriceBook:
        """The book as of what was read: made anew only when something was."""
        if self._registry.position != self._as_of:
            self._as_of = self._registry.position
            self._book = PriceBook(self._registry.history(), self._defaults)
        return self._book
