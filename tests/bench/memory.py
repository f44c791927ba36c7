"""Memory's engine in process, with nothing beside it: how fast it takes the journal in, and answers from how much.

Records go from JSON through the projection into the store in batches as a rebuild has them, but there is no Kafka: a
generator writes the journal. Each message gets a vector, by `wordllama`. Contexts are read one after the other, of
threads that a fixed seed chooses, without HTTP.
"""

import os
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from schemas.agents import ContextOptions, SearchOptions
from schemas.base import DEFAULT_TENANT
from schemas.envelope import decode_event, encode_event
from schemas.http import ContextRequest
from schemas.topics import MESSAGES
from services.memory.app import REBUILD_BATCH
from services.memory.embedder_local import LocalEmbedder
from services.memory.embeddings import Embeddings
from services.memory.projection import JournalProjection
from services.memory.projector import message_point
from services.memory.qdrant_edge import EdgeMemoryStore
from services.memory.reads import Reads
from services.memory.search import Search
from services.memory.store import MessageVector
from services.runtime.garbage import collect_rarely
from services.runtime.records import ProjectedRecord
from tests.bench.bench_installation import resident_megabytes
from tests.bench.memory_messages import MESSAGES_OF_A_THREAD, WORDS_OF_A_QUERY, free, message, text, words
from tests.bench.report import Figure
from tests.bench.turns import percentile

SIZES = (100_000, 1_000_000)
QUICK = (20_000,)

READS, WARM = 500, 20
OPTIONS = {
    "recent messages": ContextOptions(),
    "recent messages and words": ContextOptions(search=SearchOptions()),
    "recent messages, words and meaning": ContextOptions(search=SearchOptions(vector=True)),
}


async def measure(sizes: Sequence[int] = SIZES) -> list[Figure]:
    """One store, measured each time that it holds so many messages. Python's collector is as it is in a service."""
    collect_rarely()
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="turnlog-bench-") as name:
        store, embedder = EdgeMemoryStore(Path(name)), LocalEmbedder()
        embeddings = Embeddings(embedder, free)
        await store.open()
        try:
            begin = 0
            for size in sizes:
                seconds, cpu = await _project(store, begin, size)
                added = size - begin
                embedded = await _embed(store, embeddings, begin, size)
                figures += [
                    Figure(f"{size:,}: messages projected a second", added / seconds, "/s"),
                    Figure(f"{size:,}: messages projected a second of CPU", added / cpu, "/s"),
                    Figure(
                        f"{size:,}: a million at that rate, a rebuild without Kafka", 1_000_000 * seconds / added, "s"
                    ),
                    Figure(f"{size:,}: vectors made and stored a second", embedded, "/s"),
                    *await _contexts(Reads(store, Search(store, embeddings)), size),
                    Figure(f"{size:,}: resident", sum((await resident_megabytes(os.getpid())).values()), "MB"),
                    Figure(f"{size:,}: of it pages of files, which the kernel may drop", _of_files(), "MB"),
                ]
                begin = size
        finally:
            await store.close()
            await embedder.close()
    return figures


def _of_files() -> float:
    """As Linux tells it."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssFile"].split()[0]) / 1024


async def _project(store: EdgeMemoryStore, begin: int, end: int) -> tuple[float, float]:
    """Seconds, and seconds of CPU, that it took from JSON to where it can be read; making the JSON does not count."""
    projection, seconds, cpu = JournalProjection(store), 0.0, 0.0
    columns = (TextColumn("projecting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("", total=end, completed=begin)
        for first in range(begin, end, REBUILD_BATCH):
            numbers = range(first, min(first + REBUILD_BATCH, end))
            values = [encode_event(message(number)) for number in numbers]
            began, began_cpu = time.monotonic(), time.process_time()
            records = [
                ProjectedRecord(number, 0, None, decode_event(MESSAGES, value, {}))
                for number, value in zip(numbers, values, strict=True)
            ]
            await projection.apply(0, records, numbers.stop)
            seconds, cpu = seconds + time.monotonic() - began, cpu + time.process_time() - began_cpu
            progress.update(task, completed=numbers.stop)
    return seconds, cpu


async def _embed(store: EdgeMemoryStore, embeddings: Embeddings, begin: int, end: int) -> float:
    """Vectors a second."""
    space, batch = await embeddings.space(), embeddings.embedder.batch
    began = time.monotonic()
    for first in range(begin, end, batch):
        asked = map(message, range(first, min(first + batch, end)))
        points = [message_point(DEFAULT_TENANT, each.thread_id, each.message_id) for each in asked]
        documents = await store.get(points)
        texts = [text(int(each.fields["position"])) for each in documents]
        made = await embeddings.embedder.embed(texts)
        await store.put_vectors(space, [MessageVector(*each) for each in zip(documents, made.vectors, strict=True)])
    return (end - begin) / (time.monotonic() - began)


async def _contexts(reads: Reads, size: int) -> list[Figure]:
    chance = random.Random(size)
    figures: list[Figure] = []
    threads = range(size // MESSAGES_OF_A_THREAD)
    for name, options in OPTIONS.items():
        took: list[float] = []
        for _ in range(WARM + READS):
            thread, query = chance.choice(threads), words(chance, WORDS_OF_A_QUERY)
            request = ContextRequest(thread_id=f"t-{thread}", query=query, options=options)
            began = time.monotonic()
            context = await reads.context(request)
            took.append(time.monotonic() - began)
            assert context.without_vector is None, context.without_vector
            assert len(context.messages) == MESSAGES_OF_A_THREAD
        took = sorted(took[WARM:])
        figures += [
            Figure(f"{size:,}: p50 of a context of {name}", percentile(took, 50) * 1000, "ms"),
            Figure(f"{size:,}: p99 of a context of {name}", percentile(took, 99) * 1000, "ms"),
        ]
    return figures
