"""The tools of the chaos run, as a user of the platform writes them. Every execution leaves a line in a file."""

import asyncio
import json
import os
import time
from pathlib import Path

from services.tools.errors import ToolError
from services.tools.registration import tool
from services.tools.tool import ToolContext


def _executed(key: str, context: ToolContext) -> None:
    """One write to a file opened for appending: lines of several processes don't mix."""
    line = json.dumps({"key": key, "call_id": context.call_id, "tenant_id": context.tenant_id}) + "\n"
    file = os.open(Path(os.environ["CHAOS_EXECUTIONS"]), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


@tool
async def note(key: str, seconds: float, context: ToolContext) -> str:
    """Takes a note."""
    await asyncio.sleep(seconds)
    _executed(key, context)
    return f"noted {key}"


@tool
def wait(key: str, seconds: float, context: ToolContext) -> str:
    """Waits, in a thread."""
    _executed(key, context)
    time.sleep(seconds)
    return f"waited {key}"


@tool
async def fail(key: str, seconds: float, context: ToolContext) -> str:
    """Fails."""
    _executed(key, context)
    await asyncio.sleep(seconds)
    raise ToolError(f"no luck with {key}")


@tool
async def pay(key: str, seconds: float, context: ToolContext) -> str:
    """Pays, when a person has said yes."""
    await asyncio.sleep(seconds)
    _executed(key, context)
    return f"paid {key}"
