"""Which periods are counted: those that run, and for a day those that are over. Pure."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import get_args

from schemas.budgets import BudgetSpec, Per, period_of
from services.usage.rows import AHEAD

PERS: tuple[Per, ...] = get_args(Per)

KEPT = timedelta(days=1)
"""How long a period is counted after its end: late usage counts where it belongs, and whoever is told by a warning has
time to read it before its record goes."""


def first_moment(per: Per, now: datetime) -> datetime | None:
    """The beginning of the earliest period that is counted; None of threads, which have no time."""
    day = (now - KEPT).replace(hour=0, minute=0, second=0, microsecond=0)
    match per:
        case "day":
            return day
        case "month":
            return day.replace(day=1)
        case "thread":
            return None


def earliest_period(per: Per, now: datetime) -> str:
    """The earliest period that is counted: every name before it is that of one that is over. Empty of threads."""
    first = first_moment(per, now)
    return "" if first is None else period_of(per, first, None) or ""


def reads_from(budgets: Iterable[BudgetSpec], now: datetime) -> datetime | None:
    """The time of the first record whose usage may be counted; None is the beginning of the log.

    Usage may be on the log before its own time, and so before its period, by as much as clocks may differ.
    """
    firsts = [first_moment(spec.per, now) for spec in budgets]
    known = [first for first in firsts if first is not None]
    return min(known) - AHEAD if known and len(known) == len(firsts) else None
