"""What the agents worker does while memory is away."""

import asyncio

from aiohttp import web

from services.agents.memory import MemoryClient
from tests.support.installation import free_ports


async def test_thousands_that_wait_for_memory_ask_once_when_it_is_back() -> None:
    port = free_ports(1)
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(status=503)

    memory = MemoryClient(f"http://127.0.0.1:{port}")
    await memory.start()
    waiting = asyncio.gather(*(memory.until_reachable() for _ in range(3_000)))
    assert not await memory.ready()
    assert not waiting.done()
    app = web.Application()
    app.add_routes([web.get("/healthz", answer)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        await asyncio.wait_for(waiting, 30)
        assert asked == ["/healthz"]
    finally:
        await memory.stop()
        await runner.cleanup()
