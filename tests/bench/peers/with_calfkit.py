# /// script
# requires-python = ">=3.11"
# dependencies = ["calfkit==0.13.*", "faststream[kafka]<=0.7.5"]
# ///
"""calfkit on Kafka: an agent and a tool, both nodes of one worker, every hop between them a record of its log.

`with_calfkit.py worker|client`. Its own model client (on httpx), its own offsets; producers are told to be idempotent.
It needs FastStream 0.7.5 or less.
"""

import asyncio
import sys
from collections import Counter
from typing import Any

from calfkit import Agent, Client, OpenAIModelClient, ProvisioningConfig, Worker, agent_tool
from harness import IN_FLIGHT, KAFKA, MODEL_URL, say_ready, take_commands
from harness import calculate as work_out


@agent_tool
def calculate(expression: str) -> str:
    """Works out an expression."""
    return work_out(expression)


def connect() -> Client:
    provisioning = ProvisioningConfig(enabled=True, num_partitions=4)
    return Client.connect(KAFKA, provisioning=provisioning, enable_idempotence=True)


async def worker() -> None:
    model = OpenAIModelClient("scripted", base_url=MODEL_URL, api_key="none")
    assistant = Agent("assistant", system_prompt="Be brief.", model_client=model, tools=[calculate])
    async with Worker(connect(), nodes=[assistant, calculate], max_workers=IN_FLIGHT):
        say_ready("calfkit", "faststream", "aiokafka", "openai", "httpx")
        await asyncio.Event().wait()


class OnCalfkit:
    def __init__(self, client: Client) -> None:
        self._agent = client.agent("assistant")
        self._answered: Counter[str] = Counter()
        self._threads: dict[str, list[Any]] = {}

    async def turn(self, turn: str, content: str) -> str:
        """The past of a thread is the caller's to keep and to send again."""
        result = await self._agent.execute(content, timeout=120, message_history=self._threads.get(turn))
        self._threads[turn] = result.message_history
        self._answered[turn] += 1
        return result.output

    async def answers(self, turn: str) -> int:
        return self._answered[turn]

    async def resume(self, turn: str) -> None:
        """No caller knows how."""


async def client() -> None:
    async with connect() as connected:
        await take_commands(OnCalfkit(connected))


if __name__ == "__main__":
    asyncio.run({"worker": worker, "client": client}[sys.argv[1]]())
