"""How many members a consumer group has, as its coordinator sees it."""

import asyncio
from typing import Any

from services.runtime.kafka import KafkaClients, KafkaError

ASK_SECONDS = 2


async def group_members(clients: KafkaClients, group_id: str) -> int:
    """Members of the group that have partitions or wait for them; 0 when nobody answers."""
    admin = clients.admin()
    try:
        async with asyncio.timeout(ASK_SECONDS):
            await admin.start()
            responses = await admin.describe_consumer_groups([group_id])
    except (KafkaError, TimeoutError, OSError):
        return 0
    finally:
        await admin.close()
    groups: list[Any] = [group for response in responses for group in response.to_object()["groups"]]
    return sum(len(group["members"]) for group in groups if group["state"] == "Stable")
