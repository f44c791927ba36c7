"""What was counted before a ledger began: the facts that it does not count again. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from services.usage.spending import FactIds


@dataclass(frozen=True)
class Known:
    """The facts of a time and tenants of which any record is before places of the log.

    Args:
        since: the first moment; whatever is of before it is not among them.
        tenants: whose facts; None: everybody's.
        ends: the next offset of each partition.
    """

    ids: FactIds
    since: datetime
    tenants: tuple[str, ...] | None
    ends: Sequence[int]

    @property
    def last(self) -> datetime:
        """The latest time of any."""
        return self.ids.last or self.since

    def has(self, fact: str) -> bool:
        """Whether a fact, written `tenant/usage_id`, is one of them."""
        return self.ids.has(fact)

    def covers(self, other: "Known") -> bool:
        """Whether all that another one knows is known here too."""
        return (
            self.since <= other.since
            and (self.tenants is None or (other.tenants is not None and {*self.tenants} >= {*other.tenants}))
            and all(mine >= theirs for mine, theirs in zip(self.ends, other.ends, strict=True))
        )
