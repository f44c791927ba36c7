"""What can be asked of usage, in closed vocabularies. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal, cast, get_args

from schemas.analytics import UsageCounts, UsageDimension, UsageUnit
from services.runtime.pricing.cells import Boundaries, Cell

Bucket = Literal["minute", "hour", "day", "month"]
FilterField = Literal[
    "user_id", "team_id", "thread_id", "turn_id", "agent", "model", "provider", "kind", "outcome", "tool"
]

Order = Literal["tokens", "events", "cost", "price"]

FILTERS: tuple[FilterField, ...] = get_args(FilterField)

EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
LATEST = datetime(2106, 1, 1, tzinfo=UTC)
"""Times from one up to the other are kept and asked for: ClickHouse's functions of time are sure of no others."""

DAYS_OF_EVERY_MONTH = 28


@dataclass(frozen=True)
class Weights:
    """What each part of a cell counts, by the hash of the cell. Cells that are not here count nothing.

    They are floating point numbers, for an order and not for an amount: the order of groups whose amounts are equal to
    fifteen digits is left open.
    """

    cells: Sequence[int]
    input: Sequence[float]
    cached: Sequence[float]
    output: Sequence[float]
    reasoning: Sequence[float]
    images: Sequence[float]
    events: Sequence[float]


@dataclass(frozen=True)
class UsageQuery:
    """Sums of one tenant's usage. Times are half-open: [since, until)."""

    tenant_id: str
    group_by: Sequence[UsageDimension] = ()
    bucket: Bucket | None = None
    since: datetime | None = None
    until: datetime | None = None
    filters: dict[FilterField, str] = field(default_factory=dict[FilterField, str])
    compare: bool = False
    """Whether to tell each group's sums of the period before too; it needs both times."""
    per: Sequence[UsageUnit] = ()
    """What to count the different ones of."""
    order_by: Literal["tokens", "events"] | Weights = "tokens"
    limit: int | None = 100
    """None: every group."""
    offset: int = 0
    boundaries: Boundaries = field(default_factory=Boundaries)
    from_rows: bool = False
    """Whether the rows themselves are added up, though sums would answer too."""

    @property
    def length(self) -> timedelta:
        """By how much the period before is earlier; nothing without a comparison, and where it is so many months."""
        if not self.compare or self.since is None or self.until is None or self.months:
            return timedelta()
        return self.until - self.since

    @property
    def months(self) -> int:
        """By how many months the period before is earlier, where buckets are months."""
        if not self.compare or self.bucket != "month" or self.since is None or self.until is None:
            return 0
        return months_between(self.since, self.until) or 0

    @property
    def first(self) -> datetime | None:
        """From when on rows are read."""
        if self.since is None:
            return None
        years, month = divmod(12 * self.since.year + self.since.month - 1 - self.months, 12)
        return max(EARLIEST, self.since.replace(year=years, month=month + 1) - self.length)


class PeriodSums(UsageCounts):
    """The sums of a group in a period, its cells, from which their cost is worked out, and how many of each unit."""

    cells: list[Cell]
    units: Mapping[UsageUnit, int] = {}


class UsageGroup(PeriodSums):
    """A group, and what it was in the period before."""

    group: dict[str, str | None]
    previous: PeriodSums | None = None


def months_between(since: datetime, until: datetime) -> int | None:
    """How many whole months lie between two times; None when they are not whole, or of a day that some have not."""
    months = 12 * (until.year - since.year) + until.month - since.month
    whole = since.day == until.day <= DAYS_OF_EVERY_MONTH and since.time() == until.time()
    return months if whole else None


def parse_dimensions(text: str) -> list[UsageDimension]:
    """`user,model` to dimensions. Raises ValueError naming what is not one."""
    return cast("list[UsageDimension]", _words(text, get_args(UsageDimension), "dimensions"))


def parse_units(text: str) -> list[UsageUnit]:
    """`thread,user` to units. Raises ValueError naming what is not one."""
    return cast("list[UsageUnit]", _words(text, get_args(UsageUnit), "units"))


def parse_time(text: str) -> datetime:
    """An ISO 8601 time or date in UTC; without an offset it is UTC. Raises ValueError, also outside 1970 to 2105."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        hint = "; write + as %2B" if " " in text else ""
        raise ValueError(f"expected a time like 2026-01-31T12:00:00Z or a date, got {text!r}{hint}") from error
    time = time.replace(tzinfo=UTC) if time.tzinfo is None else time
    if not EARLIEST <= time <= LATEST:
        raise ValueError(f"expected a time from 1970 to 2105, got {text!r}")
    return time.astimezone(UTC)


def _words(text: str, known: Sequence[str], what: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if {*names} - {*known} or len({*names}) != len(names):
        raise ValueError(f"expected different {what} of {', '.join(known)}; got {text!r}")
    return names
