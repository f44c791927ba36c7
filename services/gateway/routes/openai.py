"""OpenAI's protocol: a model is an agent's name, a chat is a turn."""

import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import Field

from schemas.agents import Limits
from schemas.base import Identifier, JsonObject, Model, ThreadId
from schemas.ids import new_id, turn_id_of
from schemas.parts import Content, ImagePart, Part, TextPart
from schemas.prompts import MessagesAppend, NewMessage, PromptSubmitted, TurnOptions
from services.gateway.accepting import hold_event
from services.gateway.fanout import SlowListenerError
from services.gateway.forks import batches
from services.gateway.ports import Ports, PortsDep, TenantDep
from services.gateway.sse import begun
from services.gateway.turns import belongs, submit, submit_and_wait
from services.runtime.web import problem

router = APIRouter(tags=["openai"])

WAIT_SECONDS = 300.0


class ChatContent(Model):
    type: Literal["text", "image_url"]
    text: str = ""
    image_url: JsonObject = {}


class ChatMessage(Model):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ChatContent] | None = None


class ChatRequest(Model):
    """What of a chat completions request has a meaning here."""

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    stream: bool = False
    user: Identifier | None = None
    temperature: float | None = None
    max_completion_tokens: int | None = None
    max_tokens: int | None = None
    metadata: JsonObject = {}


@router.get("/v1/models")
async def models(ports: PortsDep, tenant_id: TenantDep) -> dict[str, Any]:
    """The agents, as models."""
    return {
        "object": "list",
        "data": [
            {"id": spec.name, "object": "model", "created": 0, "owned_by": "turnlog"}
            for spec in ports.agents.all(tenant_id)
        ],
    }


@router.post("/v1/chat/completions")
async def chat_completions(
    body: ChatRequest,
    ports: PortsDep,
    tenant_id: TenantDep,
    x_thread_id: Annotated[ThreadId | None, Header()] = None,
) -> Any:
    """Answers the last user message. With `X-Thread-Id` it goes on a thread; else the messages make a new one."""
    if ports.agents.get(body.model, tenant_id=tenant_id) is None:
        raise problem(404, "unknown-agent", "Unknown model", f"there is no agent {body.model!r}")
    last = body.messages[-1]
    if last.role != "user":
        raise problem(400, "no-user-message", "No user message", "the last message must be the user's")
    at = datetime.now(UTC)
    thread_id = x_thread_id or new_id(at)
    call: JsonObject = {}
    if body.temperature is not None:
        call["temperature"] = body.temperature
    if (limit := body.max_completion_tokens or body.max_tokens) is not None:
        call["max_output_tokens"] = limit
    system = "\n".join(_text(each) for each in body.messages if each.role in ("system", "developer"))
    prompt = PromptSubmitted(
        tenant_id=tenant_id,
        thread_id=thread_id,
        agent=body.model,
        content=_content(last),
        user_id=body.user,
        prompt_id=new_id(at),
        options=TurnOptions(instructions=system or None, call=call or None, limits=Limits()),
        metadata=body.metadata,
    )
    hold_event(prompt)
    if x_thread_id is None:
        await _import(ports, tenant_id, thread_id, body.messages[:-1])
    if body.stream:
        return StreamingResponse(await begun(_chunks(ports, prompt, body.model)), media_type="text/event-stream")
    accepted, ended = await submit_and_wait(ports, prompt, WAIT_SECONDS)
    if ended is None or ended["type"] != "turn.completed":
        error = (ended or {}).get("error") or {"message": "the turn did not end in time", "code": "timeout"}
        return JSONResponse({"error": {**error, "type": "turn_failed"}}, status_code=502)
    usage = ended["usage"]
    return {
        "id": accepted.turn_id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body.model,
        "thread_id": thread_id,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": ended["text"]},
                "finish_reason": ended.get("finish_reason") or "stop",
            }
        ],
        "usage": {
            "prompt_tokens": usage["input_tokens"],
            "completion_tokens": usage["output_tokens"],
            "total_tokens": usage["input_tokens"] + usage["output_tokens"],
        },
    }


async def _import(ports: Ports, tenant_id: str, thread_id: str, messages: list[ChatMessage]) -> None:
    earlier = [
        NewMessage(role="user" if each.role == "user" else "assistant", content=_content(each))
        for each in messages
        if each.role in ("user", "assistant") and each.content
    ]
    for batch in batches(earlier):
        await ports.log.submit(MessagesAppend(tenant_id=tenant_id, thread_id=thread_id, messages=batch))


async def _chunks(ports: Ports, prompt: PromptSubmitted, model: str) -> AsyncIterator[str]:
    """Text deltas as chunks of a chat completion. What a failed attempt sent stays: these clients know no undo."""
    turn_id = turn_id_of(prompt.tenant_id, prompt.thread_id, prompt.prompt_id or "")
    created = int(time.time())

    def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> str:
        body = {
            "id": turn_id,
            "object": "chat.completion.chunk",
            "created": created,
            "model": model,
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
        }
        return f"data: {json.dumps(body)}\n\n"

    with ports.log.listening(prompt.tenant_id, prompt.thread_id) as listener:
        await submit(ports, prompt)
        yield chunk({"role": "assistant", "content": ""})
        sent = ""
        while True:
            try:
                event = await listener.next()
            except SlowListenerError:
                return
            if not belongs(event, turn_id):
                continue
            if event.type == "text.delta":
                sent += event.body["text"]
                yield chunk({"content": event.body["text"]})
            elif event.type == "turn.completed":
                text: str = event.body["text"]
                if text.startswith(sent) and text != sent:
                    yield chunk({"content": text[len(sent) :]})
                yield chunk({}, event.body.get("finish_reason") or "stop")
                break
            elif event.topic == "completions":
                yield f"data: {json.dumps({'error': event.body.get('error') or {'message': event.type}})}\n\n"
                break
        yield "data: [DONE]\n\n"


def _content(message: ChatMessage) -> Content:
    if not isinstance(message.content, list):
        return message.content or ""
    parts: list[Part] = []
    for part in message.content:
        if part.type == "text":
            parts.append(TextPart(text=part.text))
        else:
            parts.append(ImagePart(url=str(part.image_url.get("url", ""))))
    return parts


def _text(message: ChatMessage) -> str:
    content = _content(message)
    return content if isinstance(content, str) else "\n".join(p.text for p in content if isinstance(p, TextPart))
