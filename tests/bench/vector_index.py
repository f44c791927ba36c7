"""The index of vectors of memory's engine in process: how long it takes to make, and what it finds for whom.

100,000 messages of tenants of very different sizes, each with its vector by `wordllama`. Each tenant is searched before
and after: without an index the engine compares every vector, so what it finds then is what there is to be found. Times
are of the engine alone.
"""

import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from services.memory.app import REBUILD_BATCH
from services.memory.embedder_local import LocalEmbedder
from services.memory.embeddings import Embeddings
from services.memory.projector import project
from services.memory.qdrant_edge import EdgeMemoryStore
from services.memory.store import Find, VectorSpace, WrittenVectors, wants_vector
from tests.bench.memory_messages import WORDS_OF_A_QUERY, free, message, words
from tests.bench.report import Figure
from tests.bench.turns import percentile

MESSAGES = 100_000
SHARES = {"large": 70, "middle": 20, "small": 5, "tiny": 2}
"""Per cent of the messages, by tenant; what is left is of one more."""

SEARCHES, NEAREST = 100, 10

Answers = list[tuple[float, frozenset[object]]]
"""Seconds that a search took, and what it found."""


async def measure() -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="turnlog-bench-") as name:
        store, embedder = EdgeMemoryStore(Path(name)), LocalEmbedder()
        space = await Embeddings(embedder, free).space()
        await store.open()
        try:
            for first in range(0, MESSAGES, REBUILD_BATCH):
                await _write(store, embedder, space, range(first, min(first + REBUILD_BATCH, MESSAGES)))
            chance = random.Random(MESSAGES)
            queries = (await embedder.embed([words(chance, WORDS_OF_A_QUERY) for _ in range(SEARCHES)])).vectors
            compared = {tenant: await _search(store, space, tenant, queries) for tenant in SHARES}
            began = time.monotonic()
            await store.begin_copy(space)
            copied = time.monotonic()
            await store.optimise_build()
            indexed = time.monotonic()
            await store.switch()
            found = {tenant: await _search(store, space, tenant, queries) for tenant in SHARES}
        finally:
            await store.close()
            await embedder.close()
    figures = [
        Figure(f"{MESSAGES:,} messages copied", copied - began, "s"),
        Figure(f"{MESSAGES:,} vectors indexed, beside a process that waits", indexed - copied, "s"),
    ]
    for tenant in SHARES:
        figures += _of_tenant(tenant, compared[tenant], found[tenant])
    return figures


async def _write(store: EdgeMemoryStore, embedder: LocalEmbedder, space: VectorSpace, numbers: range) -> None:
    tenants = [name for name, share in SHARES.items() for _ in range(share)]
    tenants += ["others"] * (100 - len(tenants))
    events = [(number, message(number).model_copy(update={"tenant_id": tenants[number % 100]})) for number in numbers]
    changes = project(events, {})
    documents = [each for each in changes.upserts if wants_vector(each)]
    made = (await embedder.embed([each.text for each in documents])).vectors
    vectors = {each.point_id: vector for each, vector in zip(documents, made, strict=True)}
    await store.write(0, replace(changes, vectors=WrittenVectors(space, vectors)), numbers.stop)


async def _search(
    store: EdgeMemoryStore, space: VectorSpace, tenant: str, queries: Sequence[Sequence[float]]
) -> Answers:
    answers: Answers = []
    for query in queries:
        began = time.monotonic()
        hits = await store.search_vector(Find("message", tenant), space, query, NEAREST)
        answers.append((time.monotonic() - began, frozenset(each.point for each in hits)))
    return answers


def _of_tenant(tenant: str, compared: Answers, found: Answers) -> list[Figure]:
    kept = [len(before & after) / NEAREST for (_, before), (_, after) in zip(compared, found, strict=True)]
    whose = f"a tenant of {SHARES[tenant]} %"
    before, after = (sorted(seconds for seconds, _ in answers) for answers in (compared, found))
    return [
        Figure(f"{whose}: p50 without an index", percentile(before, 50) * 1000, "ms"),
        Figure(f"{whose}: p50 with it", percentile(after, 50) * 1000, "ms"),
        Figure(f"{whose}: p99 with it", percentile(after, 99) * 1000, "ms"),
        Figure(f"{whose}: found of the {NEAREST} nearest", 100 * sum(kept) / len(kept), "%"),
    ]
