"""The model in this process: `wordllama`, 256 numbers of each text, from its wheel. Nothing is fetched or charged."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from services.memory.embeddings import Embedded

AT_ONCE = 500
"""Characters of a single text, such as a query, that is embedded where it is asked: it takes 0.1 ms, and by way of a
thread four times as long."""


class LocalEmbedder:
    """Embeds on a thread of its own. It shares the interpreter with everything else of the process: 32 texts of 40
    words hold it up for 5 ms at most, so there are no more in a call, and a query waits for no more than one."""

    provider = "local"
    model = "wordllama"
    batch = 32
    longest = 4_000
    """The vector is the mean of those of the words: a longer text is about everything. A call takes memory for 32
    times its longest text."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="wordllama")
        self._loaded: Any = None

    async def embed(self, texts: Sequence[str]) -> Embedded:
        if self._loaded is not None and len(texts) == 1 and len(texts[0]) <= AT_ONCE:
            vectors = self._embed([*texts])
        else:
            vectors = await asyncio.get_running_loop().run_in_executor(self._thread, self._embed, [*texts])
        return Embedded(vectors, tokens=None)

    def _embed(self, texts: list[str]) -> list[list[float]]:
        return self._model().embed(texts, norm=False).tolist()

    def _model(self) -> Any:
        if self._loaded is None:
            import wordllama  # noqa: PLC0415 - takes a second, in which the service already answers

            self._loaded = wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)
        return self._loaded

    async def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
