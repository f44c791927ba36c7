"""What was spent before a place of the log, by the accounts of budgets: the question, and its answer. Pure."""

import hashlib
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple

from schemas.budgets import Account, By
from services.runtime.pricing.cells import Boundaries, Cell

TimedPer = Literal["day", "month"]
"""Periods that have a beginning: of a thread nobody knows whether the tables still have all of it."""


@dataclass(frozen=True)
class SpendingQuery:
    """Sums of usage by tenant, period, and one of `by`.

    Args:
        by: what the accounts are of, each with whether money is asked for, which needs cells.
        since: the first moment of a period.
        tenants: whose usage; None: everybody's.
        boundaries: of the cells.
    """

    by: Mapping[By, bool]
    per: TimedPer
    since: datetime
    tenants: tuple[str, ...] | None
    boundaries: Boundaries


class Spent(NamedTuple):
    """What one account has spent, or a part of it."""

    by: By
    account: Account
    cell: Cell
    """Where no money is asked for it has counts alone."""


@dataclass(frozen=True)
class Spending:
    """All that was spent before places of the log.

    Args:
        generation: of the tables.
        moved: facts that were read first with a time before `since`, and again with a later one, which is a conflict.
    """

    spent: Sequence[Spent]
    generation: int
    moved: int


class FactIds:
    """Which facts there are, each by 128 bits of a hash, which are 16 bytes. That a fact of ten million is taken for
    one of ten million others has a chance of 10^-24.

    Args:
        high: the first half of each hash, in order; `low` the other ones.
        last: the latest time of the facts; None when there are none.
    """

    def __init__(self, high: Sequence[int], low: Sequence[int], last: datetime | None) -> None:
        self._high = high
        self._low = low
        self.last = last

    def __len__(self) -> int:
        return len(self._high)

    def has(self, fact: str) -> bool:
        """Whether a fact, written `tenant/usage_id`, is one of them."""
        digest = hashlib.md5(fact.encode(), usedforsecurity=False).digest()
        high, low = int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")
        place = bisect_left(self._high, high)
        while place < len(self._high) and self._high[place] == high:
            if self._low[place] == low:
                return True
            place += 1
        return False
