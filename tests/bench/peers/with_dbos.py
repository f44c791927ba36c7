# /// script
# requires-python = ">=3.11"
# dependencies = ["dbos>=3.4,<3.5", "openai[aiohttp]>=2"]
# ///
"""DBOS on Postgres: a durable workflow; each model call and each tool call is a step, kept before the next begins.

The model is called by the `openai` client on aiohttp, as the floor does. What was cut off is taken up at the start.
"""

import asyncio
from typing import Any

from dbos import DBOS, DBOSConfig, SetWorkflowID
from harness import IN_FLIGHT, POSTGRES, take_commands
from loop import ask, model_client, tool_messages
from openai import AsyncOpenAI

clients: dict[asyncio.AbstractEventLoop, AsyncOpenAI] = {}
"""One a loop: DBOS runs what it recovers on a loop of its own."""


@DBOS.step()
async def model(messages: list[Any]) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    if loop not in clients:
        clients[loop] = model_client()
    return await ask(clients[loop], messages)


@DBOS.step()
async def tools(message: dict[str, Any]) -> list[dict[str, Any]]:
    return tool_messages(message)


@DBOS.workflow()
async def one_turn(content: str) -> str:
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    while True:
        message = await model(messages)
        if not message.get("tool_calls"):
            return message["content"]
        messages += [message, *await tools(message)]


class OnDbos:
    async def turn(self, turn: str, content: str) -> str:
        with SetWorkflowID(turn):
            handle = await DBOS.start_workflow_async(one_turn, content)
        return await handle.get_result()

    async def answers(self, turn: str) -> int:
        status = await DBOS.get_workflow_status_async(turn)
        return int(status is not None and status.status == "SUCCESS")

    async def resume(self, turn: str) -> None:
        await DBOS.resume_workflow_async(turn)


async def main() -> None:
    config: DBOSConfig = {
        "name": "bench",
        "system_database_url": POSTGRES,
        "sys_db_pool_size": IN_FLIGHT,
        "run_admin_server": False,
        "log_level": "ERROR",
        "application_version": "1",
    }
    DBOS(config=config)
    DBOS.launch()
    await take_commands(OnDbos(), "dbos", "psycopg", "openai", "aiohttp")


if __name__ == "__main__":
    asyncio.run(main())
