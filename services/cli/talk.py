"""`turnlog prompt` and `turnlog tail`."""

import json
from datetime import UTC, datetime
from typing import Any

from rich.console import Console

from schemas.ids import new_id
from services.cli.gateway import ServerEvent, request, server_events
from services.runtime.settings import RuntimeSettings, load_settings

console = Console(highlight=False, markup=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)

_COLOURS = {
    "text.delta": "dim",
    "reasoning.delta": "dim",
    "tool_args.delta": "dim",
    "tool.called": "yellow",
    "tool.returned": "yellow",
    "tool.failed": "red",
    "usage.recorded": "dim",
    "turn.failed": "red",
    "turn.rejected": "red",
    "turn.completed": "green",
}


async def prompt(text: str, *, thread_id: str | None, agent: str, user_id: str | None, as_json: bool) -> int:
    """Exit code 0 when the turn completed, 1 when it ended otherwise."""
    settings = load_settings(RuntimeSettings)
    thread = thread_id or new_id(datetime.now(UTC))
    body = {"agent": agent, "content": text, "user_id": user_id}
    options: dict[str, Any] = {"json": body, "headers": {"Accept": "text/event-stream"}}
    shown = ""
    async with request(settings, "POST", f"/v1/threads/{thread}/prompts", **options) as response:
        async for event in server_events(response):
            if event.type == "text.delta" and not as_json:
                shown += event.data["text"]
                console.out(event.data["text"], end="", highlight=False)
            elif event.type == "stream.aborted" and shown:
                shown = ""
                errors.print("\n[the answer broke off and is written again]")
            elif event.type in ("turn.completed", "turn.failed", "turn.cancelled", "turn.rejected"):
                return _ended(event, shown, as_json=as_json)
    errors.print("turnlog: the stream ended before the turn did; look with `turnlog tail`")
    return 1


def _ended(event: ServerEvent, shown: str, *, as_json: bool) -> int:
    if as_json:
        console.print(event.raw)
    elif event.type == "turn.completed":
        final: str = event.data["text"]
        console.out(final[len(shown) :] if final.startswith(shown) else f"\n{final}", highlight=False)
        errors.print(f"thread {event.data['thread_id']}")
    else:
        detail = event.data.get("error") or {"message": event.data.get("reason") or ""}
        errors.print(f"{event.type}: {detail.get('code', '')} {detail['message']}")
    return 0 if event.type == "turn.completed" else 1


async def tail(thread_id: str, *, from_start: bool, as_json: bool) -> None:
    """Until Ctrl-C."""
    settings = load_settings(RuntimeSettings)
    path = f"/v1/threads/{thread_id}/events?from_start={str(from_start).lower()}"
    async with request(settings, "GET", path) as response:
        async for event in server_events(response):
            if as_json:
                console.print(event.raw)
            else:
                console.print(f"{event.type:16} {_summary(event)}", style=_COLOURS.get(event.type))


def _summary(event: ServerEvent) -> str:
    data = event.data
    match event.type:
        case "message.added":
            parts = [part.get("text") or json.dumps(part) for part in data["parts"]]
            return f"{data['role']} step {data.get('step', 0)}: {' '.join(parts)}"
        case "prompt.submitted":
            by = f" by {data['user_id']}" if data.get("user_id") else ""
            return f"to {data.get('agent')}{by}: {_content(data.get('content'))}"
        case "usage.recorded":
            spent = f"{data.get('input_tokens', 0)} + {data.get('output_tokens', 0)} tokens"
            return f"{data.get('model') or data.get('tool')} step {data.get('step')}: {spent}, {data.get('outcome')}"
        case "text.delta" | "reasoning.delta":
            return repr(data["text"])
        case "tool.called":
            return f"{data['name']} {json.dumps(data['arguments'])}"
        case "tool.returned":
            return json.dumps(data.get("result"))
        case _:
            shown = {key: value for key, value in data.items() if key not in ("type", "tenant_id", "thread_id")}
            return json.dumps(shown)


def _content(content: Any) -> str:
    return content if isinstance(content, str) else json.dumps(content)
