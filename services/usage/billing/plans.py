"""The plans and subscriptions that hold now, as the log has them."""

from schemas.topics import PLANS
from services.runtime.kafka import KafkaClients
from services.runtime.registry import Registry
from services.runtime.settings import RuntimeSettings
from services.usage.billing.catalog import PlanCatalog, PlanDefinition


class Plans:
    """Follows the topic. Nothing is stored: a start reads it from its beginning."""

    def __init__(self, clients: KafkaClients, settings: RuntimeSettings) -> None:
        self._registry: Registry[PlanDefinition] = Registry(clients, settings, PLANS)

    async def start(self) -> None:
        """Returns when everything on the topic has been read."""
        await self._registry.start()

    async def stop(self) -> None:
        await self._registry.stop()

    async def catch_up(self) -> None:
        """Waits until what is on the topic now has been read. Raises UnavailableError."""
        await self._registry.catch_up()

    def catalog(self) -> PlanCatalog:
        """As of what was read."""
        return PlanCatalog(self._registry.history())
