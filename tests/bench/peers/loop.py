"""The turn by hand, for the peers that bring no model client: the `openai` client on aiohttp (or httpx) in a loop."""

import json
from typing import Any

from harness import MODEL_URL, TOOLS, calculate
from openai import AsyncOpenAI, DefaultAioHttpClient, DefaultAsyncHttpxClient


def model_client(transport: str = "aiohttp") -> AsyncOpenAI:
    http = DefaultAioHttpClient() if transport == "aiohttp" else DefaultAsyncHttpxClient()
    return AsyncOpenAI(base_url=MODEL_URL, api_key="none", http_client=http, max_retries=0)


async def ask(client: AsyncOpenAI, messages: list[Any]) -> dict[str, Any]:
    """One model call; the assistant's message."""
    completion = await client.chat.completions.create(model="scripted", messages=messages, tools=TOOLS)
    return completion.choices[0].message.model_dump(exclude_none=True)


def tool_messages(message: dict[str, Any]) -> list[dict[str, Any]]:
    """What the tools say that the model has asked for; empty when it has answered."""
    return [
        {
            "role": "tool",
            "tool_call_id": call["id"],
            "content": calculate(**json.loads(call["function"]["arguments"])),
        }
        for call in message.get("tool_calls") or []
    ]


async def answer_to(client: AsyncOpenAI, content: str) -> str:
    """A whole turn, kept nowhere."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    while True:
        message = await ask(client, messages)
        results = tool_messages(message)
        if not results:
            return message["content"]
        messages += [message, *results]
