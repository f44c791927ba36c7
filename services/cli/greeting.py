"""What `turnlog up` says when it is ready: where to look, and lines to try."""

import os
import sys
from pathlib import Path

from rich.console import Console

from services.runtime.settings import RuntimeSettings

console = Console(highlight=False, soft_wrap=True)


def greet(settings: RuntimeSettings, *, local_model: bool, with_agents: bool, waiting: str) -> None:
    """`waiting`: what keeps prompts from being answered yet, if anything does."""
    base = f"http://{settings.http_host}:{settings.http_port}"
    programs = Path(os.path.relpath(sys.executable)).parent
    state = f"[yellow]Turnlog is up, but not ready:[/yellow] {waiting}" if waiting else "[bold]Turnlog is up.[/bold]"
    console.print(f"{state}\n  HTTP   {base}  (reference: {base}/docs)\n  Kafka  {settings.bootstrap}")
    if local_model:
        console.print(
            "The model is SmolLM2 on this machine: it answers in text and calls no tools by itself. "
            "Set OPENAI_API_KEY or TURNLOG_MODEL_BASE_URL for one that does."
        )
    if not with_agents:
        console.print("No agents worker runs: start some with `turnlog run agents`.")
    console.print("\nTry, over HTTP:")
    console.print(
        f"  curl -s '{base}/v1/threads/t-1/prompts?wait=30' -H 'Content-Type: application/json' "
        """-d '{"content": "hello"}'""",
        markup=False,
    )
    console.print("or from Kafka:")
    console.print(
        f"""  {programs / "python"} -c 'import asyncio, aiokafka
async def main():
    async with aiokafka.AIOKafkaProducer(bootstrap_servers="{settings.bootstrap}") as producer:
        event = b"{{\\"thread_id\\": \\"t-1\\", \\"agent\\": \\"assistant\\", \\"content\\": \\"hello\\"}}"
        await producer.send_and_wait("{settings.topic("prompts")}", event, key=b"t-1")
asyncio.run(main())'""",
        markup=False,
    )
    console.print(f"and watch it: `{programs / 'turnlog'} tail t-1`. Ctrl-C stops everything; the data stays.")
