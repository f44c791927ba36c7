"""Messages that the benches of memory write: words of made-up syllables, the same ones in every run."""

import random
from collections.abc import Sequence

from schemas.ids import EPOCH
from schemas.journal import MessageAdded
from schemas.parts import TextPart
from schemas.usage import UsageRecorded

MESSAGES_OF_A_THREAD, WORDS_OF_A_MESSAGE, WORDS_OF_A_QUERY = 50, 30, 6
SYLLABLES = ("bak", "cel", "dor", "fim", "gul", "ano", "eri", "ist", "upo", "wan")
VOCABULARY = [first + second + third for first in SYLLABLES for second in SYLLABLES for third in SYLLABLES]


def message(number: int) -> MessageAdded:
    return MessageAdded(
        message_id=f"m-{number}",
        thread_id=f"t-{number // MESSAGES_OF_A_THREAD}",
        turn_id=f"turn-{number // 2}",
        user_id=f"user-{number // MESSAGES_OF_A_THREAD % 1000}",
        role="assistant" if number % 2 else "user",
        parts=[TextPart(text=text(number))],
        created_at=EPOCH,
    )


def text(number: int) -> str:
    return words(random.Random(number), WORDS_OF_A_MESSAGE)


def words(chance: random.Random, count: int) -> str:
    return " ".join(chance.choices(VOCABULARY, k=count))


async def free(usage: Sequence[UsageRecorded]) -> None:
    """`wordllama` costs nothing."""
