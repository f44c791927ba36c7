"""The floor: no framework. The model client in a loop, and one idempotent write to Kafka at the end of a turn.

Nothing of a turn is kept before its answer is. Runs in the bench's own environment: `floor.py aiohttp|httpx`.
"""

import asyncio
import json
import sys

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import TopicAlreadyExistsError
from harness import KAFKA, take_commands
from loop import answer_to, model_client

TOPIC, PARTITIONS = "answers", 4


class Floor:
    def __init__(self, transport: str) -> None:
        self._model = model_client(transport)
        self._producer = AIOKafkaProducer(bootstrap_servers=KAFKA, enable_idempotence=True)

    async def start(self) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=KAFKA)
        await admin.start()
        try:
            await admin.create_topics([NewTopic(TOPIC, PARTITIONS, 1)])
        except TopicAlreadyExistsError:
            pass
        finally:
            await admin.close()
        await self._producer.start()

    async def turn(self, turn: str, content: str) -> str:
        answer = await answer_to(self._model, content)
        await self._producer.send_and_wait(
            TOPIC, json.dumps({"turn": turn, "text": answer}).encode(), key=turn.encode()
        )
        return answer

    async def answers(self, turn: str) -> int:
        partitions = [TopicPartition(TOPIC, number) for number in range(PARTITIONS)]
        found = 0
        async with AIOKafkaConsumer(bootstrap_servers=KAFKA) as consumer:
            consumer.assign(partitions)
            await consumer.seek_to_beginning(*partitions)
            ends = await consumer.end_offsets(partitions)
            while any([await consumer.position(each) < ends[each] for each in partitions]):
                for records in (await consumer.getmany(timeout_ms=100)).values():
                    found += sum(record.key == turn.encode() for record in records)
        return found

    async def resume(self, turn: str) -> None:
        """There is nothing to go on from."""


async def main() -> None:
    floor = Floor(sys.argv[1])
    await floor.start()
    await take_commands(floor, "openai", "aiokafka", sys.argv[1])


if __name__ == "__main__":
    asyncio.run(main())
