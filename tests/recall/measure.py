"""How well memory finds the message that answers a question: by words, by meaning, by both."""

import math
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, get_args

import yaml

from schemas.http import FoundBy
from schemas.journal import MessageAdded
from schemas.parts import TextPart
from services.memory.embedder_local import LocalEmbedder
from services.memory.embeddings import Asker, Embedder, Embeddings
from services.memory.fill import EmbeddingFill
from services.memory.projection import JournalProjection
from services.memory.projector import message_point
from services.memory.qdrant_edge import EdgeMemoryStore
from services.memory.search import Search
from services.memory.store import Find
from services.runtime.failpoints import Failpoints
from services.runtime.records import ProjectedRecord

CONVERSATIONS = Path(__file__).with_name("conversations.yaml")
TENANT = "recall"
TOP = 10

Kind = Literal["by_words", "in_other_words"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""Of questions."""

MODES: Mapping[str, Collection[FoundBy]] = {"text": ("text",), "vector": ("vector",), "hybrid": ("text", "vector")}


@dataclass(frozen=True, slots=True)
class Question:
    text: str
    kind: Kind
    thread: str
    answered_by: str
    """The id of the message."""


@dataclass(frozen=True, slots=True)
class Quality:
    """Of the ranks at which the right messages were found.

    `recall`: how many are among the first ten. `ndcg`: how far up, 1 where every one is the first; with one right
    message a question it is the mean of 1 / log2(1 + rank), 0 beyond the tenth.
    """

    recall: float
    ndcg: float

    @staticmethod
    def of(ranks: Sequence[int | None]) -> "Quality":
        found = [rank for rank in ranks if rank is not None and rank <= TOP]
        return Quality(len(found) / len(ranks), sum(1 / math.log2(1 + rank) for rank in found) / len(ranks))


def load() -> tuple[list[MessageAdded], list[Question]]:
    """The messages, and the questions that they answer."""
    messages: list[MessageAdded] = []
    questions: list[Question] = []
    began = datetime(2026, 1, 1, tzinfo=UTC)
    for conversation in yaml.safe_load(CONVERSATIONS.read_text()):
        thread = conversation["thread"]
        for number, text in enumerate(conversation["messages"], start=1):
            messages.append(
                MessageAdded(
                    tenant_id=TENANT,
                    thread_id=thread,
                    message_id=f"{thread}-{number}",
                    role="user" if number % 2 else "assistant",
                    parts=[TextPart(text=text)],
                    created_at=began + timedelta(minutes=len(messages)),
                )
            )
        for kind in KINDS:
            for asked in conversation[kind]:
                [(number, text)] = asked.items()
                questions.append(Question(text, kind, thread, f"{thread}-{number}"))
    return messages, questions


async def ranks(embedder: Embedder | None = None) -> dict[str, list[int | None]]:
    """By mode, at which place the right message of each question is; None where it is not among the first ten."""
    messages, questions = load()
    embeddings = Embeddings(embedder or LocalEmbedder(), _unrecorded)
    with tempfile.TemporaryDirectory() as folder:
        store = EdgeMemoryStore(Path(folder) / "memory")
        await store.open()
        records = [ProjectedRecord(offset, 0, each.thread_id, each) for offset, each in enumerate(messages)]
        await JournalProjection(store).apply(0, records, len(records))
        fill = EmbeddingFill(store, embeddings, Failpoints())
        while await fill.fill_batch():
            pass
        search = Search(store, embeddings)
        found = {mode: [await _rank(search, question, by) for question in questions] for mode, by in MODES.items()}
        await store.close()
        await embeddings.embedder.close()
    return found


async def _rank(search: Search, question: Question, by: Collection[FoundBy]) -> int | None:
    answer = await search.messages(Find("message", TENANT), question.text, by, TOP, Asker(TENANT))
    assert answer.without_vector is None, answer.without_vector
    found, right = (
        [each.point_id for each in answer.found],
        message_point(TENANT, question.thread, question.answered_by),
    )
    return found.index(right) + 1 if right in found else None


async def _unrecorded(_: object) -> None:
    """A measurement is nobody's usage."""
