"""The best hits of a search in an order that is the same each time. Pure but for the asking."""

from collections.abc import Awaitable, Callable, Sequence

from services.memory.store import Hit

MOST_ASKED = 10_000
"""Of more hits than these that are equally good, an engine may give others each time."""


async def best(ask: Callable[[int], Awaitable[Sequence[Hit]]], limit: int) -> list[Hit]:
    """The best `limit` hits, equally good ones in the order of their ids.

    An engine gives any of those that are as good as the last one, so it is asked for more until all of them are there.
    """
    asked = limit + 1
    hits = await ask(asked)
    while len(hits) == asked < MOST_ASKED and hits[-1].score == hits[limit - 1].score:
        asked = min(4 * asked, MOST_ASKED)
        hits = await ask(asked)
    return sorted(hits, key=lambda hit: (-hit.score, hit.point))[:limit]
