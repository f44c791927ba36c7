"""What memory says of a Qdrant server that is none, fails, or is too old."""

import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from qdrant_client import AsyncQdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException

from services.memory.qdrant_server import ServerMemoryStore
from services.runtime.errors import ConfigurationError, UnavailableError

VERSION = {"title": "qdrant", "version": "1.18.0"}


@asynccontextmanager
async def answering(answer: Callable[[], web.Response], version: object = VERSION) -> AsyncIterator[str]:
    """The URL of a server that says its version, and to all else gives one answer."""

    async def handle(request: web.Request) -> web.Response:
        return web.json_response(version) if request.path == "/" and version else answer()

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


ANSWERS: list[tuple[Callable[[], web.Response], str]] = [
    (lambda: web.json_response({"status": {"error": "out of it"}}, status=500), r"500 \(Internal.*out of it"),
    (lambda: web.json_response({"status": {"error": "slower"}}, status=429, headers={"Retry-After": "3"}), "slower"),
    (lambda: web.Response(status=502), r"502 \(Bad Gateway"),
    (lambda: web.Response(text="<html>\nhello</html>", content_type="text/html"), "no JSON: <html> hello</html>"),
    (lambda: web.json_response({}), ""),
    (lambda: web.json_response([]), ""),
]


@pytest.mark.parametrize("version", [VERSION, None], ids=["with a version", "without"])
@pytest.mark.parametrize(("answer", "said"), ANSWERS, ids=["500", "429", "502", "HTML", "{}", "[]"])
async def test_an_answer_that_is_none_is_an_outage_which_is_told_in_one_line(
    answer: Callable[[], web.Response], said: str, version: object
) -> None:
    async with answering(answer, version) as url:
        store = ServerMemoryStore(url, collection="test")
        for call in (store.open, store.positions):
            with pytest.raises(UnavailableError, match=f"{url}.*{said}") as caught:
                await call()
            assert "\n" not in str(caught.value)
        await store.close()


async def test_an_error_that_says_nothing_is_told_by_its_name() -> None:
    class Timing(AsyncQdrantClient):
        async def info(self) -> models.VersionInfo:
            raise ResponseHandlingException(TimeoutError())

    store = ServerMemoryStore("http://q:6333", collection="test", client=Timing(location=":memory:"))
    with pytest.raises(UnavailableError, match="TimeoutError"):
        await store.open()
    await store.close()


class Versioned(AsyncQdrantClient):
    def __init__(self, version: str) -> None:
        super().__init__(location=":memory:")
        self._version = version

    async def info(self) -> models.VersionInfo:
        return models.VersionInfo(title="qdrant", version=self._version)


@pytest.mark.parametrize("version", ["1.17.9", "1.9.0", "0.11.6"])
async def test_a_server_that_is_too_old_is_a_wrong_setting(version: str) -> None:
    store = ServerMemoryStore("http://q:6333", collection="test", client=Versioned(version))
    with pytest.raises(ConfigurationError, match=f"http://q:6333 is {version}, and memory needs 1.18 or later"):
        await store.open()
    await store.close()


@pytest.mark.parametrize("version", ["1.18.0", "1.18.1-dev", "1.20.3", "2.0.0", "nightly"])
async def test_a_later_server_and_one_that_has_no_number_are_taken(version: str) -> None:
    store = ServerMemoryStore("http://q:6333", collection="test", client=Versioned(version))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Payload indexes have no effect in the local Qdrant", UserWarning)
        await store.open()
    assert await store.positions() == {}
    await store.close()
