# /// script
# requires-python = ">=3.11"
# dependencies = ["eggai==0.8.*", "openai[aiohttp]>=2"]
# ///
"""eggai on Kafka: an agent takes prompts off one channel and writes answers to another, with an idempotent producer.

`with_eggai.py worker|client`. Its offsets are those of FastStream's default, committed on a timer. The model is called
by the `openai` client on aiohttp, as the floor does.
"""

import asyncio
import sys
from collections import Counter
from typing import Any

from eggai import Agent, Channel
from eggai.transport import KafkaTransport
from harness import IN_FLIGHT, KAFKA, say_ready, take_commands
from loop import answer_to, model_client


def on_kafka() -> tuple[KafkaTransport, Channel, Channel]:
    transport = KafkaTransport(bootstrap_servers=KAFKA, enable_idempotence=True, num_partitions=4)
    return transport, Channel("prompts", transport=transport), Channel("answers", transport=transport)


async def worker() -> None:
    transport, prompts, answers = on_kafka()
    agent = Agent("assistant", transport=transport)
    model = model_client()

    @agent.subscribe(channel=prompts, group_id="assistant", auto_offset_reset="earliest", max_workers=IN_FLIGHT)
    async def handle(message: dict[str, Any]) -> None:
        await answers.publish({"turn": message["turn"], "text": await answer_to(model, message["content"])})

    await agent.start()
    say_ready("eggai", "faststream", "aiokafka", "openai", "aiohttp")
    await asyncio.Event().wait()


class OnEggai:
    def __init__(self, prompts: Channel) -> None:
        self._prompts = prompts
        self._waiting: dict[str, asyncio.Future[str]] = {}
        self._seen: Counter[str] = Counter()

    async def take(self, message: dict[str, Any]) -> None:
        self._seen[message["turn"]] += 1
        if waiting := self._waiting.pop(message["turn"], None):
            waiting.set_result(message["text"])

    async def turn(self, turn: str, content: str) -> str:
        done = self._waiting[turn] = asyncio.get_running_loop().create_future()
        await self._prompts.publish({"turn": turn, "content": content})
        return await done

    async def answers(self, turn: str) -> int:
        return self._seen[turn]

    async def resume(self, turn: str) -> None:
        """No caller knows how."""


async def client() -> None:
    transport, prompts, answers = on_kafka()
    peer = OnEggai(prompts)
    reader = Agent("client", transport=transport)
    reader.subscribe(channel=answers, group_id="client", auto_offset_reset="earliest")(peer.take)
    await reader.start()
    await take_commands(peer)


if __name__ == "__main__":
    asyncio.run({"worker": worker, "client": client}[sys.argv[1]]())
